"""One VM, one run: the steps from preflight to prune, in their order.

If a run ends between two of them, `sweep` brings both pools back to the last restore point, or
forward to the one that the run has already taken. It is a step at the beginning, for what an
earlier run left, and at the end, for what this run left.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from xorepd.config.choices import SnapshotKind
from xorepd.errors import XorepdError
from xorepd.replication.cleanup.prune import prune
from xorepd.replication.cleanup.sweep import read_sides, release_source, sweep
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.context.board import Progress
from xorepd.replication.deciding.consent import refuse_held
from xorepd.replication.deciding.evidence import Policy, read_evidence
from xorepd.replication.deciding.plan import plan_vm
from xorepd.replication.deciding.resume import may_be_resumed
from xorepd.replication.deciding.selection import without_excluded
from xorepd.replication.format.inventory import TargetSide
from xorepd.replication.format.ownership import Content
from xorepd.replication.run.planning import plan_snapshot, planned_disks
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
from xorepd.replication.transfer.disks import transfer_disks
from xorepd.replication.transfer.foreign_base import of_others
from xorepd.state.records import Outcome
from xorepd.tidying import to_the_end
from xorepd.xapi.pool import task_owner
from xorepd.xapi.records import OWNER_PREFIX

log = structlog.get_logger(__name__)

CLEANUP_S = 120.0
"""How long the sweep after a failed or cancelled run may take; the next run finishes it."""

RELEASE_S = 10.0
"""How long the release of the source VM may take after a failed sweep: it cannot wait."""


async def replicate(a: Assignment) -> Outcome:
    """Bring the replica of one VM to the current state of its source.

    Returns:
        FULL or DELTA: there is a new restore point.

    Raises:
        XorepdError: there is none, and the last one is as good as before.
    """
    pair = a.pair
    task_owner.set(f"{OWNER_PREFIX}{pair.stream} {pair.run_id} {pair.attempt}")
    try:
        return await _replicate(a)
    except BaseException as error:
        await _sweep_after_failure(
            a, resumable=isinstance(error, asyncio.CancelledError) or may_be_resumed(error)
        )
        raise


async def _replicate(a: Assignment) -> Outcome:
    pair, job, enter = a.pair, a.job, a.progress.enter

    enter("preflight")
    await wait_for_migration(pair)
    whole, target = await read_sides(pair)
    source = without_excluded(job, whole)
    check_source(a, source)
    await check_memory(a, source)
    check_current(pair, target)
    check_target(a, target, [vbd.userdevice for vbd, _ in source.disks])
    interfaces = plan_interfaces(a, source.vm)

    enter("sweep")
    whole, target, leftover = await sweep(pair, job.diverged, (whole, target), to_resume=job)
    source = without_excluded(job, whole)

    tell_of_changed(pair, a.progress, target)
    enter("plan")
    evidence = read_evidence(source, target, of_others(pair, source), leftover)
    foreseen = plan_vm(evidence, Policy.of(job))
    refuse_held(job, source.vm.name_label, foreseen.held)

    enter("snapshot")
    with pair.source_vm.reading(pair.stream.sr):
        if leftover is not None:
            snapshot = await former_snapshot(a, source, leftover.snapshot)
        else:
            snapshot = await shared_snapshot(a, source, target)
        a.progress.point_in_time = snapshot.mark.taken_at or snapshot.vm.snapshot_time

        enter("plan")
        plan = await plan_snapshot(a, evidence, snapshot)
        refuse_held(job, source.vm.name_label, plan.held)
        for disk in source.excluded:
            a.progress.exclude(disk)
        is_first = not target.points and not plan.disks  # a VM without disks
        is_full = is_first or plan.has_full

        enter("transfer")
        staged = await transfer_disks(a, snapshot, planned_disks(pair.source.cache, snapshot, plan))

    enter("commit")
    a.progress.restore_point = await commit(pair, a.progress, target, snapshot, staged, interfaces)

    if job.snapshot is SnapshotKind.MEMORY:
        enter("memory")
        await carry_memory(a, snapshot, interfaces)

    enter("prune")
    _, target, _ = await sweep(pair, job.diverged, to_resume=job)
    await prune(a, target)

    enter("done")
    return Outcome.FULL if is_full else Outcome.DELTA


def tell_of_changed(pair: Pair, progress: Progress, target: TargetSide) -> None:
    """Warn of restore points that are no longer valid: something wrote to their disks."""
    for point in target.points:
        changed = [disk.vdi for disk in point.disks if disk.content is Content.CHANGED]
        if changed:
            names = ", ".join(vdi.name_label or vdi.uuid for vdi in changed)
            progress.warn(
                f"pool {pair.target.name}: restore point {point.vm.name_label} of VM "
                f"{pair.vm.name_label} was written to since it was taken (disk {names}); it is no "
                "base, and it stays until you have settled it: see `xorepctl orphans`"
            )


async def _sweep_after_failure(a: Assignment, *, resumable: bool) -> None:
    """Clean up, even while the run is cancelled. The next run does first what fails here."""
    to_resume = a.job if resumable else None

    async def clean_up() -> None:
        try:
            async with asyncio.timeout(CLEANUP_S):
                _, _, leftover = await sweep(a.pair, a.job.diverged, to_resume=to_resume)
                a.progress.resumable = leftover is not None
        except (XorepdError, TimeoutError) as error:
            log.warning("sweep.postponed", reason=str(error) or "it took too long")
            await release_source(a.pair)

    with suppress(XorepdError, TimeoutError):
        await to_the_end(clean_up(), CLEANUP_S + RELEASE_S)
