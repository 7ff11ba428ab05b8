"""What a stream's two pools hold of it, read from their records. No I/O.

Everything of ours is found by its mark and by where it stands; what carries a mark that is void
there, or is used by somebody else's VM, is not in the inventory and is left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from xorepd.ids import NULL_REF, Ref
from xorepd.replication.markers import (
    CLONING,
    SNAPSHOTTING,
    Mark,
    Role,
    Stream,
    Use,
    decode,
    signed,
    uses_of,
)
from xorepd.replication.plan import Point, PointDisk, SourceBase
from xorepd.xapi.cache import Cache
from xorepd.xapi.records import EPOCH, Vbd, Vdi, Vm


@dataclass(frozen=True, slots=True)
class Marked:
    """One of our disks with its mark."""

    vdi: Vdi
    mark: Mark

    @property
    def uses(self) -> Mapping[str, Use]:
        """For which targets a disk of a source snapshot stands, by UUID of their SR."""
        return uses_of(self.vdi.other_config, self.mark)


@dataclass(frozen=True, slots=True)
class Group:
    """A snapshot VM of ours, on either side, or a suspended VM of ours, with its disks."""

    vm: Vm
    mark: Mark
    disks: tuple[Marked, ...]
    image: Vdi | None = None
    """Its memory, where it has any."""

    @property
    def contents(self) -> set[str]:
        """UUIDs of the source snapshot's disks whose content these are."""
        return {disk.mark.snapshot for disk in self.disks}

    @property
    def uses(self) -> Mapping[str, Use]:
        """For which targets a source snapshot stands, by UUID of their SR."""
        return uses_of(self.vm.other_config, self.mark)


@dataclass(frozen=True, slots=True)
class Excluded:
    """A disk of a source VM that is not replicated."""

    vbd: Vbd
    vdi: Vdi
    because: str


@dataclass(frozen=True, slots=True)
class SourceSide:
    """The source VM's disks, and our snapshots of it."""

    vm: Vm
    disks: tuple[tuple[Vbd, Vdi], ...]
    snapshots: tuple[Group, ...]
    """Ours of this VM, for whatever targets, newest first."""
    unsigned: tuple[Group, ...] = ()
    """Snapshots that a run took and never got to mark."""
    orphans: tuple[Marked, ...] = ()
    """Disks of snapshots of ours whose VM record is gone: somebody destroyed it, or `shed` did."""
    torn: tuple[Vdi, ...] = ()
    """Disks of a snapshot of ours whose VM record never came: the toolstack died over it."""

    excluded: tuple[Excluded, ...] = ()
    """Disks of the VM that stay behind, and are not among `disks`."""

    @property
    def drives(self) -> tuple[Vdi, ...]:
        """All disks of the VM."""
        return (*(vdi for _, vdi in self.disks), *(disk.vdi for disk in self.excluded))

    def bases(self) -> list[SourceBase]:
        """Return the snapshots of present disks that hold data, or tell what changed since."""
        present = {vdi.ref: vdi.uuid for _, vdi in self.disks}
        held = [disk for group in self.snapshots for disk in group.disks] + list(self.orphans)
        return [
            SourceBase(uuid=disk.vdi.uuid, disk=present[disk.vdi.snapshot_of])
            for disk in held
            if (disk.vdi.has_data or disk.vdi.is_bare) and disk.vdi.snapshot_of in present
        ]


@dataclass(frozen=True, slots=True)
class TargetSide:
    """The replica, its restore points, and what is left over from earlier runs."""

    replica: Vm | None
    mark: Mark | None
    live: tuple[tuple[Vbd, Vdi], ...] = ()
    """What the replica's disk drives hold, ours or not."""
    points: tuple[Group, ...] = ()
    """Newest first."""
    fresh: Group | None = None
    """A restore point that was taken and not marked yet: its commit is done."""
    loose: tuple[Vdi, ...] = ()
    """Disks of ours that belong to no VM: staging disks, replaced disks, unfinished creations."""
    staging: tuple[Marked, ...] = ()
    """Those of the loose disks that are staging disks and that nothing writes to any more."""
    unsigned_vms: tuple[Vm, ...] = ()
    """Replicas that were created a moment before the end, without any disk yet."""
    cloning: tuple[Vdi, ...] = field(default=())
    """Disks that still say that we are cloning: restore points', and clones that are not ours."""
    torn: tuple[Vdi, ...] = ()
    """Disks of a restore point whose VM record never came: the toolstack died over it."""
    memories: tuple[Group, ...] = ()
    """Suspended VMs beside restore points, finished or not."""

    def plan_points(self) -> list[Point]:
        """Return the restore points as base choice looks at them."""
        return [
            Point(
                uuid=point.vm.uuid,
                disks=tuple(
                    PointDisk(
                        uuid=disk.vdi.uuid,
                        disk=disk.mark.disk,
                        content=disk.mark.snapshot,
                        virtual_size=disk.vdi.virtual_size,
                        is_usable=disk.vdi.has_data,
                        deltas=disk.mark.deltas,
                        device=disk.mark.device,
                    )
                    for disk in point.disks
                ),
            )
            for point in self.points
        ]


def read_source(cache: Cache, stream: Stream, vm: Vm) -> SourceSide:
    """Return what the source pool holds of a stream: the same for every target of the VM."""
    of_source = stream.of_source
    snapshots, unsigned = [], []
    for candidate in cache.vms.values():
        if not candidate.is_a_snapshot or candidate.snapshot_of != vm.ref:
            continue
        mark = signed(candidate.other_config, candidate.uuid)
        if mark is not None:
            if mark.role is Role.SOURCE and mark.stream.of_source == of_source:
                disks = tuple(_source_disks(cache, candidate, of_source))
                snapshots.append(Group(candidate, mark, disks, _image_of(cache, candidate)))
        elif _is_unmarked_snapshot(candidate):
            blank = Mark(Role.SOURCE, of_source, candidate.other_config[SNAPSHOTTING])
            disks = tuple(
                Marked(vdi, blank) for _, vdi in disks_of(cache, candidate) if vdi.is_a_snapshot
            )
            unsigned.append(Group(candidate, blank, disks, _image_of(cache, candidate)))
    orphans = [
        Marked(vdi, mark)
        for vdi in cache.vdis.values()
        if vdi.is_a_snapshot
        and (mark := _source_mark(vdi, of_source)) is not None
        and not used_by_vms(cache, vdi)
    ]
    snapshots.sort(key=lambda group: group.mark.time, reverse=True)
    disks_now = tuple(disks_of(cache, vm))
    return SourceSide(
        vm=vm,
        disks=disks_now,
        snapshots=tuple(snapshots),
        unsigned=tuple(unsigned),
        orphans=tuple(orphans),
        torn=tuple(_torn_off(cache, vm, {vdi.ref for _, vdi in disks_now})),
    )


def read_target(cache: Cache, stream: Stream, sr: Ref) -> TargetSide:
    """Return what the target pool holds of a stream."""
    replica, replica_mark = None, None
    unsigned_vms, points, memories = [], [], []
    for vm in cache.vms.values():
        mark = decode(vm.other_config)
        if mark is None or mark.stream != stream:
            continue
        if mark.self == vm.uuid and mark.role is Role.REPLICA and not vm.is_a_snapshot:
            replica, replica_mark = vm, mark
        elif mark.self == vm.uuid and mark.role is Role.POINT and vm.is_a_snapshot:
            points.append(Group(vm, mark, tuple(_point_disks(cache, vm, stream))))
        elif mark.self == vm.uuid and mark.role is Role.MEMORY and not vm.is_a_snapshot:
            memories.append(_read_memory(cache, vm, mark))
        elif not mark.self and vm.is_a_template and not vm.is_a_snapshot and not vm.vbds:
            unsigned_vms.append(vm)
    points.sort(key=lambda point: point.mark.time, reverse=True)
    fresh = None
    if replica is not None and replica_mark is not None and replica_mark.commit is not None:
        fresh = _fresh_point(cache, replica, replica_mark)
    loose, staging, cloning = [], [], []
    for vdi in cache.vdis.values():
        if vdi.sr == sr:
            if _is_loose(cache, vdi, stream):
                loose.append(vdi)
                mark = signed(vdi.other_config, vdi.uuid)
                if mark is not None and is_live(vdi, stream) and not _is_attached(cache, vdi):
                    staging.append(Marked(vdi, mark))
            elif _is_cloned(vdi, stream):
                cloning.append(vdi)
    return TargetSide(
        replica=replica,
        mark=replica_mark,
        live=tuple(disks_of(cache, replica)) if replica else (),
        points=tuple(points),
        fresh=fresh,
        loose=tuple(loose),
        staging=tuple(staging),
        unsigned_vms=tuple(unsigned_vms),
        cloning=tuple(cloning),
        torn=tuple(_torn_points(cache, replica_mark, sr)) if fresh is None else (),
        memories=tuple(memories),
    )


def disks_of(cache: Cache, vm: Vm) -> Iterator[tuple[Vbd, Vdi]]:
    """Return the hard disks of a VM in the order of their devices; CD drives are none."""
    vbds = [vbd for vbd in cache.present(Vbd, vm.vbds) if vbd.type == "Disk" and not vbd.empty]
    for vbd in sorted(vbds, key=lambda vbd: (len(vbd.userdevice), vbd.userdevice)):
        vdi = cache.vdis.get(vbd.vdi)
        if vdi is not None:
            yield vbd, vdi


def used_by_vms(cache: Cache, vdi: Vdi, *, but: Ref = NULL_REF) -> bool:
    """Return whether any VM, `but` and control domains left out, has this disk, or memory in it."""
    if vdi.type == "suspend":  # no drive holds it
        return any(vm.suspend_vdi == vdi.ref and vm.ref != but for vm in cache.vms.values())
    owners = (cache.vms.get(vbd.vm) for vbd in cache.present(Vbd, vdi.vbds))
    return any(
        owner is not None and not owner.is_control_domain and owner.ref != but for owner in owners
    )


def _is_attached(cache: Cache, vdi: Vdi) -> bool:
    """Return whether something has a disk open, control domains included."""
    return any(vbd.currently_attached for vbd in cache.present(Vbd, vdi.vbds))


def temporary_name(run: str) -> str:
    """Return the name of a source snapshot until it is marked."""
    return f"xorepd-unmarked-{run}"


def _is_unmarked_snapshot(vm: Vm) -> bool:
    """Return whether a run took this snapshot: name and inherited key tell of the same run."""
    run = vm.other_config.get(SNAPSHOTTING)
    return run is not None and vm.name_label == temporary_name(run)


def _source_mark(vdi: Vdi, of_source: Stream) -> Mark | None:
    mark = signed(vdi.other_config, vdi.uuid)
    is_ours = mark is not None and mark.role is Role.SOURCE and mark.stream.of_source == of_source
    return mark if is_ours else None


def _source_disks(cache: Cache, snapshot: Vm, of_source: Stream) -> Iterator[Marked]:
    for _, vdi in disks_of(cache, snapshot):
        if (mark := _source_mark(vdi, of_source)) is not None:
            yield Marked(vdi, mark)


def _point_disks(cache: Cache, point: Vm, stream: Stream) -> Iterator[Marked]:
    for _, vdi in disks_of(cache, point):
        mark = signed(vdi.other_config, vdi.uuid)
        if mark is not None and mark.role is Role.POINT and mark.stream == stream:
            yield Marked(vdi, mark)


def _read_memory(cache: Cache, vm: Vm, mark: Mark) -> Group:
    """Return a suspended VM of ours; its memory only as long as that is what we gave it."""

    def mark_on(vdi: Vdi) -> Mark | None:
        own = signed(vdi.other_config, vdi.uuid)
        is_ours = own is not None and own.stream == mark.stream
        return own if is_ours and own and own.role in (Role.DISK, Role.MEMORY) else None

    marked = ((vdi, mark_on(vdi)) for _, vdi in disks_of(cache, vm))
    disks = tuple(Marked(vdi, own) for vdi, own in marked if own is not None)
    image = _image_of(cache, vm)
    return Group(vm, mark, disks, image if image and mark_on(image) else None)


def is_taken(memory: Group) -> bool:
    """Return whether somebody has resumed a suspended VM of ours, or it has other memory by now."""
    is_whole = bool(memory.mark.snapshot)
    return is_whole and (memory.vm.power_state != "Suspended" or memory.image is None)


def _image_of(cache: Cache, vm: Vm) -> Vdi | None:
    return cache.vdis.get(vm.suspend_vdi)


def _fresh_point(cache: Cache, replica: Vm, mark: Mark) -> Group | None:
    """Return the restore point of the commit under way: VM.snapshot makes its record last."""
    assert mark.commit is not None
    for vm in cache.vms.values():
        if not vm.is_a_snapshot or vm.snapshot_of != replica.ref:
            continue
        if mark.commit.point and vm.name_label != mark.commit.point:
            continue  # somebody else's snapshot inherits all the rest
        inherited = decode(vm.other_config)
        if inherited is None or inherited.self != replica.uuid or inherited.commit != mark.commit:
            continue
        disks, taken = [], set[str]()
        for _, vdi in disks_of(cache, vm):
            origin = cache.vdis.get(vdi.snapshot_of)
            if origin is not None:
                taken.add(origin.uuid)
            disk_mark = decode(vdi.other_config)
            if disk_mark is not None and (
                disk_mark.self == vdi.uuid or (origin is not None and disk_mark.self == origin.uuid)
            ):
                disks.append(Marked(vdi, disk_mark))
        # Somebody else may have snapshotted the replica before all its disks were swapped.
        if taken.issuperset(mark.commit.new.values()):
            return Group(vm, inherited, tuple(disks))
    return None


def _torn_off(cache: Cache, vm: Vm, disks: Collection[Ref]) -> Iterator[Vdi]:
    """Return what is left of a source snapshot that XAPI did not finish: in no VM, for ever."""
    run = vm.other_config.get(SNAPSHOTTING)
    for vdi in cache.vdis.values():
        is_of_run = run is not None and vdi.other_config.get(SNAPSHOTTING) == run
        is_of_disk = vdi.is_a_snapshot and vdi.snapshot_of in disks
        if is_of_run and is_of_disk and not used_by_vms(cache, vdi):
            yield vdi


def _torn_points(cache: Cache, mark: Mark | None, sr: Ref) -> Iterator[Vdi]:
    """Return the same of a restore point: snapshots of the disks in the commit under way."""
    if mark is None or mark.commit is None:
        return
    new = set(mark.commit.new.values())
    for vdi in cache.vdis.values():
        if vdi.sr == sr and vdi.is_a_snapshot and not used_by_vms(cache, vdi):
            inherited = decode(vdi.other_config)
            if inherited is not None and inherited.stream == mark.stream and inherited.self in new:
                yield vdi


def is_live(vdi: Vdi, stream: Stream) -> bool:
    """Return whether a disk is one that we gave to the replica, or are about to."""
    mark = signed(vdi.other_config, vdi.uuid)
    return mark is not None and mark.role is Role.DISK and mark.stream == stream


def _is_cloned(vdi: Vdi, stream: Stream) -> bool:
    """Return whether a disk still says that we are cloning it, or is a clone that says so."""
    mark = decode(vdi.other_config)
    cloning = vdi.other_config.get(CLONING)
    return cloning is not None and (
        cloning == str(stream) or (mark is not None and mark.stream == stream)
    )


def _is_loose(cache: Cache, vdi: Vdi, stream: Stream) -> bool:
    """Return whether a disk is provably ours and belongs to no VM."""
    mark = decode(vdi.other_config)
    if used_by_vms(cache, vdi):
        return False
    if mark is None:  # cloned by us from a copy that others made, and not signed yet
        is_clone = not vdi.is_a_snapshot and vdi.snapshot_time != EPOCH
        return is_clone and vdi.other_config.get(CLONING) == str(stream)
    if mark.stream != stream:
        return False
    if mark.self == vdi.uuid:  # written on this very disk
        return mark.role in (Role.DISK, Role.POINT)
    if vdi.is_a_snapshot:
        return False
    if not mark.self:  # created and not signed yet; XAPI dates clones, which inherit, and no others
        return mark.role is Role.DISK and vdi.snapshot_time == EPOCH
    # Cloned from a restore point by us and not signed yet.
    return mark.role is Role.POINT and CLONING in vdi.other_config
