"""Staging disks: how they are made or taken up again, and how a transport sees them.

A staging disk belongs to no VM, so no VM can start from it while it is being written, and it is not
visible in the replica before the commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog

from xorepd.data.http.chunked import ChunkedWriter, open_chunked
from xorepd.data.http.imports import ImportWriter, open_import
from xorepd.data.writer import Writer
from xorepd.errors import NotServed, WrittenTo, XorepdError
from xorepd.extents import Extent
from xorepd.ids import Ref, VdiUuid
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.context.board import DiskProgress
from xorepd.replication.deciding.modes import Delta, Full, Mode, Resync, reason_of
from xorepd.replication.deciding.resume import Begun
from xorepd.replication.format.inventory import Marked, VmSnapshot
from xorepd.replication.format.marks import KEY, KEYS_OF_STAGING, Mark, Role, xo_point
from xorepd.replication.format.ownership import was_made_of_changed
from xorepd.replication.transfer.resume_offset import Confirmations
from xorepd.tidying import to_the_end
from xorepd.transports.base import TargetDisk
from xorepd.xapi.records import CONTENT_ID
from xorepd.xapi.vdis import clone_disk, create_disk, grow_disk
from xorepd.xapi.vms import rewrite_other_config

log = structlog.get_logger(__name__)

VHD = "vhd"
"""The writer that has to announce what it will write."""

ELSEWHERE = "elsewhere"
"""In place of a writer: the transport wrote the data with means of its own."""

SALVAGE_S = 8.0
"""Longest wait for the target to confirm what was sent before the transfer failed."""


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """One disk of the source snapshot, and how it is sent."""

    source: Marked
    how: Mode
    bootable: bool
    mode: str
    begun: Begun | None = None
    """What an interrupted run has sent of it."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A staging disk that holds the content of its source, complete."""

    plan: PlannedDisk
    ref: Ref
    uuid: str
    mark: Mark
    confirmations: Confirmations


def _on_mark(how: Mode) -> dict[str, Any]:
    """Return what the mark of a staging disk says of its mode, for the run that continues it."""
    return {
        "deltas": 0 if isinstance(how, Full) else how.number,
        "onto": "" if isinstance(how, Full) else how.onto,
        "base": how.base if isinstance(how, Delta) else "",
        "reason": reason_of(how),
    }


async def take_up(pair: Pair, plan: PlannedDisk, begun: Begun) -> Staged:
    """Return the staging disk that an interrupted run left, as one of this run."""
    vdi = begun.staging.vdi
    mark = replace(
        begun.staging.mark,
        run=pair.run_id,
        attempt=pair.attempt,
        job=pair.job,
        **_on_mark(plan.how),
    )
    await rewrite_other_config(pair.target, "VDI", vdi.ref, {KEY: mark.encode()})
    log.info("disk.resumed", vdi=vdi.uuid, device=mark.device, start=begun.start)
    confirmations = Confirmations(pair.target, vdi.ref, vdi.uuid, begun.start, begun.tries)
    await confirmations.go_on()
    return Staged(plan, vdi.ref, vdi.uuid, mark, confirmations)


async def stage(pair: Pair, snapshot: VmSnapshot, plan: PlannedDisk) -> Staged:
    """Make the disk to write into: empty for a full, a clone of the base for a delta."""
    content = plan.source.vdi
    origin = plan.source.mark
    blank = replace(
        pair.blank(Role.DISK),
        snapshot=origin.snapshot,
        disk=origin.disk,
        device=origin.device,
        order=origin.order,
        moment=origin.moment,
        offset=origin.offset,
        content=pair.new_content(origin.device),
        **_on_mark(plan.how),
    )
    keys = xo_point(
        pair.job_id,
        pair.vm.uuid,
        snapshot.vm.snapshot_time,
        pair.sr.uuid,
        copy_of=content.uuid,
        content=content.uuid,
    )
    name = f"[Importing] {content.name_label}"
    match plan.how:
        case Full():
            other = keys | {KEY: blank.encode()}
            making = create_disk(
                pair.target,
                pair.sr.ref,
                content.virtual_size,
                name,
                content.name_description,
                other,
            )
        case Delta(onto=onto) | Resync(onto=onto):
            making = clone_disk(pair.target, pair.target.disk(onto))
    async with making as ref:
        uuid: str = await pair.target.call("VDI.get_uuid", ref)
        mark = blank.on(uuid, ref)
        signed = keys | {KEY: mark.encode(), CONTENT_ID: mark.content}
        inherited = await rewrite_other_config(pair.target, "VDI", ref, signed, KEYS_OF_STAGING)
    if isinstance(plan.how, Delta) and was_made_of_changed(inherited):
        made_of = pair.target.disk(plan.how.onto)
        what = f"disk {made_of.name_label} of a restore point"
        raise WrittenTo(pair.target.name, what, made_of.uuid)
    if not isinstance(plan.how, Full):
        await pair.target.call("VDI.set_name_label", ref, name)
    return Staged(plan, ref, uuid, mark, Confirmations(pair.target, ref, uuid))


async def fit(pair: Pair, staged: Staged, virtual_size: int) -> None:
    """Grow the staging disk to the stream's size: the source disk may have grown since the base."""
    size = int(await pair.target.call("VDI.get_virtual_size", staged.ref))
    if size < virtual_size:
        await grow_disk(pair.target, staged.ref, pair.sr.ref, virtual_size)


class StagingTarget:
    """The `Target` of one staging disk.

    Args:
        staged: the disk.
        base: UUID of the restore point's disk that it is a clone of; empty for a new one.
        what: the disk, for messages.
        end: offset where the data ends that is sent. Its arrival confirms nothing beyond it.
    """

    def __init__(
        self,
        a: Assignment,
        progress: DiskProgress,
        staged: Staged,
        base: str,
        what: str,
        end: int,
    ) -> None:
        self._a, self._progress, self._what = a, progress, f"{what}, import"
        self._confirmations, self._end = staged.confirmations, end
        self._content = staged.mark.content
        self.disk = TargetDisk(
            pool=a.pair.target.cache.pool.uuid,
            vdi=staged.uuid,
            base=base,
            stream=str(a.pair.stream),
            run=a.pair.run_id,
            what=what,
        )

    @asynccontextmanager
    async def open(self, virtual_size: int, extents: Iterable[Extent]) -> AsyncIterator[Writer]:
        """Open the disk for writing: in extents, or as a VHD if the host takes no extents."""
        progress, endpoint, vdi = (
            self._progress,
            self._a.pair.target_endpoint(),
            VdiUuid(self.disk.vdi),
        )
        fresh, what = not self.disk.base, self._what
        async with AsyncExitStack() as stack:
            chunked = open_chunked(
                endpoint,
                vdi,
                fresh=fresh,
                what=what,
                confirmed_to=self.confirmed,
                content=self._content,
            )
            writer: ChunkedWriter | ImportWriter
            try:
                writer = await stack.enter_async_context(chunked)
                progress.writer = "chunked"
            except NotServed as error:
                log.warning("writer.refused", disk=what, reason=str(error))
                vhd = open_import(
                    endpoint, vdi, virtual_size, extents, what=what, content=self._content
                )
                writer = await stack.enter_async_context(vhd)
                progress.writer = VHD
            progress.sending = writer
            try:
                yield writer
            finally:
                progress.sending = None
                progress.sent_bytes += writer.sent
                if self._a.job.resume and isinstance(writer, ChunkedWriter):
                    with suppress(XorepdError, TimeoutError):
                        await to_the_end(writer.salvage(), SALVAGE_S)

    async def pay(self, size: int) -> None:
        """Check that the run may still write. There is no limit here; a throttle wraps this."""
        self._a.pair.target.check()

    def left(self, size: int) -> None:
        self._progress.writer = ELSEWHERE
        self._progress.sent_bytes += size

    def confirmed(self, offset: int) -> None:
        offset = min(offset, self._end)
        self._confirmations.note(offset)
        self._progress.confirmed_to = max(self._progress.confirmed_to, offset)
