"""Remove what an earlier run left on both pools, at the start of a run and after a failed one.

The steps are the same for a crash, a failure and a cancellation. From any state they bring both
pools back to the last restore point, or forward to the one that was already taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import structlog

from xorepd.config.models import Diverged, JobSettings
from xorepd.errors import NotAllowed, ObjectBusy, Refused
from xorepd.ids import NULL_REF, Ref
from xorepd.replication.context.assignment import Pair
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
    is_taken,
    read_source,
    read_target,
)
from xorepd.replication.format.marks import (
    BLOCKED_WHILE_READ,
    CONFIRMED,
    MIGRATION_TEXT,
    RESTART,
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
from xorepd.replication.source.quiesce import start_if_left_down
from xorepd.replication.source.snapshot import hold_snapshot
from xorepd.replication.target.commit import cancel_commit, finish_commit, undo_commit
from xorepd.replication.target.suspended import sweep_memories
from xorepd.replication.transfer.foreign_base import of_others
from xorepd.xapi.contents import put_content
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import KEPT, OWNER_PREFIX, Task, Vdi, parse_time
from xorepd.xapi.vdis import detached, unplug_left
from xorepd.xapi.vms import update_keys

log = structlog.get_logger(__name__)


async def read_sides(pair: Pair) -> tuple[SourceSide, TargetSide]:
    """Return both inventories as they are now, with all disks of the source VM."""
    source = await read_source_side(pair)
    await pair.target.refresh()
    return source, read_target(pair.target.cache, pair.stream, pair.sr.ref)


async def read_source_side(pair: Pair) -> SourceSide:
    """Return what the source holds now."""
    await pair.source.refresh()
    vm = pair.source.cache.vms.get(pair.vm.ref, pair.vm)
    return read_source(pair.source.cache, pair.stream, vm)


async def find_resumable(
    pair: Pair, job: JobSettings, source: SourceSide, target: TargetSide
) -> Leftover | None:
    """Return what an interrupted run left and this run, or the next one, can continue."""
    if not job.resume or not target.staging:
        return None
    source = without_excluded(job, source)
    master = pair.source.cache.pool.master
    now = parse_time(await pair.source.call("host.get_servertime", master))
    others = set()
    for copy in of_others(pair, source):
        others.update({copy.onto.uuid, copy.base.uuid} if copy.base else {copy.onto.uuid})
    return find_leftover(source, target, pair.stream.sr, now=now, within=job.resume, others=others)


async def sweep(
    pair: Pair,
    diverged: Diverged,
    sides: tuple[SourceSide, TargetSide] | None = None,
    *,
    to_resume: JobSettings | None,
) -> tuple[SourceSide, TargetSide, Leftover | None]:
    """Clean up both pools. Return what they hold then, and what can be continued.

    An object that cannot be removed now is logged. It is marked, and the next sweep tries again.

    Args:
        diverged: whether a commit is finished, or undone, on a replica that was worked on.
        sides: what both pools hold, if that has just been read.
        to_resume: the job that can continue an interrupted transfer; with None, what such a
            transfer left is removed as well.

    Raises:
        XapiError: a pool does not answer, or a commit could neither be finished nor undone.
    """
    source, target = sides or await read_sides(pair)
    owners = [OWNER_PREFIX + str(pair.stream)]
    if not pair.source_vm.is_lent(str(pair.stream)):
        owners.append(owner_of_shared(pair.stream))
    for pool, owner in product((pair.source, pair.target), owners):
        tasks = await pool.end_tasks_of(owner)
        if tasks.has_ended or tasks.evidence:
            await pool.refresh()
            await claim(pool, pair.blank(Role.DISK), tasks.evidence)
            source, target = await read_sides(pair)
    decided = decide_commit(target)
    if decided is not None and not isinstance(decided, CancelCommit):
        check_replica(pair, target, diverged)
    match decided:
        case FinishCommit(point):
            log.info("commit.finishing", point=point.vm.uuid)
            await finish_commit(pair, target, point)
            source, target = await read_sides(pair)
        case UndoCommit(commit):
            log.info("commit.undoing", commit_run=commit.run)
            await undo_commit(pair, target, commit)
            source, target = await read_sides(pair)
        case CancelCommit():
            log.info("commit.cancelling")
            await cancel_commit(pair, target)
            source, target = await read_sides(pair)
        case DestroyReplica():
            assert target.replica is not None
            log.info("replica.destroying", replica=target.replica.uuid)
            await destroy_record(pair.target, target.replica)
            source, target = await read_sides(pair)
        case None:
            pass
    images = {
        memory.image.ref: memory.vm.ref
        for memory in target.memories
        if memory.image is not None and not is_taken(memory)
    }
    left = [(vdi, images.get(vdi.ref, NULL_REF)) for vdi in target.written]
    if any([await _detach_left(pair.target, *each) for each in left]):
        source, target = await read_sides(pair)
    leftover = await find_resumable(pair, to_resume, source, target) if to_resume else None
    dirty = await _sweep_target(pair, target, leftover)
    dirty |= await sweep_memories(pair, target)
    async with pair.source_vm.lock:
        source = await read_source_side(pair)
        dirty |= await _sweep_source(pair, source, target, leftover)
    if dirty:
        source, target = await read_sides(pair)
    return source, target, leftover


async def _sweep_target(pair: Pair, target: TargetSide, leftover: Leftover | None) -> bool:
    for vm in target.shells:
        await destroy_record(pair.target, vm)
    spared = leftover.spared if leftover else ()
    unattached = [vdi for vdi in target.unattached if vdi.uuid not in spared]
    for vdi in unattached:
        await try_destroy_disk(pair.target, vdi)
    return bool(target.shells or unattached)


def check_replica(pair: Pair, target: TargetSide, diverged: Diverged) -> None:
    """Refuse to undo or to finish a commit on a replica that is used, or has been.

    Raises:
        Refused: with the replica and its disks.
    """
    replica = target.replica
    if replica is not None and replica.power_state != "Halted":
        raise Refused(
            f"pool {pair.target.name}: the last run was stopped in its commit, and replica "
            f"{replica.name_label} is {replica.power_state.lower()} by now; shut it down, the next "
            "run looks at it then"
        )
    if diverged is Diverged.REFUSE:
        refuse_divergence(pair.target.name, pair.job, target)


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
        else:
            wrote = pool.cache.by_uuid(Vdi, task.wrote or "")
            is_kept = wrote is not None and wrote.other_config.get(KEPT) == task.ref
            if not is_kept and not await _reclaim(pool, wrote):
                continue  # the next sweep looks again
        await pool.discard_told(task)


async def _detach_left(pool: Pool, vdi: Vdi, holder: Ref) -> bool:
    """Detach a disk of ours that a toolstack left attached when it died.

    It is unknown where the stream ended, so nothing of it counts as written.

    Args:
        holder: a suspended VM of ours whose memory this is.

    Returns:
        Whether the disk was attached.
    """
    if used_by_vms(pool.cache, vdi, but=holder) or not await unplug_left(pool, vdi):
        return False
    await pool.refresh()
    await _reclaim(pool, pool.cache.vdis.get(vdi.ref), holder)
    return True


async def _reclaim(pool: Pool, vdi: Vdi | None, holder: Ref = NULL_REF) -> bool:
    """Restore the content id of a disk, which a request of ours removed.

    Args:
        holder: see `_detach_left`.

    Returns:
        False: the request still has the disk.
    """
    if vdi is None:
        return True
    await detached(pool, vdi)
    now = pool.cache.vdis.get(vdi.ref)
    if now is None or (mark := own_mark(now)) is None:
        return True
    if used_by_vms(pool.cache, now, but=holder):
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
    pair: Pair, source: SourceSide, target: TargetSide, leftover: Leftover | None
) -> bool:
    """Clean up what belongs to this target; the caller holds the lock of the source VM."""
    if RESTART in source.vm.other_config:
        await start_if_left_down(pair, source.vm)
    spared = leftover.snapshot.vm.uuid if leftover else ""
    cleaning = decide_source(source, target, pair.stream.sr, spared=spared)
    for group in cleaning.destroy:
        await destroy_unsigned(pair.source, group)
    for group in cleaning.hold:
        await hold_snapshot(pair, group)
    for what in cleaning.release:
        await release(pair.source, what, pair.stream.sr)
    for vdi in source.drives:
        if SNAPSHOTTING in vdi.other_config:
            await pair.source.call("VDI.remove_from_other_config", vdi.ref, SNAPSHOTTING)
    unblocked = await _let_migrate(pair, source.vm.blocked_operations)
    return cleaning.is_needed or unblocked


async def release_source(pair: Pair) -> None:
    """Let go of the source VM, even where the target pool does not answer or refuses the run.

    A VM that an earlier run left down is started again, and may migrate.
    """
    async with pair.source_vm.lock:
        source = await read_source_side(pair)
        if RESTART in source.vm.other_config:
            await start_if_left_down(pair, source.vm)
    await _let_migrate(pair, await pair.source.call("VM.get_blocked_operations", pair.vm.ref))


async def _let_migrate(pair: Pair, blocked: dict[str, str]) -> bool:
    """Lift our migration blocks, unless this VM is still being read for another target."""
    if pair.source_vm.read_for:
        return False
    return await unblock_migration(pair.source, pair.vm.ref, blocked)


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
