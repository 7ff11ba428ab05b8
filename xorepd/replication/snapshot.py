"""The snapshot of the source VM that a run reads from, and that the next run has as its base."""

from __future__ import annotations

from dataclasses import replace

from xorepd.errors import ObjectGone, Refused
from xorepd.replication.assignment import Assignment
from xorepd.replication.inventory import (
    Group,
    Marked,
    SourceSide,
    TargetSide,
    disks_of,
    temporary_name,
)
from xorepd.replication.markers import (
    BLOCKED_WHILE_READ,
    KEY,
    MIGRATION_TEXT,
    SNAPSHOTTING,
    Mark,
    Role,
    next_time,
    xo_source,
)
from xorepd.xapi.records import Vm
from xorepd.xapi.vms import rewrite_other_config, take_snapshot, update_keys


async def take_source_snapshot(a: Assignment, side: SourceSide, target: TargetSide) -> Group:
    """Snapshot the source VM and mark the snapshot and its disks as ours.

    The VM's record is marked last: a marked snapshot has all its disks marked.

    Raises:
        Refused: a disk was attached or detached in the very moment.
    """
    vm = side.vm
    await update_keys(a.source, "VM", vm.ref, "other_config", {SNAPSHOTTING: a.run_id})
    for _, vdi in side.disks:
        await update_keys(a.source, "VDI", vdi.ref, "other_config", {SNAPSHOTTING: a.run_id})
    ref = await take_snapshot(a.source, vm.ref, temporary_name(a.run_id))
    for _, vdi in side.disks:
        await a.source.call("VDI.remove_from_other_config", vdi.ref, SNAPSHOTTING)
    await a.source.call("VM.remove_from_other_config", vm.ref, SNAPSHOTTING)
    await a.source.refresh()
    snapshot = a.source.cache.vms.get(ref)
    if snapshot is None:
        raise ObjectGone(a.source.name, "snapshot", ref)
    uuid_of = {vdi.ref: vdi.uuid for _, vdi in side.disks}
    known = [group.mark.time for group in (*side.snapshots, *target.points)]
    blank = Mark(
        role=Role.SOURCE,
        stream=a.stream,
        run=a.run_id,
        job=a.job.name,
        time=next_time(snapshot.snapshot_time, known),
    )
    disks = []
    for vbd, vdi in disks_of(a.source.cache, snapshot):
        if vdi.snapshot_of not in uuid_of:
            raise Refused(
                f"pool {a.source.name}: the disks of VM {vm.name_label} changed while its snapshot "
                "was taken; the next run takes them as they are"
            )
        mark = replace(
            blank,
            self=vdi.uuid,
            snapshot=vdi.uuid,
            disk=uuid_of[vdi.snapshot_of],
            device=vbd.userdevice,
        )
        keys = xo_source(a.job.id, vm.uuid, snapshot.snapshot_time, content=vdi.uuid)
        other = {k: v for k, v in vdi.other_config.items() if k != SNAPSHOTTING}
        other |= keys | {KEY: mark.encode()}
        await a.source.call("VDI.set_other_config", vdi.ref, other)
        disks.append(Marked(vdi, mark))
    mark = replace(blank, self=snapshot.uuid, snapshot=snapshot.uuid)
    keys = xo_source(a.job.id, vm.uuid, snapshot.snapshot_time)
    other = {k: v for k, v in snapshot.other_config.items() if k != SNAPSHOTTING}
    await a.source.call("VM.set_other_config", snapshot.ref, other | keys | {KEY: mark.encode()})
    await a.source.call("VM.set_name_label", snapshot.ref, replica_name(a))
    return Group(snapshot, mark, tuple(disks))


async def confirm_snapshot(a: Assignment, group: Group) -> None:
    """Record on a source snapshot that the target holds its content: it is a base from now on."""
    exported = {"xo:backup:exported": "true"}
    for disk in group.disks:
        await rewrite_other_config(a.source, "VDI", disk.vdi.ref, exported)
    mark = replace(group.mark, confirmed=True)
    await rewrite_other_config(a.source, "VM", group.vm.ref, exported | {KEY: mark.encode()})


async def block_migration(a: Assignment, vm: Vm) -> None:
    """Keep the source VM where it is while its snapshot is read.

    Lifted by the sweep, which follows every run: blocks that somebody else set, with another text,
    are neither replaced nor lifted.
    """
    missing = [op for op in BLOCKED_WHILE_READ if op not in vm.blocked_operations]
    block = dict.fromkeys(missing, MIGRATION_TEXT + a.run_id)
    await update_keys(a.source, "VM", vm.ref, "blocked_operations", block)


def replica_name(a: Assignment) -> str:
    """Return the name that source snapshots and the replica have, in Xen Orchestra's manner."""
    return f"[XO Backup {a.job.name}] {a.vm.name_label}"
