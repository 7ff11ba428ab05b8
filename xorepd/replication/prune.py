"""After a commit: remove what it made superfluous, on both pools."""

from __future__ import annotations

from datetime import datetime

import structlog

from xorepd.replication.assignment import Assignment
from xorepd.replication.inventory import Group, TargetSide
from xorepd.replication.markers import read_time
from xorepd.replication.recovery import decide_prune
from xorepd.replication.removal import destroy_group, release, try_destroy_disk
from xorepd.replication.retention import select_expired
from xorepd.replication.sweep import read_source_side

log = structlog.get_logger(__name__)


async def prune(a: Assignment, target: TargetSide) -> None:
    """Destroy restore points beyond the retention, replaced disks, and bases of the past.

    Every restore point but the newest may go; every source snapshot but the one that the newest
    restore point holds, as far as no other target has a use for it. What cannot be removed now
    stays marked and is tried again by later runs.
    """
    for vdi in target.loose:
        await try_destroy_disk(a.target, vdi)
    keep = a.job.keep_on(a.to)
    for point in select_expired(target.points, keep, a.job.timezone, _time_of):
        log.info("point.expired", point=point.vm.uuid, time=point.mark.time)
        await destroy_group(a.target, point)
    async with a.source_vm.lock:
        source = await read_source_side(a)
        for each in decide_prune(
            source, target, a.stream.sr, hold_bases=a.job.hold_bases, busy=a.source_vm.busy
        ):
            if each.sr != a.stream.sr:
                log.warning("base.given_up", sr=each.sr, hold_bases=a.job.hold_bases)
            await release(a.source, each.what, each.sr)


def _time_of(point: Group) -> datetime | None:
    return read_time(point.mark.time)
