"""Remove what a commit has made superfluous, on both pools."""

from __future__ import annotations

from datetime import datetime

import structlog

from xorepd.config.choices import BaseData
from xorepd.replication.cleanup.sweep import read_source_side
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.deciding.data_destroy import (
    Shedding,
    decide_shedding,
    disks_in,
    reason_to_keep,
)
from xorepd.replication.deciding.recovery import decide_prune
from xorepd.replication.deciding.retention import select_expired
from xorepd.replication.format.inventory import Marked, SourceSide, TargetSide, VmSnapshot
from xorepd.replication.format.marks import Use, holds_on, is_from_the_future, read_time
from xorepd.replication.removal.destroying import (
    destroy_group,
    release,
    say_use,
    shed,
    try_destroy_disk,
)
from xorepd.replication.target.suspended import drop_images, prune_memories
from xorepd.replication.transfer.readers import find_nbd

log = structlog.get_logger(__name__)


async def prune(a: Assignment, target: TargetSide) -> None:
    """Destroy restore points beyond the retention, replaced disks, and bases of the past.

    Every restore point except the newest may go, and every source snapshot that is not the base of
    the newest one and that no other target uses. What cannot be removed now stays marked, and later
    runs try again.
    """
    pair = a.pair
    for vdi in target.unattached:
        await try_destroy_disk(pair.target, vdi)
    keep = a.job.keep_on(a.to)
    expired = select_expired(target.points, keep, a.job.timezone, period_time)
    expired = [point for point in expired if not holds_on(point.vm.other_config)]
    await prune_memories(pair, target, [point for point in target.points if point not in expired])
    for point in expired:
        log.info("point.expired", point=point.vm.uuid, taken_at=point.mark.moment)
        await destroy_group(pair.target, point)
    async with pair.source_vm.lock:
        source = await read_source_side(pair)
        releases = decide_prune(
            source,
            target,
            pair.stream.sr,
            hold_bases=a.job.hold_bases,
            busy=pair.source_vm.busy,
        )
        for each in sorted(releases, key=lambda release: release.what.mark.order):
            if each.sr != pair.stream.sr:
                log.warning("base.expired", sr=each.sr, hold_bases=a.job.hold_bases)
            await release(pair.source, each.what, each.sr)
        shedding = _decide_shedding(a, source, target)
        if shedding.shed and releases:  # some of it may be gone
            shedding = _decide_shedding(a, await read_source_side(pair), target)
        await _shed_bases(a, shedding)
        await drop_images(pair, source)


def _decide_shedding(a: Assignment, source: SourceSide, target: TargetSide) -> Shedding:
    use = Use.BARE if a.job.base_data is BaseData.DESTROY else Use.HELD
    return decide_shedding(
        source, target, a.pair.stream.sr, use, read_for=a.pair.source_vm.read_for
    )


async def _shed_bases(a: Assignment, shedding: Shedding) -> None:
    """Destroy the data of bases that all targets agree to have without it."""
    pair = a.pair
    for base in shedding.say:
        await say_use(pair.source, base, pair.stream.sr, shedding.use)
    kept = list(shedding.kept)
    for base in shedding.shed:
        if reason := await _reason_to_keep(pair, base):
            log.warning("base.data_kept", taken_at=base.mark.moment, reason=reason)
        else:
            reason = await shed(pair.source, base)
        if reason and base in shedding.own:
            kept.append(reason)
    if kept or shedding.own:
        a.progress.base_data = "kept" if kept else "destroyed"
        a.progress.base_data_reason = "; ".join(dict.fromkeys(kept))


async def _reason_to_keep(pair: Pair, base: VmSnapshot | Marked) -> str:
    """Return why a base keeps its data; empty where it need not.

    Without NBD each delta would need an export of the whole disk: that costs more than a chain.
    """
    if reason := reason_to_keep(pair.source.cache, base):
        return reason
    for disk in disks_in(base):
        exports, reason = await find_nbd(pair.source, disk.vdi.ref)
        if not exports:
            return reason
    return ""


def period_time(point: VmSnapshot) -> datetime | None:
    """Return the time that decides which periods a restore point belongs to.

    That is the time of its source snapshot; or the time of its arrival, if a clock was so wrong
    that the arrival came first. None where neither can be read.
    """
    arrived = read_time(point.mark.arrived) or point.vm.snapshot_time
    return arrived if is_from_the_future(point.mark, arrived) else point.mark.taken_at
