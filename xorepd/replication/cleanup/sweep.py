"""Remove what an earlier run left on both pools, at the start of a run and after a failed one.

The steps are the same for a crash, a failure and a cancellation. From any state they bring both
pools back to the last restore point, or forward to the one that was already taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import structlog

from xorepd.config.models import Diverged
from xorepd.errors import NotAllowed, ObjectBusy, Refused
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Assignment
from xorepd.replication.context.shared_source import owner_of_shared
from xorepd.replication.deciding.divergence import refuse_divergence
from xorepd.replication.deciding.recovery import (
    CancelCommit,
    DestroyReplica,
    FinishCommit,
    UndoCommit,
    decide_commit,
    decide_source,
)
from xorepd.replication.deciding.resume import Leftover, find_leftover
from xorepd.replication.deciding.selection import without_excluded
from xorepd.replication.format.inventory import (
    SourceSide,
    TargetSide,
    is_attached,
    read_source,
    read_target,
)
from xorepd.replication.format.marks import (
    BLOCKED_WHILE_READ,
    CONFIRMED,
    MIGRATION_TEXT,
    SNAPSHOTTING,
    Mark,
    Role,
)
from xorepd.replication.format.ownership import (
    Content,
    content_of,
    is_as_made,
    own_mark,
    used_by_vms,
)
from xorepd.replication.removal.destroying import (
    destroy_record,
    destroy_unsigned,
    release,
    sign_disk,
    try_destroy_disk,
)
from xorepd.replication.source.quiesce import RESTART, start_if_left_down
from xorepd.replication.source.snapshot import hold_snapshot
from xorepd.replication.target.commit import cancel_commit, finish_commit, undo_commit
from xorepd.replication.target.suspended import sweep_memories
from xorepd.replication.transfer.foreign_base import of_others
from xorepd.xapi.contents import put_content
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import OWNER_PREFIX, Task, Vdi, parse_time
from xorepd.xapi.vdis import detached, unplug_left
from xorepd.xapi.vms import update_keys

log = structlog.get_logger(__name__)


async def read_sides(a: Assignment) -> tuple[SourceSide, TargetSide]:
    """Return both inventories as they are now."""
    source = await read_source_side(a)
    await a.target.refresh()
    return source, read_target(a.target.cache, a.stream, a.sr.ref)


async def read_source_side(a: Assignment) -> SourceSide:
    """Return what the source holds now."""
    await a.source.refresh()
    vm = a.source.cache.vms.get(a.vm.ref, a.vm)
    return without_excluded(a.job, read_source(a.source.cache, a.stream, vm))


async def find_resumable(a: Assignment, source: SourceSide, target: TargetSide) -> Leftover | None:
    """Return what an interrupted run left and this run, or the next one, can continue."""
    if not a.job.resume or not target.staging:
        return None
    master = a.source.cache.pool.master
    now = parse_time(await a.source.call("host.get_servertime", master))
    others = set()
    for copy in of_others(a, source):
        others.update({copy.onto.uuid, copy.base.uuid} if copy.base else {copy.onto.uuid})
    return find_leftover(source, target, a.stream.sr, now=now, within=a.job.resume, others=others)


async def sweep(
    a: Assignment, sides: tuple[SourceSide, TargetSide] | None = None, *, resumable: bool = True
) -> tuple[SourceSide, TargetSide, Leftover | None]:
    """Clean up both pools. Return what they hold then, and what can be continued.

    An object that cannot be removed now is logged. It is marked, and the next sweep tries again.

    Args:
        sides: what both pools hold, if that has just been read.
        resumable: False removes what could be continued, too.

    Raises:
        XapiError: a pool does not answer, or a commit could neither be finished nor undone.
    """
    source, target = sides or await read_sides(a)
    owners = [OWNER_PREFIX + str(a.stream)]
    if not a.source_vm.is_lent(str(a.stream)):
        owners.append(owner_of_shared(a.stream))
    for pool, owner in product((a.source, a.target), owners):
        tasks = await pool.end_tasks_of(owner)
        if tasks.has_ended or tasks.evidence:
            await pool.refresh()
            await claim(pool, a.blank(Role.DISK), tasks.evidence)
            source, target = await read_sides(a)
    decided = decide_commit(target)
    if decided is not None and not isinstance(decided, CancelCommit):
        check_replica(a, target)
    match decided:
        case FinishCommit(point):
            log.info("commit.finishing", point=point.vm.uuid)
            await finish_commit(a, target, point)
            source, target = await read_sides(a)
        case UndoCommit(commit):
            log.info("commit.undoing", commit_run=commit.run)
            await undo_commit(a, target, commit)
            source, target = await read_sides(a)
        case CancelCommit():
            log.info("commit.cancelling")
            await cancel_commit(a, target)
            source, target = await read_sides(a)
        case DestroyReplica():
            assert target.replica is not None
            log.info("replica.destroying", replica=target.replica.uuid)
            await destroy_record(a.target, target.replica)
            source, target = await read_sides(a)
        case None:
            pass
    if any([await _detach_left(a.target, vdi) for vdi in target.written]):
        source, target = await read_sides(a)
    leftover = await find_resumable(a, source, target) if resumable else None
    dirty = await _sweep_target(a, target, leftover)
    dirty |= await sweep_memories(a, target)
    async with a.source_vm.lock:
        source = await read_source_side(a)
        dirty |= await _sweep_source(a, source, target, leftover)
    if dirty:
        source, target = await read_sides(a)
    return source, target, leftover


async def _sweep_target(a: Assignment, target: TargetSide, leftover: Leftover | None) -> bool:
    for vm in target.shells:
        await destroy_record(a.target, vm)
    spared = leftover.spared if leftover else ()
    unattached = [vdi for vdi in target.unattached if vdi.uuid not in spared]
    for vdi in unattached:
        await try_destroy_disk(a.target, vdi)
    return bool(target.shells or unattached)


def check_replica(a: Assignment, target: TargetSide) -> None:
    """Refuse to undo or to finish a commit on a replica that is used, or has been.

    Raises:
        Refused: with the replica and its disks.
    """
    replica = target.replica
    if replica is not None and replica.power_state != "Halted":
        raise Refused(
            f"pool {a.target.name}: the last run was stopped in its commit, and replica "
            f"{replica.name_label} is {replica.power_state.lower()} by now; shut it down, the next "
            "run looks at it then"
        )
    if a.job.diverged is Diverged.REFUSE:
        refuse_divergence(a.target.name, a.job.name, target)


async def claim(pool: Pool, mark: Mark, tasks: Iterable[Task]) -> None:
    """Write on disks what only the tasks of our own calls say about them, and remove the tasks.

    A disk that a call has created is signed, unless it was written to since: then it stays, as an
    unresolved object. A disk that a request was writing to gets its content id back, and counts as
    not written at all, because it is unknown where the request ended.

    Args:
        mark: what the marks of this run say.
    """
    for task in tasks:
        if task.made is not None:
            made = pool.cache.vdis.get(task.made)
            if made is not None and own_mark(made) is None:
                if is_attached(pool.cache, made):
                    continue  # the next sweep looks again
                if is_as_made(pool.cache, made):
                    log.info("disk.recovered", pool=pool.name, vdi=made.uuid, task=task.name_label)
                    await sign_disk(pool, made, mark)
                else:
                    log.warning("disk.not_recovered", pool=pool.name, vdi=made.uuid)
        elif not await _reclaim(pool, pool.cache.by_uuid(Vdi, task.wrote or "")):
            continue  # the next sweep looks again
        await pool.discard_told(task)


async def _detach_left(pool: Pool, vdi: Vdi) -> bool:
    """Detach a disk of ours that a toolstack left attached when it died.

    It is unknown where the stream ended, so nothing of it counts as written.

    Returns:
        Whether the disk was attached.
    """
    if used_by_vms(pool.cache, vdi) or not await unplug_left(pool, vdi):
        return False
    await pool.refresh()
    await _reclaim(pool, pool.cache.vdis.get(vdi.ref))
    return True


async def _reclaim(pool: Pool, vdi: Vdi | None) -> bool:
    """Restore the content id of a disk, which a request of ours removed.

    Returns:
        False: the request still has the disk.
    """
    if vdi is None:
        return True
    await detached(pool, vdi)
    now = pool.cache.vdis.get(vdi.ref)
    if now is None or (mark := own_mark(now)) is None or used_by_vms(pool.cache, now):
        return True
    if content_of(now, mark) is not Content.CHANGED:
        return True
    if is_attached(pool.cache, now):
        return False
    await update_keys(pool, "VDI", now.ref, "other_config", {}, [CONFIRMED])
    try:
        await put_content(pool, now.ref, now.uuid, mark.content)
    except ObjectBusy:
        return False
    return True


async def _sweep_source(
    a: Assignment, source: SourceSide, target: TargetSide, leftover: Leftover | None
) -> bool:
    """Clean up what belongs to this target; the caller holds the lock of the source VM."""
    if RESTART in source.vm.other_config:
        await start_if_left_down(a, source.vm)
    spared = leftover.snapshot.vm.uuid if leftover else ""
    cleaning = decide_source(source, target, a.stream.sr, spared=spared)
    for group in cleaning.destroy:
        await destroy_unsigned(a.source, group)
    for group in cleaning.hold:
        await hold_snapshot(a, group)
    for what in cleaning.release:
        await release(a.source, what, a.stream.sr)
    for vdi in source.drives:
        if SNAPSHOTTING in vdi.other_config:
            await a.source.call("VDI.remove_from_other_config", vdi.ref, SNAPSHOTTING)
    unblocked = await _let_migrate(a, source.vm.blocked_operations)
    return cleaning.is_needed or unblocked


async def release_source(a: Assignment) -> None:
    """Allow the source VM to migrate again, even while the target pool does not answer."""
    await _let_migrate(a, await a.source.call("VM.get_blocked_operations", a.vm.ref))


async def _let_migrate(a: Assignment, blocked: dict[str, str]) -> bool:
    """Lift our migration blocks, unless this VM is still being read for another target."""
    return not a.source_vm.is_read and await unblock_migration(a.source, a.vm.ref, blocked)


async def unblock_migration(pool: Pool, vm: Ref, blocked: dict[str, str]) -> bool:
    """Lift the migration blocks of ours from a source VM; those of others stay."""
    ours = [op for op in BLOCKED_WHILE_READ if blocked.get(op, "").startswith(MIGRATION_TEXT)]
    if not ours:
        return False
    await update_keys(pool, "VM", vm, "blocked_operations", {}, ours)
    try:  # older hosts do not work out by themselves what is allowed again
        await pool.call("VM.update_allowed_operations", vm)
    except NotAllowed as refused:  # needs pool-admin there
        log.debug("operations.not_updated", reason=str(refused))
    return True
