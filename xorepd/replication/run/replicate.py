"""One VM, one run: the steps from preflight to prune, in their order.

Whatever happens between two of them, `sweep` brings both pools back to the last restore point, or
forward to the one that is already there. It runs first, for what an earlier run may have left, and
last, for what this one has.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import structlog

from xorepd.config.choices import Fulls, SnapshotKind
from xorepd.errors import XorepdError
from xorepd.ids import VdiUuid
from xorepd.replication.cleanup.prune import prune
from xorepd.replication.cleanup.sweep import read_sides, release_source, sweep
from xorepd.replication.context.assignment import Assignment
from xorepd.replication.deciding.consent import check_fulls
from xorepd.replication.deciding.plan import (
    Delta,
    Full,
    FullReason,
    Resync,
    SourceDisk,
    choose_base,
    limit_deltas,
)
from xorepd.replication.deciding.resume import Leftover, may_be_resumed
from xorepd.replication.format.inventory import SourceSide, TargetSide, VmSnapshot
from xorepd.replication.format.ownership import Content
from xorepd.replication.run.preflight import (
    check_current,
    check_source,
    check_target,
    plan_interfaces,
    wait_for_migration,
)
from xorepd.replication.source.snapshot import former_snapshot, shared_snapshot
from xorepd.replication.target.commit import commit
from xorepd.replication.target.memory import carry_memory, check_memory
from xorepd.replication.transfer.cbt_only import look_at_bare
from xorepd.replication.transfer.disks import transfer_disks
from xorepd.replication.transfer.foreign_base import adopt, of_others
from xorepd.replication.transfer.staging import DiskPlan
from xorepd.state.records import Outcome
from xorepd.tidying import to_the_end
from xorepd.xapi.pool import task_owner
from xorepd.xapi.records import OWNER_PREFIX

log = structlog.get_logger(__name__)

CLEANUP_S = 120.0
"""How long the sweep after a failed or cancelled run may take; the next run finishes it."""

RELEASE_S = 10.0
"""The same, for what must not wait for the next run when the sweep fails: the source VM's lock."""


async def replicate(a: Assignment) -> Outcome:
    """Bring the replica of one VM to the present state of its source.

    Returns:
        FULL or DELTA: there is a new restore point.

    Raises:
        XorepdError: there is none, and the last one is as good as before.
    """
    task_owner.set(f"{OWNER_PREFIX}{a.stream} {a.run_id} {a.attempt}")
    try:
        return await _replicate(a)
    except BaseException as error:
        await _sweep_after_failure(
            a, resumable=isinstance(error, asyncio.CancelledError) or may_be_resumed(error)
        )
        raise


async def _replicate(a: Assignment) -> Outcome:
    enter = a.progress.enter

    enter("preflight")
    await wait_for_migration(a)
    sides = source, target = await read_sides(a)
    check_source(a, source)
    await check_memory(a, source)
    check_current(a, target)
    check_target(a, target, [vbd.userdevice for vbd, _ in source.disks])
    interfaces = plan_interfaces(a, source.vm)

    enter("sweep")
    source, target, leftover = await sweep(a, sides)

    tell_of_changed(a, target)
    if leftover is None and a.job.full is not Fulls.ALLOW:
        enter("plan")
        check_fulls(a.job, source.vm.name_label, foreseen_fulls(a, source, target))

    enter("snapshot")
    with a.source_vm.reading(a.stream.sr):
        if leftover is not None:
            snapshot = await former_snapshot(a, source, leftover.snapshot)
        else:
            snapshot = await shared_snapshot(a, source, target)
        a.progress.point_in_time = snapshot.mark.taken_at or snapshot.vm.snapshot_time

        enter("plan")
        plans = await look_at_bare(a, plan_disks(a, source, target, snapshot, leftover))
        plans = await look_at_bare(a, await adopt(a, source, plans))
        plans = [limited(plan, a.job.full_every) for plan in plans]
        fulls = {p.source.mark.device: p.how.reason for p in plans if isinstance(p.how, Full)}
        begun = {p.source.mark.device for p in plans if p.begun is not None}
        new = {device: reason for device, reason in fulls.items() if device not in begun}
        begun_fulls = [fulls[device] for device in begun & fulls.keys()]
        check_fulls(a.job, source.vm.name_label, new, begun=begun_fulls)
        for disk in source.excluded:
            a.progress.exclude(disk)
        is_first = not target.points and not plans  # a VM without disks
        is_full = is_first or bool(fulls)

        enter("transfer")
        staged = await transfer_disks(a, snapshot, plans)

    enter("commit")
    a.progress.restore_point = await commit(a, target, snapshot, staged, interfaces)

    if a.job.snapshot is SnapshotKind.MEMORY:
        enter("memory")
        await carry_memory(a, snapshot, interfaces)

    enter("prune")
    _, target, _ = await sweep(a)
    await prune(a, target)

    enter("done")
    return Outcome.FULL if is_full else Outcome.DELTA


def tell_of_changed(a: Assignment, target: TargetSide) -> None:
    """Name the restore points that are none any more, because something wrote to their disks."""
    for point in target.points:
        changed = [disk.vdi for disk in point.disks if disk.content is Content.CHANGED]
        if changed:
            names = ", ".join(vdi.name_label or vdi.uuid for vdi in changed)
            a.progress.warn(
                f"pool {a.target.name}: restore point {point.vm.name_label} of VM "
                f"{a.vm.name_label} was written to since it was taken (disk {names}); it is no "
                "base, and it stays until you have settled it: see `xorepctl orphans`"
            )


def plan_disks(
    a: Assignment,
    source: SourceSide,
    target: TargetSide,
    snapshot: VmSnapshot,
    leftover: Leftover | None = None,
) -> list[DiskPlan]:
    """Return how each disk of the snapshot travels."""
    drives = {vdi.uuid: vbd for vbd, vdi in source.disks}
    plans = []
    left_behind = {disk.vdi.uuid for disk in source.excluded}
    for disk in snapshot.disks:
        if disk.mark.disk in left_behind:  # the host could not leave it out of the snapshot
            continue
        vbd = drives[VdiUuid(disk.mark.disk)]
        described = SourceDisk(
            uuid=disk.mark.disk,
            device=disk.mark.device,
            name=disk.vdi.name_label,
            virtual_size=disk.vdi.virtual_size,
        )
        begun = leftover.disks.get(disk.mark.snapshot) if leftover else None
        how = begun.how if begun else _choose(a, source, target, described)
        plans.append(DiskPlan(disk, how, vbd.bootable, vbd.mode, begun))
    return plans


def foreseen_fulls(a: Assignment, source: SourceSide, target: TargetSide) -> dict[str, FullReason]:
    """Return the disks that are going to be sent whole, by device, before there is a snapshot.

    Those that copies of others may spare are not among them: somebody has to look at these first.
    """
    spared = {copy.disk for copy in of_others(a, source) if copy.is_proven or a.job.resync}
    fulls = {}
    for vbd, vdi in source.disks:
        device = vbd.userdevice
        disk = SourceDisk(vdi.uuid, device, vdi.name_label, vdi.virtual_size)
        how = _choose(a, source, target, disk)
        if isinstance(how, Full) and vdi.uuid in spared:
            continue
        how = limit_deltas(how, a.job.full_every)
        if isinstance(how, Full):
            fulls[device] = how.reason
    return fulls


def _choose(
    a: Assignment, source: SourceSide, target: TargetSide, disk: SourceDisk
) -> Delta | Resync | Full:
    others = {vdi.uuid for _, vdi in source.disks if vdi.uuid != disk.uuid}
    points, bases = target.plan_points(), source.bases()
    return choose_base(disk, points, bases, others=others, resync=a.job.resync)


def limited(plan: DiskPlan, full_every: int | None) -> DiskPlan:
    """Return the plan of a disk that is due to be sent whole; what was begun goes on as it is."""
    return plan if plan.begun else replace(plan, how=limit_deltas(plan.how, full_every))


async def _sweep_after_failure(a: Assignment, *, resumable: bool) -> None:
    """Clean up even while being cancelled; what fails now is the next run's first step."""

    async def clean_up() -> None:
        try:
            async with asyncio.timeout(CLEANUP_S):
                _, _, leftover = await sweep(a, resumable=resumable)
                a.progress.resumable = leftover is not None
        except (XorepdError, TimeoutError) as error:
            log.warning("sweep.postponed", reason=str(error) or "it took too long")
            await release_source(a)

    with suppress(XorepdError, TimeoutError):
        await to_the_end(clean_up(), CLEANUP_S + RELEASE_S)
