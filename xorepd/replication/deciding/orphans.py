"""Orphans: replicas that no job maintains, because jobs were removed or changed. Pure.

A replica belongs to its source VM and its SR, not to the job that made it. A new job for the same
VM and target, under any name, continues it. Nothing else touches it except `forget`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from xorepd.config.models import JobSettings
from xorepd.ids import PoolName
from xorepd.replication.deciding.divergence import find_divergence
from xorepd.replication.deciding.selection import Selection, has_namesake, is_excluded, select_vms
from xorepd.replication.format.index import Bearer, marks_on
from xorepd.replication.format.inventory import TargetSide, is_live, is_taken, read_target
from xorepd.replication.format.marks import Mark, ReplicaKey, Role, uses_of
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
    source_vm_exists: bool = False
    """The source VM is still in that pool."""
    snapshots: int = 0
    """Snapshots of the source VM that stand for this target."""
    disks: int = 0
    """Disks of ours on the target, those of restore points included."""
    memories: int = 0
    """Suspended VMs beside restore points."""
    signs_of_use: tuple[str, ...] = ()
    """What shows that the replica was used."""
    power_state: str = "Halted"
    """Of the replica."""
    known: bool = False
    """This daemon has a run of it; otherwise another daemon may maintain it."""
    possible_job: str = ""
    """A job with this target whose source does not answer: it may replicate the VM."""


@dataclass(slots=True)
class _Held:
    """What a target pool holds of one stream."""

    mark: Mark
    """The replica's, else any that is signed."""
    replica: Vm | None = None


def find_orphans(
    jobs: Iterable[JobSettings], pools: Mapping[PoolName, Tables], known: Known = ()
) -> list[Orphan]:
    """Return the streams on some pools that no job maintains, by their pools and names.

    Args:
        pools: Records of each configured pool that answers. If the source of a job does not
            answer, what the job made counts as maintained.
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
    """Return what shows that a replica was used, each to complete "its replica …"."""
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
    for stream, held in _streams_on(cache, standing).items():
        mark, replica = held.mark, held.replica
        sr = cache.by_uuid(Sr, stream.sr)
        places = {stream.sr, sr.name_label} if sr else {stream.sr}
        aimed = [
            (job, selection)
            for job, selection in chosen
            if any(to.pool == pool and to.sr in places for to in job.targets)
        ]
        name = replica.name_label if replica else ""
        if any(_means(job, chosen, name, mark, pools.get(job.source)) for job, chosen in aimed):
            continue
        side = read_target(cache, stream, sr.ref) if sr else TargetSide(None, None)
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
            source_vm_exists=vm is not None,
            snapshots=len({each.run for each in standing.get(stream, ())}),
            disks=_disks_of(side, stream),
            memories=sum(not is_taken(memory) for memory in side.memories),
            signs_of_use=signs_of_use(cache, side),
            power_state=replica.power_state if replica else "Halted",
            known=(stream.vm, stream.sr) in known,
            possible_job=next((job.name for job, selection in aimed if selection is None), ""),
        )


def _streams_on(cache: Tables, standing: _Standing) -> dict[ReplicaKey, _Held]:
    """Return the streams that have something on a target pool, or on their source for it."""
    marks, found = marks_on(cache), dict[ReplicaKey, _Held]()
    for vm in marks.vms.find(role=Role.REPLICA, signed=True):
        found[vm.mark.stream] = _Held(vm.mark, vm.what)
    for role in (Role.POINT, Role.MEMORY):
        for vm in marks.vms.find(role=role, signed=True):
            found.setdefault(vm.mark.stream, _Held(vm.mark))
    srs = {sr.ref: sr.uuid for sr in cache.srs.values()}
    for role in (Role.DISK, Role.POINT):
        for disk in marks.disks.find(role=role, signed=True):
            if disk.mark.stream.sr == srs.get(disk.what.sr):
                found.setdefault(disk.mark.stream, _Held(disk.mark))
    for stream, theirs in standing.items():
        if stream.sr in srs.values():
            found.setdefault(stream, _Held(theirs[0]))
    return found


def _standing(sources: Iterable[Tables]) -> _Standing:
    """Return the marks of source snapshots, and of disks of them, by the streams they stand for."""
    found: defaultdict[ReplicaKey, list[Mark]] = defaultdict(list)
    for source in sources:
        marks = marks_on(source)
        ours: list[Bearer[Vm] | Bearer[Vdi]] = [
            *marks.vms.find(role=Role.SOURCE, signed=True),
            *marks.disks.find(role=Role.SOURCE, signed=True),
        ]
        for each in ours:
            if each.what.is_a_snapshot and each.mark.stream.pool == source.pool.uuid:
                for sr in uses_of(each.what.other_config, each.mark):
                    found[replace(each.mark.stream, sr=sr)].append(each.mark)
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
