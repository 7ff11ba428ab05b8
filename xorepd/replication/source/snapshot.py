"""The snapshot of the source VM that a run reads from, and that the next run has as its base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain

import structlog

from xorepd.config.choices import SnapshotKind
from xorepd.errors import Refused, XapiFailure
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.deciding.vm_record import left_behind
from xorepd.replication.format.current import KEY as CURRENT
from xorepd.replication.format.current import own_current
from xorepd.replication.format.inventory import (
    Marked,
    SourceSide,
    TargetSide,
    VmSnapshot,
    disks_of,
    read_source,
)
from xorepd.replication.format.marks import (
    BLOCKED_WHILE_READ,
    FOR,
    KEY,
    MIGRATION_TEXT,
    RESTART,
    SNAPSHOTTING,
    Role,
    Use,
    next_order,
    snapshotting_text,
    uses_of,
    xo_source,
)
from xorepd.replication.format.ownership import temporary_name
from xorepd.replication.source.quiesce import at_rest
from xorepd.replication.source.tracking import enable_tracking
from xorepd.xapi.records import CONTENT_ID, Vm
from xorepd.xapi.vms import rewrite_other_config, take_checkpoint, take_snapshot, update_keys

log = structlog.get_logger(__name__)

HAS_MEMORY = ("Running", "Suspended")
"""Power states in which XAPI snapshots a VM with its memory."""


async def shared_snapshot(a: Assignment, side: SourceSide, target: TargetSide) -> VmSnapshot:
    """Return the snapshot that this run reads: one for all targets.

    A target that comes late uses the snapshot of the others, if it still exists and is newer than
    what the target has.

    Raises:
        Refused: a disk was attached or detached at the same moment.
    """
    pair = a.pair
    shared, sr = a.shared, pair.stream.sr
    shared.awaiting[sr] = [point.mark.order for point in target.points]
    await shared.before_snapshot.arrive(a.to.place)
    async with pair.source_vm.lock:
        await block_migration(pair, side.vm)
        snapshot = shared.snapshot
        if snapshot is None or not await _join(pair, snapshot, shared.awaiting[sr]):
            await _say_active(pair, side.vm)
            await enable_tracking(a, side)
            snapshot = shared.snapshot = await take_source_snapshot(a, side, shared.awaiting)
            raw = await pair.source.call("VM.get_record", side.vm.ref)
            if missing := left_behind(raw, with_memory=snapshot.image is not None):
                log.warning("vm.not_copied", vm=side.vm.uuid, what=missing)
        return snapshot


async def _say_active(pair: Pair, vm: Vm) -> None:
    """Record on a source VM that it is active, if it has no such record yet."""
    if own_current(vm) is not None:
        return
    said = replace(pair.current, since=pair.clock().isoformat(timespec="seconds"), by=pair.run_id)
    await update_keys(pair.source, "VM", vm.ref, "other_config", {CURRENT: said.encode()})


async def former_snapshot(a: Assignment, side: SourceSide, snapshot: VmSnapshot) -> VmSnapshot:
    """Return the snapshot from which an interrupted run is continued."""
    a.shared.before_snapshot.leave(a.to.place)
    async with a.pair.source_vm.lock:
        await block_migration(a.pair, side.vm)
    log.info("snapshot.reused", snapshot=snapshot.vm.uuid, of=snapshot.mark.run)
    return snapshot


async def _join(pair: Pair, snapshot: VmSnapshot, points: Iterable[int]) -> bool:
    """Add this target to a snapshot that was taken for others; return whether it is usable."""
    await pair.source.refresh()
    vms, vdis = pair.source.cache.vms, pair.source.cache.vdis
    stands = snapshot.vm.ref in vms and all(disk.vdi.ref in vdis for disk in snapshot.disks)
    if not stands or any(order >= snapshot.mark.order for order in points):
        return False
    if pair.stream.sr not in uses_of(vms[snapshot.vm.ref].other_config, snapshot.mark):
        wanted = {FOR + pair.stream.sr: Use.WANTED.value}
        for disk in snapshot.disks:
            await update_keys(pair.source, "VDI", disk.vdi.ref, "other_config", wanted)
        await update_keys(pair.source, "VM", snapshot.vm.ref, "other_config", wanted)
    return True


async def take_source_snapshot(
    a: Assignment, side: SourceSide, awaiting: Mapping[str, Iterable[int]]
) -> VmSnapshot:
    """Snapshot the source VM and mark the snapshot and its disks as ours.

    The VM's record is marked last: a marked snapshot has all its disks marked.

    Args:
        awaiting: UUID of each target SR that it is for → orders of the restore points there.

    Raises:
        Refused: a disk was attached or detached at the same moment.
    """
    pair = a.pair
    vm = side.vm
    without = [disk.vdi.ref for disk in side.excluded]
    async with at_rest(a, vm):
        await _note_contents(a, side)
        began = pair.clock()
        ref = await _take(a, vm, without)
        ended = pair.clock()
    for vdi in side.drives:
        await pair.source.call("VDI.remove_from_other_config", vdi.ref, SNAPSHOTTING)
    await pair.source.refresh()
    snapshot = pair.source.cache.vms.get(ref)
    if snapshot is None:
        raise pair.source.gone("snapshot", ref)
    uuid_of = {vdi.ref: vdi.uuid for vdi in side.drives}
    present = read_source(pair.source.cache, pair.stream, vm)
    known = [group.mark.order for group in present.snapshots]
    known += [disk.mark.order for disk in present.orphans]
    blank = replace(
        pair.blank(Role.SOURCE),
        stream=pair.stream.of_source,
        order=next_order(chain(known, *awaiting.values())),
        moment=snapshot.snapshot_time.isoformat(),
        offset=pair.source.clock.compare(snapshot.snapshot_time, began, ended),
    )
    wanted = {FOR + sr: Use.WANTED.value for sr in awaiting}
    disks = []
    for vbd, vdi in disks_of(pair.source.cache, snapshot):
        if vdi.snapshot_of not in uuid_of:
            raise Refused(
                f"pool {pair.source.name}: the disks of VM {vm.name_label} changed while its "
                "snapshot was taken; the next run takes them as they are"
            )
        mark = replace(
            blank.on(vdi.uuid, vdi.ref),
            snapshot=vdi.uuid,
            disk=uuid_of[vdi.snapshot_of],
            device=vbd.userdevice,
            content=vdi.content_id or f"xorepd-{vdi.uuid}",  # that of a disk in use has none
        )
        keys = xo_source(a.job.id, vm.uuid, snapshot.snapshot_time, content=vdi.uuid)
        other = {k: v for k, v in vdi.other_config.items() if k != SNAPSHOTTING}
        other |= keys | wanted | {KEY: mark.encode(), CONTENT_ID: mark.content}
        await pair.source.call("VDI.set_other_config", vdi.ref, other)
        disks.append(Marked(vdi, mark))
    image = pair.source.cache.vdis.get(snapshot.suspend_vdi)
    if image is not None:  # of no drive of the snapshot: without its mark it would outlive that
        mark = replace(blank.on(image.uuid, image.ref), snapshot=image.uuid)
        await rewrite_other_config(pair.source, "VDI", image.ref, {KEY: mark.encode()})
    mark = replace(
        blank.on(snapshot.uuid, snapshot.ref),
        snapshot=snapshot.uuid,
        disks={disk.mark.device: str(disk.vdi.uuid) for disk in disks},
    )
    keys = xo_source(a.job.id, vm.uuid, snapshot.snapshot_time)
    other = {k: v for k, v in snapshot.other_config.items() if k not in (RESTART, CURRENT)}
    other |= keys | wanted | {KEY: mark.encode()}
    await pair.source.call("VM.set_other_config", snapshot.ref, other)
    await pair.source.call("VM.set_name_label", snapshot.ref, replica_name(pair))
    return VmSnapshot(snapshot, mark, tuple(disks), image)


async def _note_contents(a: Assignment, side: SourceSide) -> None:
    """Record on the source's disks what their snapshots will hold, in case the daemon dies."""
    pair = a.pair
    is_suspended_first = a.job.snapshot is SnapshotKind.MEMORY and side.vm.power_state == "Running"
    for vdi in side.drives:
        now = await pair.source.call("VDI.get_other_config", vdi.ref)
        content = None if is_suspended_first else now.get(CONTENT_ID, "")
        note = {SNAPSHOTTING: snapshotting_text(pair.run_id, content)}
        await update_keys(pair.source, "VDI", vdi.ref, "other_config", note)


async def _take(a: Assignment, vm: Vm, without: list[Ref]) -> Ref:
    """Snapshot a VM; with its memory where the job wants that and the VM has any.

    Raises:
        Refused: the pool cannot snapshot its memory.
    """
    pair = a.pair
    name = temporary_name(pair.run_id)
    if a.job.snapshot is SnapshotKind.MEMORY and vm.power_state in HAS_MEMORY:
        try:
            return await take_checkpoint(pair.source, vm.ref, name)
        except XapiFailure as failure:
            if failure.code != "VM_BAD_POWER_STATE":  # it was shut down this very moment
                raise Refused(
                    f"VM {vm.name_label} could not be snapshotted with its memory; {failure}"
                ) from failure
    return await take_snapshot(pair.source, vm.ref, name, without=without)


async def hold_snapshot(pair: Pair, group: VmSnapshot) -> None:
    """Record on a source snapshot that the target holds its content: it is a base from now on.

    Key by key, because runs for other targets write on it as well.
    """
    keys = {"xo:backup:exported": "true", FOR + pair.stream.sr: Use.HELD.value}
    for disk in group.disks:  # of their keys only counts that they are there
        missing = {key: keys[key] for key in keys if key not in disk.vdi.other_config}
        await update_keys(pair.source, "VDI", disk.vdi.ref, "other_config", missing)
    await update_keys(pair.source, "VM", group.vm.ref, "other_config", keys)


async def block_migration(pair: Pair, vm: Vm) -> None:
    """Keep the source VM where it is while its snapshot is read.

    The sweep, which follows every run, lifts the block. Blocks of others, which have another text,
    are neither replaced nor lifted.
    """
    blocked = await pair.source.call("VM.get_blocked_operations", vm.ref)
    missing = [op for op in BLOCKED_WHILE_READ if op not in blocked]
    block = dict.fromkeys(missing, MIGRATION_TEXT + pair.run_id)
    await update_keys(pair.source, "VM", vm.ref, "blocked_operations", block)


def replica_name(pair: Pair) -> str:
    """Return the name of source snapshots and of the replica, in the form of Xen Orchestra."""
    return f"[XO Backup {pair.job}] {pair.vm.name_label}"
