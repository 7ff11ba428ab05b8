"""The disks of a source snapshot into staging disks on the target, and a check of what arrived.

A staging disk belongs to no VM: nothing could start on it while it is being written, and nothing
of it shows before the commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice

import structlog

from xorepd.config.models import Verify
from xorepd.data.blocks import size_of
from xorepd.data.digest import Digest, Observed, head_of, read_back, sample_of
from xorepd.data.export import open_export, open_raw
from xorepd.data.reader import Reader
from xorepd.errors import DataError, DigestMismatch, ObjectGone, StreamCut
from xorepd.extents import Extent
from xorepd.ids import Ref, VdiUuid
from xorepd.replication.assignment import Assignment
from xorepd.replication.board import DiskProgress
from xorepd.replication.inventory import Group, Marked
from xorepd.replication.markers import CLONING, KEY, Mark, Role, xo_point
from xorepd.replication.plan import Delta, Full
from xorepd.replication.reading import announce_reads, known_facts, open_shared
from xorepd.replication.roads import find_nbd, is_vhd, open_nbd
from xorepd.replication.staging import StagingTarget
from xorepd.transports.base import Target, Verifier
from xorepd.units import MiB
from xorepd.xapi.records import Vdi
from xorepd.xapi.vdis import clone_disk, create_disk, grow_disk

log = structlog.get_logger(__name__)

SAMPLE = 64 * MiB
"""How much of each disk's transferred data is read back when a job verifies a sample."""

UNCHANGED = "unchanged"
"""In place of a road: the source tells that no block has changed, so nothing has to be opened."""

EXTENTS_THERE = 65_536
"""A disk that is in more pieces than this is read back from here: they all have to be named."""

DISKS_AT_ONCE = 4
"""Disks of one VM in transfer at the same time. More share the same two hosts."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """How one disk of the source snapshot travels."""

    source: Marked
    how: Delta | Full
    bootable: bool
    mode: str


@dataclass(frozen=True, slots=True)
class Staged:
    """A staging disk that holds the content of its source, complete."""

    plan: DiskPlan
    ref: Ref
    uuid: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class _Sent:
    target: Target | None
    """Where it was written; None where nothing had to be."""
    sample: Iterable[Extent]
    """What of it is read back."""
    digest: Digest
    """Of the sample, as it was sent."""


async def transfer_disks(a: Assignment, snapshot: Group, plans: list[DiskPlan]) -> list[Staged]:
    """Fill a staging disk for each planned one, several at a time, and check each.

    Raises:
        XorepdError: what the first disk failed with; the others were stopped then.
    """
    for plan in plans:
        vdi, device = plan.source.vdi, plan.source.mark.device
        a.progress.disks[device] = DiskProgress(
            device=device,
            name=vdi.name_label,
            virtual_size=vdi.virtual_size,
            mode="delta" if isinstance(plan.how, Delta) else "full",
            reason="" if isinstance(plan.how, Delta) else plan.how.reason.value,
        )
    await announce_reads(a, [(plan.source.vdi, _source_base(a, plan)) for plan in plans])
    turns = asyncio.Semaphore(DISKS_AT_ONCE)

    async def one(plan: DiskPlan) -> Staged:
        async with turns:
            staged = await _stage(a, snapshot, plan)
            sent = await _send(a, plan, staged)
            await _check(a, plan, staged, sent)
            return staged

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(plan), name=plan.source.vdi.uuid) for plan in plans]
    except BaseExceptionGroup as failures:
        raise _first(failures) from failures
    return [task.result() for task in tasks]


def _first(failure: BaseException) -> BaseException:
    """Return what failed first: the rest of a group are those that were stopped for it."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


async def _stage(a: Assignment, snapshot: Group, plan: DiskPlan) -> Staged:
    """Make the disk to write into: empty for a full, a clone of the base for a delta."""
    content = plan.source.vdi
    blank = replace(
        plan.source.mark,
        role=Role.DISK,
        stream=a.stream,
        run=a.run_id,
        self="",
        deltas=plan.how.number if isinstance(plan.how, Delta) else 0,
        confirmed=False,
    )
    keys = xo_point(
        a.job.id,
        a.vm.uuid,
        snapshot.vm.snapshot_time,
        a.sr.uuid,
        copy_of=content.uuid,
        content=content.uuid,
    )
    name = f"[Importing] {content.name_label}"
    match plan.how:
        case Full():
            other = keys | {KEY: blank.encode()}
            ref = await create_disk(
                a.target, a.sr.ref, content.virtual_size, name, content.name_description, other
            )
        case Delta(onto=onto):
            ref = await _clone_base(a, onto)
    uuid: str = await a.target.call("VDI.get_uuid", ref)
    mark = blank.on(uuid)
    inherited = await a.target.call("VDI.get_other_config", ref)
    other = {k: v for k, v in inherited.items() if k != CLONING} | keys | {KEY: mark.encode()}
    await a.target.call("VDI.set_other_config", ref, other)
    if isinstance(plan.how, Delta):
        await a.target.call("VDI.remove_from_other_config", _base_disk(a, plan.how).ref, CLONING)
        await a.target.call("VDI.set_name_label", ref, name)
    return Staged(plan, ref, uuid, mark)


async def _clone_base(a: Assignment, onto: str) -> Ref:
    base = a.target.cache.by_uuid(Vdi, onto)
    if base is None:
        raise ObjectGone(a.target.name, "VDI", onto)
    await a.target.call("VDI.remove_from_other_config", base.ref, CLONING)
    await a.target.call("VDI.add_to_other_config", base.ref, CLONING, str(a.stream))
    return await clone_disk(a.target, base)


def _base_disk(a: Assignment, how: Delta) -> Vdi:
    base = a.target.cache.by_uuid(Vdi, how.onto)
    if base is None:
        raise ObjectGone(a.target.name, "VDI", how.onto)
    return base


async def _send(a: Assignment, plan: DiskPlan, staged: Staged) -> _Sent:
    """Carry the disk's data from its snapshot to its staging disk."""
    content, device = plan.source.vdi, plan.source.mark.device
    what = f"disk {content.name_label} ({device}) of VM {a.vm.name_label}"
    base = _source_base(a, plan)
    facts = await known_facts(a, content, base)
    progress = a.progress.disks[device]
    if facts.is_unchanged:
        progress.reader, progress.changed_bytes = UNCHANGED, 0
        await _fit(a, staged, content.virtual_size)
        return _Sent(None, (), Digest(()))
    onto = plan.how.onto if isinstance(plan.how, Delta) else ""
    target = StagingTarget(a, progress, staged.uuid, onto, what)
    async with open_shared(a, content, base, facts, progress, what) as (reader, choice):
        progress.reader, progress.reader_reason = choice.road.value, choice.reason
        progress.planned_bytes = size_of(reader.extents)
        if facts.changes is not None:
            progress.changed_bytes = facts.changes.size
        sample = await _choose_sample(a, staged, reader.extents)
        digest = Digest(sample)
        sr = a.target.cache.srs.get(a.sr.ref, a.sr)
        with a.room.promise(sr, a.target.name, progress.planned_bytes, a.job.target_reserve, what):
            await _fit(a, staged, reader.virtual_size)
            observed = Observed(reader, digest, lambda size: a.progress.moved(device, size))
            await a.transport.carry(observed, target)
    if progress.moved_bytes != progress.planned_bytes:
        raise StreamCut(what, progress.moved_bytes, progress.planned_bytes)
    log.info(
        "disk.transferred",
        device=device,
        mode=progress.mode,
        reader=progress.reader,
        writer=progress.writer,
        read_bytes=progress.moved_bytes,
        sent_bytes=progress.sent_bytes,
    )
    return _Sent(target, sample, digest)


def _source_base(a: Assignment, plan: DiskPlan) -> Vdi | None:
    """Return the disk on the source whose content the target has already."""
    if not isinstance(plan.how, Delta):
        return None
    base = a.source.cache.by_uuid(Vdi, plan.how.base)
    if base is None:
        raise ObjectGone(a.source.name, "VDI", plan.how.base)
    return base


async def _fit(a: Assignment, staged: Staged, virtual_size: int) -> None:
    """Grow the staging disk to the stream's size: the source disk may have grown since the base."""
    size = int(await a.target.call("VDI.get_virtual_size", staged.ref))
    if size < virtual_size:
        await grow_disk(a.target, staged.ref, a.sr.ref, virtual_size)


async def _choose_sample(
    a: Assignment, staged: Staged, extents: Iterable[Extent]
) -> Iterable[Extent]:
    """Return what of these extents will be read back.

    A sample is spread over the disk where the target serves it over NBD, or the transport reads it
    there. An export can only be read from the front, so the sample is the head there.
    """
    match a.job.verify:
        case Verify.OFF:
            return ()
        case Verify.FULL:
            return extents
        case Verify.SAMPLE:
            exports, _ = await find_nbd(a.target, staged.ref)
            if exports or isinstance(a.transport, Verifier):
                return list(sample_of(extents, SAMPLE, seed=staged.uuid))
            return list(head_of(extents, SAMPLE))


async def _check(a: Assignment, plan: DiskPlan, staged: Staged, sent: _Sent) -> None:
    """Read back what arrived, as much as the job asks for, and compare.

    Raises:
        DigestMismatch: it is not what was sent.
    """
    if not any(True for _ in sent.sample):
        return
    what = f"disk {plan.source.vdi.name_label} of VM {a.vm.name_label}"
    found = await _read_there(a, sent)
    if found is None:
        async with _open_staged(a, plan, staged, sent.sample, f"{what}, check") as reader:
            found = (await read_back(reader, sent.sample)).hexdigest()
    expected = sent.digest.hexdigest()
    if found != expected:
        raise DigestMismatch(what, expected, found)


async def _read_there(a: Assignment, sent: _Sent) -> str | None:
    """Return what the transport reads back at the target, or None where it cannot."""
    if sent.target is None or not isinstance(a.transport, Verifier):
        return None
    extents = list(islice(sent.sample, EXTENTS_THERE + 1))
    if len(extents) > EXTENTS_THERE:
        return None
    try:
        return await a.transport.digest(sent.target, extents)
    except DataError as error:
        log.warning("road.closed", what=sent.target.disk.what, road="there", reason=str(error))
        return None


@asynccontextmanager
async def _open_staged(
    a: Assignment, plan: DiskPlan, staged: Staged, sample: Iterable[Extent], what: str
) -> AsyncIterator[Reader]:
    """Open a staging disk for reading back: over NBD if possible, else as it is exported."""
    await a.target.refresh()
    disk = a.target.cache.vdis.get(staged.ref)
    if disk is None:
        raise ObjectGone(a.target.name, "VDI", staged.uuid)
    async with AsyncExitStack() as stack:
        reader: Reader
        exports, _ = await find_nbd(a.target, staged.ref)
        if exports:
            try:
                reader = await stack.enter_async_context(
                    open_nbd(a.target, disk, a.nbd, sample, f"{what}, NBD")
                )
            except DataError as error:
                log.warning("road.closed", what=what, road="nbd", reason=str(error))
            else:
                yield reader
                return
        door = a.target_door()
        if is_vhd(disk, a.target.cache.srs.get(a.sr.ref, a.sr)):
            onto = VdiUuid(plan.how.onto) if isinstance(plan.how, Delta) else None
            export = open_export(door, disk.uuid, base=onto, what=what)
            reader = await stack.enter_async_context(export)
        else:
            raw = open_raw(door, disk.uuid, disk.virtual_size, what=what)
            reader = await stack.enter_async_context(raw)
        yield reader
