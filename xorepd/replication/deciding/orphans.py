"""What no job keeps up any more: replicas of jobs that were removed or changed. Pure.

A replica belongs to its source VM and its SR, not to the job that made it, so a job that means the
same VM and target again, under whatever name, goes on with it. Nobody else will ever touch it, but
for `forget`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from xorepd.config.models import JobSettings
from xorepd.ids import PoolName
from xorepd.replication.deciding.divergence import find_divergence
from xorepd.replication.deciding.selection import Selection, has_namesake, is_excluded, select_vms
from xorepd.replication.format.inventory import TargetSide, is_live, is_taken, read_target
from xorepd.replication.format.marks import Mark, ReplicaKey, Role, decode, uses_of
from xorepd.replication.format.ownership import own_mark
from xorepd.xapi.records import Sr, Vdi, Vm
from xorepd.xapi.tables import Tables

_Chosen = list[tuple[JobSettings, Selection | None]]
"""Each job with the VMs that it means; None where its source does not answer."""

_Standing = Mapping[ReplicaKey, list[Mark]]
"""What source pools have for each stream."""

Known = Collection[tuple[str, str]]
"""UUIDs of source VMs and target SRs."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A stream without a job: a replica with its restore points, or what is left of one."""

    stream: str
    """`<source pool>/<source VM>/<target SR>`, UUIDs."""
    pool: PoolName
    sr: str
    """Name of the SR; its UUID where the pool does not know it any more."""
    replica: str
    """UUID; empty where only restore points, disks or source snapshots are left."""
    name: str
    """Of the replica; of the source VM where there is none."""
    vm: str
    """UUID of the source VM."""
    job: str
    """The job that made it."""
    points: int
    newest_point_at: datetime | None
    source: str = ""
    """Name of the source pool; empty where none of those that answer is it."""
    exists: bool = False
    """The source VM is still in that pool."""
    snapshots: int = 0
    """Snapshots of the source VM that stand for this target."""
    disks: int = 0
    """Disks of ours on the target, those of restore points included."""
    memories: int = 0
    """Suspended VMs beside restore points."""
    used: tuple[str, ...] = ()
    """What shows that somebody used the replica."""
    power_state: str = "Halted"
    """Of the replica."""
    known: bool = False
    """This daemon remembers a run of it; else another daemon may keep it up."""
    may_be_of: str = ""
    """A job with this target whose source does not answer: it may mean the VM."""


@dataclass(slots=True)
class _Belongings:
    """What carries the mark of one stream on a target pool, valid or not."""

    vms: list[Vm] = field(default_factory=list)
    vdis: list[Vdi] = field(default_factory=list)
    replica: Vm | None = None
    mark: Mark | None = None
    """The replica's, else any that is valid."""


def find_orphans(
    jobs: Iterable[JobSettings], pools: Mapping[PoolName, Tables], known: Known = ()
) -> list[Orphan]:
    """Return the streams on some pools that no job means, by their pools and names.

    Args:
        pools: Records of each configured pool that answers. Where the source of a job does not,
            what the job made is taken for its own.
        known: what this daemon has replicated.
    """
    chosen: _Chosen = [
        (job, select_vms(job, pools[job.source].vms.values()) if job.source in pools else None)
        for job in jobs
    ]
    standing = _standing(pools.values())
    found = [
        orphan
        for pool, cache in pools.items()
        for orphan in _of_pool(pool, cache, chosen, standing, pools, known)
    ]
    return sorted(found, key=lambda orphan: (orphan.pool, orphan.name, orphan.stream))


def signs_of_use(cache: Tables, side: TargetSide) -> tuple[str, ...]:
    """Return what shows that somebody used a replica, each to complete "its replica …"."""
    replica = side.replica
    if replica is None:
        return ()
    signs = []
    if replica.power_state != "Halted":
        signs.append(f"is {replica.power_state.lower()}")
    if changed := find_divergence(side):
        signs.append(f"has changed ({'; '.join(map(str, changed))})")
    if foreign := [vdi for _, vdi in side.live if own_mark(vdi) is None]:
        signs.append(f"has disks of others ({_named(foreign)})")
    ours = {point.vm.ref for point in side.points} | ({side.fresh.vm.ref} if side.fresh else set())
    if taken := [vm for vm in cache.present(Vm, replica.snapshots) if vm.ref not in ours]:
        signs.append(f"has snapshots of others ({_named(taken)})")
    return tuple(signs)


def _named(records: Iterable[Any]) -> str:
    return ", ".join(sorted(record.name_label or record.uuid for record in records))


def _of_pool(
    pool: PoolName,
    cache: Tables,
    chosen: _Chosen,
    standing: _Standing,
    pools: Mapping[PoolName, Tables],
    known: Known,
) -> Iterator[Orphan]:
    sources: dict[str, tuple[str, Tables]] = {
        other.pool.uuid: (name, other) for name, other in pools.items()
    }
    belongings = _belongings(cache)
    for stream, mark in _streams_on(cache, belongings, standing).items():
        own = belongings.get(stream, _Belongings())
        sr = cache.by_uuid(Sr, stream.sr)
        places = {stream.sr, sr.name_label} if sr else {stream.sr}
        aimed = [
            (job, selection)
            for job, selection in chosen
            if any(to.pool == pool and to.sr in places for to in job.targets)
        ]
        replica = own.replica
        name = replica.name_label if replica else ""
        if any(_means(job, chosen, name, mark, pools.get(job.source)) for job, chosen in aimed):
            continue
        part = cache.part(own.vms, own.vdis)  # a pool may have thousands of streams
        side = read_target(part, stream, sr.ref) if sr else TargetSide(None, None)
        times = [point.mark.taken_at for point in side.points]
        source, there = sources.get(stream.pool) or ("", None)
        vm = there.by_uuid(Vm, stream.vm) if there else None
        yield Orphan(
            stream=str(stream),
            pool=pool,
            sr=sr.name_label if sr else stream.sr,
            replica=replica.uuid if replica else "",
            name=name or (vm.name_label if vm else stream.vm),
            vm=stream.vm,
            job=mark.job,
            points=len(times),
            newest_point_at=max(filter(None, times), default=None),
            source=source,
            exists=vm is not None,
            snapshots=len({each.run for each in standing.get(stream, ())}),
            disks=_disks_of(side, stream),
            memories=sum(not is_taken(memory) for memory in side.memories),
            used=signs_of_use(cache, side),
            power_state=replica.power_state if replica else "Halted",
            known=(stream.vm, stream.sr) in known,
            may_be_of=next((job.name for job, selection in aimed if selection is None), ""),
        )


def _streams_on(
    cache: Tables, belongings: Mapping[ReplicaKey, _Belongings], standing: _Standing
) -> dict[ReplicaKey, Mark]:
    """Return the streams that have something on a target pool, or on their source for it."""
    srs = {sr.uuid for sr in cache.srs.values()}
    found = {stream: own.mark for stream, own in belongings.items() if own.mark is not None}
    for stream, marks in standing.items():
        if stream.sr in srs:
            found.setdefault(stream, marks[0])
    return found


def _belongings(cache: Tables) -> dict[ReplicaKey, _Belongings]:
    """Return what a target pool has of each stream."""
    found: defaultdict[ReplicaKey, _Belongings] = defaultdict(_Belongings)
    srs = {sr.ref: sr.uuid for sr in cache.srs.values()}
    for vm in cache.vms.values():
        if (mark := decode(vm.other_config)) is None:
            continue
        own = found[mark.stream]
        own.vms.append(vm)
        is_own = own_mark(vm) is not None
        if is_own and mark.role is Role.REPLICA:
            own.replica, own.mark = vm, mark
        elif is_own and mark.role in (Role.POINT, Role.MEMORY):
            own.mark = own.mark or mark
    for vdi in cache.vdis.values():
        if (mark := decode(vdi.other_config)) is None:
            continue
        own = found[mark.stream]
        own.vdis.append(vdi)
        is_ours = own_mark(vdi) is not None and mark.role in (Role.DISK, Role.POINT)
        if is_ours and mark.stream.sr == srs.get(vdi.sr):
            own.mark = own.mark or mark
    return dict(found)


def _standing(sources: Iterable[Tables]) -> _Standing:
    """Return the marks of source snapshots, and of disks of them, by the streams they stand for."""
    found: defaultdict[ReplicaKey, list[Mark]] = defaultdict(list)
    for source in sources:
        everything: tuple[Vm | Vdi, ...] = (*source.vms.values(), *source.vdis.values())
        for each in everything:
            mark = own_mark(each) if each.is_a_snapshot else None
            is_here = mark is not None and mark.stream.pool == source.pool.uuid
            if mark is not None and is_here and mark.role is Role.SOURCE:
                for sr in uses_of(each.other_config, mark):
                    found[replace(mark.stream, sr=sr)].append(mark)
    return found


def _disks_of(side: TargetSide, stream: ReplicaKey) -> int:
    ours = {vdi.uuid for _, vdi in side.live if is_live(vdi, stream)}
    ours |= {disk.vdi.uuid for point in side.points for disk in point.disks}
    for memory in side.memories:
        ours |= {disk.vdi.uuid for disk in memory.disks}
        ours |= {memory.image.uuid} if memory.image else set()
    return len(ours | {vdi.uuid for vdi in side.unattached})


def _means(
    job: JobSettings, selection: Selection | None, replica: str, mark: Mark, source: Tables | None
) -> bool:
    """Return whether a job means the VM of a replica; one that is gone is missed by its job.

    But not where another VM has its name by now: then the job means that one.

    Args:
        replica: its name.
    """
    if selection is None or source is None:
        return job.name == mark.job
    if source.pool.uuid != mark.stream.pool:
        return False
    vm = source.by_uuid(Vm, mark.stream.vm)
    if vm is None:
        name = replica.removeprefix(f"[XO Backup {job.name}] ")
        if job.name != mark.job or is_excluded(job, mark.stream.vm, name):
            return False
        if mark.stream.vm in job.named:
            return True
        is_missed = name in job.named or bool(job.found_by)
        return is_missed and not has_namesake(source.vms.values(), name)
    return vm in selection.found or not {vm.uuid, vm.name_label}.isdisjoint(job.named)
