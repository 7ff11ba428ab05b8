"""Forget a replica: destroy on both pools what is provably ours of it, or release the VM.

    sweep, as a run does first ─► restore points ─► source snapshots ─► replica and its mark

The replica's mark goes last. If this ends early, what is left still identifies the stream, and the
next call finishes. The caller holds the stream's lease and its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import structlog

from xorepd.config.models import Diverged, id_of_job
from xorepd.errors import Refused
from xorepd.ids import RunId
from xorepd.replication.cleanup.sweep import claim, sweep
from xorepd.replication.context.assignment import Pair
from xorepd.replication.context.board import Clock, Progress
from xorepd.replication.context.shared_source import SourceVm, owner_of_shared
from xorepd.replication.deciding.forgetting import Terms, use_objections
from xorepd.replication.deciding.orphans import signs_of_use
from xorepd.replication.format.current import KEY as CURRENT
from xorepd.replication.format.current import own_current, source_of
from xorepd.replication.format.index import marks_on
from xorepd.replication.format.inventory import (
    Marked,
    TargetSide,
    VmSnapshot,
    disks_of,
    is_live,
    is_taken,
    read_target,
)
from xorepd.replication.format.marks import (
    BLOCK_TEXT,
    BLOCKED_ON_REPLICA,
    KEY,
    KEYS_OF_STAGING,
    REPLICA_TAG,
    XO_KEYS_OF_POINTS,
    Mark,
    ReplicaKey,
    Role,
)
from xorepd.replication.format.ownership import own_mark, used_by_vms
from xorepd.replication.removal.destroying import (
    destroy_group,
    destroy_record,
    destroy_unsigned,
    release,
    try_destroy_disk,
)
from xorepd.replication.target.interfaces import VIF_NETWORK, VIF_SOURCE
from xorepd.replication.target.suspended import destroy_memory, let_go
from xorepd.xapi.cache import PoolCache
from xorepd.xapi.pool import Pool, task_owner
from xorepd.xapi.records import OWNER_PREFIX, Sr, Vdi, Vif, Vm
from xorepd.xapi.vms import destroy_vbd, update_keys

log = structlog.get_logger(__name__)

_XO_KEYS = ("xo:backup:sr", *XO_KEYS_OF_POINTS)


@dataclass(frozen=True, slots=True)
class Forgetting:
    """One replica to forget, and how."""

    stream: ReplicaKey
    run_id: RunId
    job: str
    """Name of the job that made it, for the log."""
    terms: Terms
    source: Pool | None
    """None where it does not answer; what it has stays."""
    target: Pool
    sr: Sr
    source_vm: SourceVm
    progress: Progress
    clock: Clock
    report: Callable[[str], None]
    """Called with each step, in words."""

    def enter(self, step: str) -> None:
        self.progress.enter("forget")
        self.report(step)


async def forget(f: Forgetting) -> None:
    """Forget a replica.

    Raises:
        Refused: its replica is in use, or something could not be removed yet.
        XapiError: a pool does not answer, or refuses.
    """
    task_owner.set(OWNER_PREFIX + str(f.stream))
    f.enter("cleaning up after the last run")
    side = await _cleaned_up(f)
    if side.replica is not None and not f.terms.keep_replica:
        used = signs_of_use(f.target.cache, side)
        for objection in use_objections(used, side.replica.power_state, f.terms):
            raise Refused(f"pool {f.target.name}: {objection}")
    for number, point in enumerate(reversed(side.points), 1):
        f.enter(f"restore point {number} of {len(side.points)}")
        await destroy_group(f.target, point, even_if_changed=f.terms.even_if_used)
    for memory in side.memories:
        f.enter(f"suspended VM {memory.vm.name_label}")
        if is_taken(memory):
            await let_go(f.target, memory)
        else:
            await destroy_memory(f.target, memory)
    await _leave_source(f)
    if side.replica is not None and f.terms.keep_replica:
        f.enter("setting the replica free")
        await _set_free(f, side, side.replica)
    elif side.replica is not None:
        f.enter("replica")
        await _dismantle(f, side, side.replica)
    await _verify(f)
    log.info("forget.completed", stream=str(f.stream), job=f.job, kept=f.terms.keep_replica)


# -- what the last run left --------------------------------------------------------------------


async def _cleaned_up(f: Forgetting) -> TargetSide:
    """Bring both sides to the last restore point; return what the target has then."""
    vm = None
    if f.source is not None:
        await f.source.refresh()
        vm = f.source.cache.by_uuid(Vm, f.stream.vm)
    if f.source is not None and vm is not None:
        used = f.terms.even_if_used or f.terms.keep_replica
        diverged = Diverged.REPLACE if used else Diverged.REFUSE
        _, side, _ = await sweep(_pair(f, f.source, vm), diverged, to_resume=None)
        return side
    await f.target.refresh()
    pools = [pool for pool in (f.source, f.target) if pool is not None]
    for pool, owner in product(pools, (f"{OWNER_PREFIX}{f.stream}", owner_of_shared(f.stream))):
        tasks = await pool.end_tasks_of(owner)
        await pool.refresh()
        mark = Mark(Role.DISK, f.stream, f.run_id, job=f.job)
        await claim(pool, mark, tasks.evidence)
    side = await _read_target(f)
    if side.mark is not None and side.mark.commit is not None and f.terms.keep_replica:
        raise Refused(
            f"pool {f.target.name}: the last run ended in the middle of its commit and its source "
            "VM is gone, so the replica is not whole; clone its newest restore point instead"
        )
    if side.fresh is not None:
        mark = replace(side.fresh.mark, role=Role.POINT, commit=None)
        await destroy_unsigned(f.target, replace(side.fresh, mark=mark))
    for shell in side.shells:
        await destroy_record(f.target, shell)
    for vdi in side.unattached:
        await try_destroy_disk(f.target, vdi)
    return await _read_target(f)


def _pair(f: Forgetting, source: Pool, vm: Vm) -> Pair:
    """Return the stream's pair, for its sweep: nothing is transferred."""
    job = f.job or "removed"
    return Pair(
        source=source,
        target=f.target,
        vm=vm,
        sr=f.sr,
        stream=f.stream,
        source_vm=f.source_vm,
        current=source_of(vm, f.stream.pool),
        run_id=f.run_id,
        attempt=f.run_id,
        job=job,
        job_id=id_of_job(job),
        clock=f.clock,
    )


# -- the source --------------------------------------------------------------------------------


async def _leave_source(f: Forgetting) -> None:
    """Release our snapshots of the source VM; destroy those that no other target uses."""
    if f.source is None:
        return
    f.enter("snapshots of the source VM")
    async with f.source_vm.lock:
        await f.source.refresh()
        for what in _standing_for(f.source.cache, f.stream):
            await release(f.source, what, f.stream.sr)
        await f.source.refresh()
        await _leave_vm(f.source, f.stream)


async def _leave_vm(pool: Pool, stream: ReplicaKey) -> None:
    """Remove our keys from a source VM that has no target any more.

    They stay after a change of roles, because they say which side is current.
    """
    vm = pool.cache.by_uuid(Vm, stream.vm)
    current = own_current(vm) if vm is not None else None
    if vm is None or current is None or current.epoch > 1:
        return
    for snapshot in pool.cache.present(Vm, vm.snapshots):
        mark = own_mark(snapshot)
        if mark is not None and mark.role is Role.SOURCE:
            return
    await _strike(pool, vm, [CURRENT])


def _standing_for(cache: PoolCache, stream: ReplicaKey) -> list[VmSnapshot | Marked]:
    """Return what the source pool has for a stream, even if the source VM is gone."""
    marks, whose = marks_on(cache), (stream.of_source, Role.SOURCE)
    disks = {
        each.what.ref: Marked(each.what, each.mark)
        for each in marks.disks.find(*whose, signed=True)
        if each.what.is_a_snapshot
    }
    snapshots = [
        VmSnapshot(
            each.what,
            each.mark,
            tuple(disks[vdi.ref] for _, vdi in disks_of(cache, each.what) if vdi.ref in disks),
        )
        for each in marks.vms.find(*whose, signed=True)
        if each.what.is_a_snapshot
    ]
    alone = [disk for disk in disks.values() if not used_by_vms(cache, disk.vdi)]
    ours: list[VmSnapshot | Marked] = [*snapshots, *alone]
    return [each for each in ours if stream.sr in each.uses]


# -- the replica -------------------------------------------------------------------------------


async def _dismantle(f: Forgetting, side: TargetSide, replica: Vm) -> None:
    """Destroy the replica, its disks first: the replica identifies the stream.

    Disks of others stay, and so do disks of ours that another VM uses.
    """
    gone = True
    for vbd, vdi in side.live:
        if is_live(vdi, f.stream) and not used_by_vms(f.target.cache, vdi, but=replica.ref):
            await destroy_vbd(f.target, vbd.ref)
            gone &= await try_destroy_disk(f.target, vdi, even_if_changed=f.terms.even_if_used)
    if gone:
        await destroy_record(f.target, replica)


async def _set_free(f: Forgetting, side: TargetSide, replica: Vm) -> None:
    """Make the replica an ordinary VM: without marks, blocks, tag and prefix of ours.

    Key by key, because it may be in use.
    """
    pool, cache = f.target, f.target.cache
    for _, vdi in side.live:
        if is_live(vdi, f.stream):
            await _strike(pool, vdi, [*KEYS_OF_STAGING, *_XO_KEYS, KEY])
    for vif in cache.present(Vif, replica.vifs):
        await _strike(pool, vif, [VIF_SOURCE, VIF_NETWORK])
    if REPLICA_TAG in replica.tags:
        await pool.call("VM.remove_tags", replica.ref, REPLICA_TAG)
    if (prefix := f"[XO Backup {f.job}] ") and replica.name_label.startswith(prefix):
        name = replica.name_label.removeprefix(prefix)
        await pool.call("VM.set_name_label", replica.ref, name)
    blocked = replica.blocked_operations
    ours = [op for op in BLOCKED_ON_REPLICA if blocked.get(op) == BLOCK_TEXT]
    await update_keys(pool, "VM", replica.ref, "blocked_operations", {}, ours)
    await _strike(pool, replica, [*_XO_KEYS, CURRENT, KEY])


async def _strike(pool: Pool, what: Vm | Vdi | Vif, keys: list[str]) -> None:
    """Remove those of these keys that exist, in their order."""
    present = [key for key in keys if key in what.other_config]
    await update_keys(pool, what.kind, what.ref, "other_config", {}, present)


# -- what is left ------------------------------------------------------------------------------


async def _read_target(f: Forgetting) -> TargetSide:
    await f.target.refresh()
    return read_target(f.target.cache, f.stream, f.sr.ref)


async def _verify(f: Forgetting) -> None:
    """Check that nothing is left.

    Raises:
        Refused: something could not be removed; the message names it.
    """
    side = await _read_target(f)
    left = [(f.target.name, vdi.name_label or vdi.uuid) for vdi in side.unattached]
    left += [(f.target.name, vm.vm.name_label) for vm in (*side.points, *side.memories)]
    if side.replica is not None:
        left.append((f.target.name, side.replica.name_label))
    if f.source is not None:
        await f.source.refresh()
        for what in _standing_for(f.source.cache, f.stream):
            each = what.vm if isinstance(what, VmSnapshot) else what.vdi
            left.append((f.source.name, each.name_label or each.uuid))
    if left:
        pool, first = left[0]
        others = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise Refused(
            f"pool {pool}: {first}{others} could not be removed yet; something holds it, see the "
            "daemon's log, and forget it again later"
        )
