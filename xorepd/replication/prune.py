"""After a commit: remove what it made superfluous, on both pools."""

from __future__ import annotations

import structlog

from xorepd.replication.assignment import Assignment
from xorepd.replication.inventory import Group, SourceSide, TargetSide
from xorepd.replication.retention import select_superseded, select_unneeded
from xorepd.replication.sweep import destroy_group, try_destroy_disk

log = structlog.get_logger(__name__)


async def prune(a: Assignment, source: SourceSide, target: TargetSide) -> None:
    """Destroy restore points beyond the retention, replaced disks, and bases of the past.

    Every restore point but the newest may go; every source snapshot but the one that the newest
    restore point holds. What cannot be removed now stays marked and is tried again by later runs.
    """
    for vdi in target.loose:
        await try_destroy_disk(a.target, vdi)
    for point in select_superseded(target.points, a.job.keep):
        log.info("point.expired", point=point.vm.uuid, time=point.mark.time)
        await destroy_group(a.target, point)
    newest = target.points[0].mark.snapshot if target.points else ""
    needed = [group for group in source.snapshots if group.vm.uuid == newest]
    for group in select_unneeded(source.snapshots, needed):
        await destroy_group(a.source, group)
    for disk in source.orphans:
        if not _is_needed(disk.vdi.uuid, target.points[:1]):
            await try_destroy_disk(a.source, disk.vdi)


def _is_needed(content: str, points: tuple[Group, ...]) -> bool:
    return any(content in point.contents for point in points)
