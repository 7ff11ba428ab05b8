"""What a stream's two pools hold of it, read from their records. No I/O.

What is in here is ours by the rules of `ownership`, and stands where its role wants it. What only
carries a mark, or belongs to a VM of others, is not in here, and so no run touches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from xorepd.ids import Ref
from xorepd.replication.format.evidence import PointDisk, RestorePoint, SourceBase
from xorepd.replication.format.index import marks_on
from xorepd.replication.format.marks import (
    KEY,
    Mark,
    ReplicaKey,
    Role,
    Use,
    decode,
    snapshotting_on,
    uses_of,
)
from xorepd.replication.format.ownership import (
    Content,
    content_of,
    is_of,
    own_mark,
    run_that_named,
    used_by_vms,
    was_made_of_changed,
)
from xorepd.xapi.records import Vbd, Vdi, Vm
from xorepd.xapi.tables import Tables


@dataclass(frozen=True, slots=True)
class Marked:
    """One of our disks with its mark."""

    vdi: Vdi
    mark: Mark

    @property
    def content(self) -> Content:
        """Whether it holds what it held when it was signed."""
        return content_of(self.vdi, self.mark)

    @property
    def uses(self) -> Mapping[str, Use]:
        """For which targets a disk of a source snapshot stands, by UUID of their SR."""
        return uses_of(self.vdi.other_config, self.mark)


@dataclass(frozen=True, slots=True)
class VmSnapshot:
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
    reason: str


@dataclass(frozen=True, slots=True)
class SourceSide:
    """The source VM's disks, and our snapshots of it."""

    vm: Vm
    disks: tuple[tuple[Vbd, Vdi], ...]
    snapshots: tuple[VmSnapshot, ...]
    """Ours of this VM, for whatever targets, newest first."""
    unsigned: tuple[VmSnapshot, ...] = ()
    """Snapshots that a run took and never got to mark."""
    orphans: tuple[Marked, ...] = ()
    """Disks of snapshots of ours whose VM record is gone: a person or `shed` destroyed it."""
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
            SourceBase(disk.vdi.uuid, present[disk.vdi.snapshot_of], disk.content)
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
    points: tuple[VmSnapshot, ...] = ()
    """Newest first."""
    fresh: VmSnapshot | None = None
    """A restore point that was taken and not signed yet: its commit is done."""
    unattached: tuple[Vdi, ...] = ()
    """Disks of ours that belong to no VM: staging disks, replaced disks, unfinished creations."""
    written: tuple[Vdi, ...] = ()
    """Disks of ours that something has written to since: no run uses or destroys them."""
    staging: tuple[Marked, ...] = ()
    """Those of the unattached disks that are staging disks and that nothing writes to any more."""
    shells: tuple[Vm, ...] = ()
    """VMs that a run created a moment before its end, not signed and without any disk yet."""
    memories: tuple[VmSnapshot, ...] = ()
    """Suspended VMs beside restore points, finished or not."""
    unmarked: Mapping[str, Vdi] = field(default_factory=dict)
    """By UUID: disks that a restore point names, that carry no mark and that no VM has. An SR that
    was forgotten and introduced again has lost all marks."""

    def plan_points(self) -> list[RestorePoint]:
        """Return the restore points as base choice looks at them."""
        twins = {vdi.ref: vdi for _, vdi in self.live}
        return [
            RestorePoint(
                uuid=point.vm.uuid,
                disks=tuple(
                    PointDisk(
                        uuid=disk.vdi.uuid,
                        disk=disk.mark.disk,
                        snapshot=disk.mark.snapshot,
                        virtual_size=disk.vdi.virtual_size,
                        is_usable=disk.vdi.has_data,
                        content=content_of(disk.vdi, disk.mark, twins.get(disk.vdi.snapshot_of)),
                        deltas=disk.mark.deltas,
                        device=disk.mark.device,
                    )
                    for disk in point.disks
                )
                + tuple(self._lost(point)),
            )
            for point in self.points
        ]

    def _lost(self, point: VmSnapshot) -> Iterator[PointDisk]:
        """Yield the disks that a restore point names and that have lost their marks."""
        known = {disk.vdi.uuid for disk in point.disks}
        for device, uuid in point.mark.disks.items():
            if uuid not in known:
                found = self.unmarked.get(uuid)
                yield PointDisk(
                    uuid=uuid,
                    disk="",
                    snapshot="",
                    virtual_size=found.virtual_size if found else 0,
                    is_usable=found is not None and found.has_data,
                    content=Content.UNKNOWN,
                    device=device,
                    is_lost=True,
                )


def read_source(cache: Tables, stream: ReplicaKey, vm: Vm) -> SourceSide:
    """Return what the source pool holds of a stream: the same for every target of the VM."""
    of_source = stream.of_source
    snapshots, unsigned = [], []
    for candidate in cache.pointing(Vm, "snapshot_of", vm.ref):
        if not candidate.is_a_snapshot:
            continue
        mark, image = own_mark(candidate), cache.vdis.get(candidate.suspend_vdi)
        if mark is not None:
            if mark.role is Role.SOURCE and mark.stream.of_source == of_source:
                disks = tuple(_source_disks(cache, candidate, of_source))
                snapshots.append(VmSnapshot(candidate, mark, disks, image))
        elif run := run_that_named(candidate):
            blank = Mark(Role.SOURCE, of_source, run)
            taken = (vdi for _, vdi in disks_of(cache, candidate) if vdi.is_a_snapshot)
            disks = tuple(Marked(vdi, _unsigned_mark(vdi, blank)) for vdi in taken)
            unsigned.append(VmSnapshot(candidate, blank, disks, image))
    orphans = [
        Marked(each.what, each.mark)
        for each in marks_on(cache).disks.find(of_source, Role.SOURCE, signed=True)
        if each.what.is_a_snapshot and not used_by_vms(cache, each.what)
    ]
    snapshots.sort(key=lambda group: group.mark.order, reverse=True)
    return SourceSide(
        vm=vm,
        disks=tuple(disks_of(cache, vm)),
        snapshots=tuple(snapshots),
        unsigned=tuple(unsigned),
        orphans=tuple(orphans),
    )


def read_target(cache: Tables, stream: ReplicaKey, sr: Ref) -> TargetSide:
    """Return what the target pool holds of a stream."""
    replica, replica_mark = None, None
    shells, points, memories = [], [], []
    for bearer in marks_on(cache).vms.find(stream):
        vm, mark = bearer.what, bearer.mark
        if not bearer.is_signed:
            if not mark.self and vm.is_a_template and not vm.vbds and run_that_named(vm):
                shells.append(vm)
        elif mark.role is Role.REPLICA and not vm.is_a_snapshot:
            replica, replica_mark = vm, mark
        elif mark.role is Role.POINT and vm.is_a_snapshot:
            points.append(VmSnapshot(vm, mark, tuple(_point_disks(cache, vm, stream))))
        elif mark.role is Role.MEMORY and not vm.is_a_snapshot:
            memories.append(_read_memory(cache, vm, mark))
    points.sort(key=lambda point: point.mark.order, reverse=True)
    fresh = None
    if replica is not None and replica_mark is not None and replica_mark.commit is not None:
        fresh = _fresh_point(cache, replica, replica_mark)
    # A restore point may hold a disk of another SR, which people gave to the replica amid a commit.
    ours = [
        Marked(each.what, each.mark)
        for each in marks_on(cache).disks.find(stream, signed=True)
        if each.what.sr == sr or each.mark.role is Role.POINT
    ]
    unattached = [disk for disk in ours if _is_unattached(cache, disk)]
    return TargetSide(
        replica=replica,
        mark=replica_mark,
        live=tuple(disks_of(cache, replica)) if replica else (),
        points=tuple(points),
        fresh=fresh,
        unattached=tuple(disk.vdi for disk in unattached),
        written=tuple(disk.vdi for disk in ours if disk.content is Content.CHANGED),
        staging=tuple(
            disk
            for disk in unattached
            if disk.mark.role is Role.DISK and not is_attached(cache, disk.vdi)
        ),
        shells=tuple(shells),
        memories=tuple(memories),
        unmarked={
            vdi.uuid: vdi
            for vdi in _named_disks(cache, points)
            if vdi.sr == sr and KEY not in vdi.other_config and not used_by_vms(cache, vdi)
        },
    )


def _named_disks(cache: Tables, points: Iterable[VmSnapshot]) -> Iterator[Vdi]:
    for point in points:
        for uuid in point.mark.disks.values():
            if (vdi := cache.by_uuid(Vdi, uuid)) is not None:
                yield vdi


def disks_of(cache: Tables, vm: Vm) -> Iterator[tuple[Vbd, Vdi]]:
    """Return the hard disks of a VM in the order of their devices; CD drives are none."""
    vbds = [vbd for vbd in cache.present(Vbd, vm.vbds) if vbd.type == "Disk" and not vbd.empty]
    for vbd in sorted(vbds, key=lambda vbd: (len(vbd.userdevice), vbd.userdevice)):
        vdi = cache.vdis.get(vbd.vdi)
        if vdi is not None:
            yield vbd, vdi


def is_attached(cache: Tables, vdi: Vdi) -> bool:
    """Return whether something has a disk open, control domains included."""
    return any(vbd.currently_attached for vbd in cache.present(Vbd, vdi.vbds))


def _unsigned_mark(vdi: Vdi, blank: Mark) -> Mark:
    """Return the mark that a disk of an unsigned snapshot has or would have got: what it held."""
    if (own := own_mark(vdi)) is not None:
        return replace(blank, content=own.content)
    run, content = snapshotting_on(vdi.other_config)
    if run != blank.run or content is None:
        return blank
    return replace(blank, content=content or f"xorepd-{vdi.uuid}")  # an id that it cannot have had


def _source_disks(cache: Tables, snapshot: Vm, of_source: ReplicaKey) -> Iterator[Marked]:
    for _, vdi in disks_of(cache, snapshot):
        mark = own_mark(vdi)
        if mark and mark.role is Role.SOURCE and mark.stream.of_source == of_source:
            yield Marked(vdi, mark)


def _point_disks(cache: Tables, point: Vm, stream: ReplicaKey) -> Iterator[Marked]:
    for _, vdi in disks_of(cache, point):
        if (mark := is_of(vdi, Role.POINT, stream)) is not None:
            yield Marked(vdi, mark)


def _read_memory(cache: Tables, vm: Vm, mark: Mark) -> VmSnapshot:
    """Return a suspended VM of ours; its memory only as long as that is what we gave it."""

    def mark_on(vdi: Vdi) -> Mark | None:
        own = own_mark(vdi)
        is_ours = own is not None and own.stream == mark.stream
        return own if is_ours and own and own.role in (Role.DISK, Role.MEMORY) else None

    marked = ((vdi, mark_on(vdi)) for _, vdi in disks_of(cache, vm))
    disks = tuple(Marked(vdi, own) for vdi, own in marked if own is not None)
    image = cache.vdis.get(vm.suspend_vdi)
    return VmSnapshot(vm, mark, disks, image if image and mark_on(image) else None)


def is_taken(memory: VmSnapshot) -> bool:
    """Return whether a suspended VM of ours was resumed, or has other memory now."""
    is_whole = bool(memory.mark.snapshot)
    return is_whole and (memory.vm.power_state != "Suspended" or memory.image is None)


def _fresh_point(cache: Tables, replica: Vm, mark: Mark) -> VmSnapshot | None:
    """Return the restore point of the commit under way: VM.snapshot makes its record last.

    Our own call gave it its name. In the earlier form that is the one which it keeps. A snapshot is
    no restore point if it holds other disks than the commit names, or disks that were written to.
    """
    assert mark.commit is not None
    for vm in cache.pointing(Vm, "snapshot_of", replica.ref):
        if not vm.is_a_snapshot:
            continue
        if mark.commit.point and vm.name_label != mark.commit.point:
            continue  # a snapshot of others inherits all the rest
        inherited = decode(vm.other_config)
        if inherited is None or inherited.self != replica.uuid or inherited.commit != mark.commit:
            continue
        disks, arrived = [], dict[str, str]()
        for vbd, vdi in disks_of(cache, vm):
            origin = cache.vdis.get(vdi.snapshot_of)
            disk_mark, own = decode(vdi.other_config), own_mark(vdi)
            if disk_mark is None or was_made_of_changed(vdi.other_config):
                continue
            if origin is not None and (own is not None or disk_mark.self == origin.uuid):
                arrived[vbd.userdevice] = origin.uuid
            elif own is not None and own.run == mark.commit.run:  # its signing was interrupted
                arrived[vbd.userdevice] = mark.commit.new.get(own.device, "")
            else:
                continue
            disks.append(Marked(vdi, disk_mark))
        # People may have worked on the replica while its disks were swapped.
        if mark.commit.new.items() <= arrived.items():
            return VmSnapshot(vm, inherited, tuple(disks))
    return None


def is_live(vdi: Vdi, stream: ReplicaKey) -> bool:
    """Return whether a disk is one that we gave to the replica, or are about to."""
    return is_of(vdi, Role.DISK, stream) is not None


def _is_unattached(cache: Tables, disk: Marked) -> bool:
    """Return whether a disk of ours holds what we left there, and belongs to no VM."""
    return (
        disk.mark.role in (Role.DISK, Role.POINT, Role.MEMORY)
        and disk.content is not Content.CHANGED
        and not used_by_vms(cache, disk.vdi)
    )
