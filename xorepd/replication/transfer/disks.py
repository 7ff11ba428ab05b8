"""The disks of a source snapshot into staging disks on the target, and a check of what arrived."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from xorepd.config.models import Verify
from xorepd.data.blocks import size_of
from xorepd.data.digest import Digest, Observed
from xorepd.data.memory_budget import CARRYING, COMPARING
from xorepd.data.reader import Reader
from xorepd.data.remainder import go_on
from xorepd.errors import DataError, DigestMismatch, StreamCut, TransportFailed
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.context.board import DiskProgress
from xorepd.replication.deciding.disk_limits import check_size
from xorepd.replication.deciding.modes import Delta, Full, Resync, reason_of
from xorepd.replication.deciding.reader_choice import Facts
from xorepd.replication.format.inventory import VmSnapshot
from xorepd.replication.transfer.check import Sample, Sent, check, choose_sample
from xorepd.replication.transfer.fingerprint_maps import DiskMap, open_map, retain_maps
from xorepd.replication.transfer.readers import open_reader
from xorepd.replication.transfer.reading import announce_reads, known_facts, open_shared
from xorepd.replication.transfer.resume_offset import Confirming
from xorepd.replication.transfer.resync import CompareWindow, Comparison, told_by
from xorepd.replication.transfer.staging import (
    PlannedDisk,
    Staged,
    StagingTarget,
    fit,
    stage,
    take_up,
)
from xorepd.tidying import to_the_end
from xorepd.xapi.records import Vdi

log = structlog.get_logger(__name__)

UNCHANGED = "unchanged"
"""In place of a reader: the source tells that no block has changed, so nothing has to be opened."""

TRIES, PAUSE_S = 4, 1.0
"""How often a stream that breaks in one place is begun there, and the pause before the second try,
which doubles with each try. If that does not help, the next run continues."""

NOTHING = Sent(None, Sample((), Digest(())), Sample((), Digest(())))
"""There is nothing to read back, or it has been read back already."""

MEMORY = "memory"
"""What a disk waits for while other disks use all that `[daemon] memory` allows."""

WRITE_S = 10.0
"""Longest wait for an offset to be written on the way out."""

DISKS_AT_ONCE = 4
"""Disks of one VM in transfer at the same time. More share the same two hosts."""


async def transfer_disks(
    a: Assignment, snapshot: VmSnapshot, plans: list[PlannedDisk]
) -> list[Staged]:
    """Fill a staging disk for each planned one, several at a time, and check each.

    Raises:
        XorepdError: the failure of the first disk that failed; it stops the other disks.
    """
    pair = a.pair
    for plan in plans:
        vdi, device = plan.source.vdi, plan.source.mark.device
        progress = a.progress.disks[device] = DiskProgress(
            device=device,
            name=vdi.name_label,
            virtual_size=vdi.virtual_size,
            mode=type(plan.how).__name__.lower(),
            reason=reason_of(plan.how),
        )
        if plan.begun is not None:
            progress.resumed_from = progress.confirmed_to = plan.begun.start
    plain = [plan for plan in plans if not plan.begun and not isinstance(plan.how, Resync)]
    await announce_reads(a, [(plan.source.vdi, _source_base(pair, plan)) for plan in plain])
    await retain_maps(a, plans)
    turns = asyncio.Semaphore(DISKS_AT_ONCE)

    async def one(plan: PlannedDisk) -> Staged:
        async with turns:
            begun = plan.begun
            staged = await (take_up(pair, plan, begun) if begun else stage(pair, snapshot, plan))
            await fill(a, staged)
            return staged

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(plan), name=plan.source.vdi.uuid) for plan in plans]
    except BaseExceptionGroup as failures:
        raise _first(failures) from failures
    return [task.result() for task in tasks]


async def fill(a: Assignment, staged: Staged) -> None:
    """Carry the data of one disk into its staging disk, and check what arrived.

    Raises:
        XorepdError: not all of it arrived, or the disk is too large.
    """
    plan, pair = staged.plan, a.pair
    content, device = plan.source.vdi, plan.source.mark.device
    check_size(pair.source.name, content)

    def waits(does: bool) -> None:
        a.progress.waits(device, MEMORY if does else "")
        if does:
            log.info("disk.waiting", device=device, needs=MEMORY)

    try:
        with a.carrier.budget.allocate(waits) as memory:
            mine = a.within(memory)
            async with open_map(mine, plan) as known:
                base = _source_base(pair, plan)
                disk = DiskTransfer(
                    mine,
                    staged,
                    content,
                    known,
                    base,
                    await known_facts(a, content, base),
                    a.progress.disks[device],
                    f"disk {content.name_label} ({device}) of VM {pair.vm.name_label}",
                )
                await check(mine, staged, await disk.send())
    finally:
        with suppress(TimeoutError):
            await to_the_end(staged.confirmations.write(), WRITE_S)


def _first(failure: BaseException) -> BaseException:
    """Return what failed first; the others of a group were stopped because of it."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


@dataclass(frozen=True, slots=True)
class DiskTransfer:
    """One disk of a run on its way, from its source snapshot to its staging disk."""

    a: Assignment
    """With the memory of this disk."""
    staged: Staged
    content: Vdi
    """The disk of the source snapshot."""
    known: DiskMap
    base: Vdi | None
    """The source disk whose content the target has already; None for a full and for a resync."""
    facts: Facts
    """What the source pool offers for the disk, against that base."""
    progress: DiskProgress
    what: str
    """What to call the disk in messages."""

    async def send(self) -> Sent:
        """Carry the disk's data, and continue where the stream broke as long as it gets further.

        Raises:
            DataError: it broke `TRIES` times in one place, or must not be continued.
        """
        progress = self.progress
        is_resync = isinstance(self.staged.plan.how, Resync)
        comparison = await self._begin_comparison() if is_resync else None
        tries = 0
        while True:
            start = progress.confirmed_to
            try:
                if comparison is not None:
                    return await self._carry_differences(comparison)
                return await self._carry(self.facts, start)
            except DataError as error:
                tries = 1 if progress.confirmed_to > start else tries + 1
                is_final = isinstance(error, TransportFailed | DigestMismatch)
                if not self.a.job.resume or tries >= TRIES or is_final:
                    raise
                log.warning(
                    "transfer.interrupted",
                    vdi=self.staged.uuid,
                    reason=str(error),
                    confirmed_to=progress.confirmed_to,
                )
            await self.staged.confirmations.write()
            await asyncio.sleep(PAUSE_S * 2 ** (tries - 1))
            progress.reconnects += 1

    async def _begin_comparison(self) -> Comparison:
        a, progress = self.a, self.progress
        if a.job.verify is Verify.FULL:
            progress.confirmed_to = 0  # also what an earlier run has sent is read back
        await a.carrier.memory.take(COMPARING)  # and keep it for what is carried in between
        return Comparison(
            a,
            self.content,
            self.staged.ref,
            progress,
            self.what,
            self.known,
            start=progress.confirmed_to,
        )

    async def _carry_differences(self, comparison: Comparison) -> Sent:
        """Compare both sides of the disk and carry what differs, window by window."""
        a, staged, progress = self.a, self.staged, self.progress
        begun = staged.plan.begun
        await fit(a.pair, staged, self.content.virtual_size)
        while (window := await comparison.window()) is not None:
            told, start = told_by(self.facts, window.found), progress.confirmed_to
            if not told.is_unchanged:
                if begun is not None and window.start < begun.start:
                    await staged.confirmations.revoke()  # it says that nothing differs here
                sent = await self._carry(told, start, window=window)
                await check(a, staged, sent)
            comparison.passed()
            progress.confirmed_to = window.end
            staged.confirmations.note(window.end)
            await staged.confirmations.write()
        progress.reader = progress.reader or UNCHANGED
        return NOTHING

    async def _carry(
        self, facts: Facts, start: int, *, window: CompareWindow | None = None
    ) -> Sent:
        """Carry the disk's data from an offset on.

        Args:
            facts: what the source offers; for a window, with what differs in it.
            window: the part of the disk to carry, which was compared for this target alone;
                None: all of it.
        """
        a, staged, known, progress = self.a, self.staged, self.known, self.progress
        plan, content, what = staged.plan, self.content, self.what
        if facts.is_unchanged:
            progress.reader, progress.changed_bytes = UNCHANGED, 0
            await fit(a.pair, staged, content.virtual_size)
            staged.confirmations.note(content.virtual_size)
            await known.nothing_changed(start, content.virtual_size)
            return NOTHING
        onto = "" if isinstance(plan.how, Full) else plan.how.onto
        end = content.virtual_size if window is None else window.end
        target = StagingTarget(a, progress, staged, onto, what, end)
        if window is not None or start or progress.reconnects:
            await a.carrier.memory.take(CARRYING)
            opening = open_reader(a.pair.source, a.carrier, content, self.base, facts, what)
        else:
            opening = open_shared(a, content, self.base, facts, progress, what)
        async with opening as (reader, choice):
            progress.reader, progress.reader_reason = choice.kind.value, choice.reason
            if facts.changes is not None and window is None:
                progress.changed_bytes = facts.changes.size
            sample = await choose_sample(a, staged, reader.extents)
            digest, written = Digest(sample), Digest(() if known.is_all_sent else sample)
            rest = go_on(reader, start, sample, digest)
            planned, moved = size_of(rest.extents), progress.read_bytes
            progress.planned_bytes = moved + planned
            sr = a.pair.target.cache.srs.get(a.pair.sr.ref, a.pair.sr)
            with a.carrier.reservations.reserve(
                sr, a.pair.target.name, planned, a.job.target_reserve, what
            ):
                await fit(a.pair, staged, reader.virtual_size)
                moving = partial(a.progress.moved, progress.device)
                passing: Reader = Observed(rest, digest, moving)
                if window is None:  # else it has been drawn while it was compared
                    passing = known.drawn(passing, start, is_blank=isinstance(plan.how, Full))
                    passing = Observed(passing, written, lambda size: None)
                await a.carrier.transport.carry(Confirming(passing, staged.confirmations), target)
        if progress.read_bytes != progress.planned_bytes:
            raise StreamCut(what, progress.read_bytes, progress.planned_bytes)
        staged.confirmations.note(end)
        log.info(
            "disk.transferred",
            device=progress.device,
            mode=progress.mode,
            reader=progress.reader,
            writer=progress.writer,
            read_bytes=progress.read_bytes,
            sent_bytes=progress.sent_bytes,
            unchanged_bytes=known.unchanged_bytes,
        )
        whole = Sample(sample, digest)
        return Sent(
            target,
            whole,
            known.written(whole, written, start, plan, is_alone=window is not None),
        )


def _source_base(pair: Pair, plan: PlannedDisk) -> Vdi | None:
    """Return the disk on the source whose content the target has already."""
    return pair.source.disk(plan.how.base) if isinstance(plan.how, Delta) else None
