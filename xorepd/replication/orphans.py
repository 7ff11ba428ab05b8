"""Replicas that no job keeps up any more: of jobs that were removed or changed. Pure.

A replica belongs to its source VM and its SR, not to the job that made it, so a job that means the
same VM and target again, under whatever name, goes on with it. Nobody else will ever touch it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from xorepd.config.models import JobSettings
from xorepd.ids import PoolName
from xorepd.replication.markers import Mark, Role, read_time, signed
from xorepd.replication.selection import Selection, select_vms
from xorepd.xapi.cache import Cache
from xorepd.xapi.records import Sr, Vm


@dataclass(frozen=True, slots=True)
class Orphan:
    """A replica without a job."""

    pool: PoolName
    sr: str
    """Name of the SR; its UUID where the pool does not know it any more."""
    replica: str
    """UUID."""
    name: str
    """Of the replica."""
    vm: str
    """UUID of the source VM."""
    job: str
    """The job that made it."""
    points: int
    newest_point_at: datetime | None


def find_orphans(jobs: Iterable[JobSettings], pools: Mapping[PoolName, Cache]) -> list[Orphan]:
    """Return the replicas on some pools that no job means, by their pools and names.

    Args:
        pools: Records of each configured pool that answers. Where the source of a job does not,
            what the job made is taken for its own.
    """
    selections = [
        (job, select_vms(job, pools[job.source].vms.values()) if job.source in pools else None)
        for job in jobs
    ]
    found = [
        orphan
        for pool, cache in pools.items()
        for orphan in _of_pool(pool, cache, selections, pools)
    ]
    return sorted(found, key=lambda orphan: (orphan.pool, orphan.name, orphan.replica))


def _of_pool(
    pool: PoolName,
    cache: Cache,
    selections: list[tuple[JobSettings, Selection | None]],
    pools: Mapping[PoolName, Cache],
) -> Iterator[Orphan]:
    for vm in cache.vms.values():
        mark = signed(vm.other_config, vm.uuid)
        if mark is None or mark.role is not Role.REPLICA:
            continue
        sr = cache.by_uuid(Sr, mark.stream.sr)
        places = {mark.stream.sr, sr.name_label} if sr else {mark.stream.sr}
        if any(
            any(to.pool == pool and to.sr in places for to in job.targets)
            and _means(job, selection, vm, mark, pools.get(job.source))
            for job, selection in selections
        ):
            continue
        times = [
            read_time(point.time)
            for snapshot in cache.vms.values()
            if (point := signed(snapshot.other_config, snapshot.uuid)) is not None
            and point.role is Role.POINT
            and point.stream == mark.stream
        ]
        yield Orphan(
            pool=pool,
            sr=sr.name_label if sr else mark.stream.sr,
            replica=vm.uuid,
            name=vm.name_label,
            vm=mark.stream.vm,
            job=mark.job,
            points=len(times),
            newest_point_at=max(filter(None, times), default=None),
        )


def _means(
    job: JobSettings, selection: Selection | None, replica: Vm, mark: Mark, source: Cache | None
) -> bool:
    """Return whether a job means the VM of a replica; one that is gone is missed by its job."""
    if selection is None or source is None:
        return job.name == mark.job
    if source.pool.uuid != mark.stream.pool:
        return False
    vm = source.by_uuid(Vm, mark.stream.vm)
    if vm is None:
        name = replica.name_label.removeprefix(f"[XO Backup {job.name}] ")
        is_named = name in job.named or mark.stream.vm in job.named
        return job.name == mark.job and (is_named or bool(job.found_by))
    return vm in selection.found or not {vm.uuid, vm.name_label}.isdisjoint(job.named)
