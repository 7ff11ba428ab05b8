"""Both pools during one sequence: what stands there, and what people made and wrote.

Everything is read from the lab's own records and files, which the daemon never sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.lab.world import World
from tests.mischief import contents
from tests.mischief.contents import Place
from tests.mischief.plan import Kind, Options, Role
from xorepd_lab.model.schema import words

NULL = "OpaqueRef:NULL"
POOLS = ("prod", "dr")
VM_NAME = "web01"

Key = tuple[str, str]
"""Pool and reference."""

Record = dict[str, Any]
Disks = Mapping[str, str]
"""Fingerprints of what disks hold, by device."""


@dataclass(frozen=True, slots=True)
class Thing:
    """A VM or a VDI."""

    kind: Kind
    pool: str
    ref: str
    uuid: str
    name: str

    @property
    def key(self) -> Key:
        return self.pool, self.ref

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.uuid}) of {self.pool}"


class Look:
    """The records of both pools at one moment."""

    def __init__(self, world: World) -> None:
        self.vms, self.vdis, self.vbds, self.srs = (
            {
                (name, ref): _copied(pool.db.record(cls, ref))
                for name, pool in world.lab.pools.items()
                for ref in pool.db.refs(cls)
            }
            for cls in ("VM", "VDI", "VBD", "SR")
        )
        self._world = world
        for key in [k for k, vm in self.vms.items() if vm["is_default_template"]]:
            del self.vms[key]
        for key in [k for k, vdi in self.vdis.items() if not vdi["managed"]]:
            del self.vdis[key]
        for key in [k for k in self.vdis if self._sr_of(k)["content_type"] == "iso"]:
            del self.vdis[key]

    def thing(self, key: Key) -> Thing:
        kind, record = (Kind.VM, self.vms[key]) if key in self.vms else (Kind.VDI, self.vdis[key])
        return Thing(kind, *key, record["uuid"], record["name_label"])

    def table(self, kind: Kind) -> dict[Key, Record]:
        return self.vms if kind is Kind.VM else self.vdis

    def __contains__(self, key: Key) -> bool:
        return key in self.vms or key in self.vdis

    @cached_property
    def guests(self) -> dict[Key, Record]:
        """All VMs but control domains."""
        return {key: vm for key, vm in self.vms.items() if not vm["is_control_domain"]}

    def drives(self, vm: Key) -> Iterator[tuple[Key, Record]]:
        """Yield VBDs with hard disks in them."""
        pool = vm[0]
        for ref in self.vms[vm]["VBDs"]:
            vbd = self.vbds.get((pool, ref))
            if vbd is not None and vbd["type"] == "Disk" and (pool, vbd["VDI"]) in self.vdis:
                yield (pool, ref), vbd

    def disks(self, vm: Key) -> dict[str, Key]:
        """Return the hard disks of a VM by device."""
        return {vbd["userdevice"]: (vm[0], vbd["VDI"]) for _, vbd in self.drives(vm)}

    def image(self, vm: Key) -> Key | None:
        """Return the VDI with the memory of a VM."""
        key = vm[0], self.vms[vm]["suspend_VDI"]
        return key if key in self.vdis else None

    def parts(self, vm: Key) -> list[Key]:
        """Return all that goes with a VM: its disks, and its memory."""
        image = self.image(vm)
        return [*self.disks(vm).values(), *([image] if image else [])]

    @cached_property
    def users(self) -> dict[Key, list[Key]]:
        """The VMs, control domains left out, that have each VDI."""
        found: dict[Key, list[Key]] = {}
        for vm in self.guests:
            for vdi in self.parts(vm):
                found.setdefault(vdi, []).append(vm)
        return found

    def is_attached(self, vdi: Key) -> bool:
        """Return whether anything has it open, control domains included."""
        vbds = (self.vbds.get((vdi[0], ref)) for ref in self.vdis[vdi]["VBDs"])
        return any(vbd["currently_attached"] for vbd in vbds if vbd)

    def _sr_of(self, vdi: Key) -> Record:
        return self.srs[vdi[0], self.vdis[vdi]["SR"]]

    def place(self, vdi: Key) -> Place | None:
        """Return where a VDI's data is; None where it has none any more."""
        if self.vdis[vdi]["type"] == "cbt_metadata":
            return None
        directory = self._world.lab.pools[vdi[0]].sr_directory(self._sr_of(vdi)["uuid"])
        return directory, self.vdis[vdi]["uuid"]

    def content(self, vdi: Key) -> str:
        """Return the fingerprint of what a VDI holds; nothing where it has no data."""
        place = self.place(vdi)
        return contents.fingerprint(place) if place else ""

    def content_of(self, vm: Key) -> Disks:
        return {device: self.content(vdi) for device, vdi in self.disks(vm).items()}


def _copied(record: Record) -> Record:
    """Return a record with sets and maps of its own; nothing is nested deeper."""
    return {
        name: value.copy() if isinstance(value, list | dict) else value
        for name, value in record.items()
    }


@dataclass(frozen=True, slots=True)
class Known:
    """How something that people made was when they last had to do with it."""

    thing: Thing
    facts: Record
    content: str


@dataclass(frozen=True, slots=True)
class Written:
    """A page that people wrote to a disk."""

    home: Thing
    role: Role
    """Of the disk, when they wrote."""
    offset: int
    data: bytes

    def __str__(self) -> str:
        return f"{contents.PAGE} bytes that people wrote at {self.offset} of {self.home}"


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that is not as it must be."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"[{self.kind}] {self.text}"


@dataclass
class Scene:
    """A lab in which a job and people do what they want, and what is known of it."""

    world: World
    options: Options
    source: Key
    sources: set[Key] = field(default_factory=set)
    """The source VM, and those under its UUID that were there before it."""
    theirs: dict[Key, Known | None] = field(default_factory=dict)
    """What people made; not yet looked at where there is nothing."""
    written: list[Written] = field(default_factory=list)
    states: list[Disks] = field(default_factory=list)
    """What the source VM's disks have held, in their order."""
    snapshots: dict[str, set[int]] = field(default_factory=dict)
    """By UUID of a snapshot that a run took: which of the states it may have."""
    powers: dict[Key, str] = field(default_factory=dict)
    """Power states of VMs as people left them."""
    points: dict[Key, Disks] = field(default_factory=dict)
    """What restore points held when their runs said that they were good, newest last."""
    held: set[str] = field(default_factory=set)
    """Fingerprints of what restore points have held."""
    opened: set[Key] = field(default_factory=set)
    """Disks that people have attached for writing, or a VM that they started has."""
    displaced: set[Key] = field(default_factory=set)
    """Disks of theirs that a run took out of the replica, as it may."""
    detached: set[Key] = field(default_factory=set)
    """Disks of people's that a run took out of the replica."""
    is_harmless: bool = True
    """Nothing has happened that a run may stumble over."""
    names: int = 0

    def job(self, **changes: Any) -> dict[str, Any]:
        """Return what the job has other than that of a world."""
        sr = {"dr": "dr-storage", "prod": "prod-other"}[self.options.target]
        vm = self.world.lab.pools[self.source[0]].db
        uuid = vm.get("VM", self.source[1], "uuid") if vm.exists("VM", self.source[1]) else VM_NAME
        target = {"pool": self.options.target, "sr": sr}
        return {"vms": (uuid,), "target": target, **self.options.job, **changes}

    async def look(self) -> Look:
        """Return what stands on both pools, when no file is moving."""
        await self.world.lab.settled()
        return Look(self.world)

    # -- who is what ----------------------------------------------------------------------------

    def role(self, look: Look, key: Key) -> Role:
        """Return what a VM or a VDI is to the job."""
        if key in self.theirs:
            is_source = key == self.source or (
                self.source in look.vms and key in look.disks(self.source).values()
            )
            return Role.SOURCE if is_source else Role.THEIRS
        if key in look.vdis:
            users = look.users.get(key, ())
            ours = [self.role(look, vm) for vm in users]
            return min(ours, key=list(Role).index, default=Role.STAGING)
        vm = look.vms[key]
        if vm["is_a_snapshot"]:
            is_base = (key[0], vm["snapshot_of"]) in self.sources
            return Role.BASE if is_base else Role.POINT
        is_memory = look.image(key) is not None or "(memory" in vm["name_label"]
        return Role.MEMORY if is_memory else Role.REPLICA

    def things(self, look: Look, kind: Kind, role: Role) -> list[Thing]:
        """Return everything of a kind that stands in a role."""
        table = look.guests if kind is Kind.VM else look.vdis
        return [look.thing(key) for key in table if self.role(look, key) is role]

    def ours(self, look: Look) -> list[Key]:
        """Return everything that the daemon made."""
        return [key for key in (*look.guests, *look.vdis) if key not in self.theirs]

    # -- remembering ----------------------------------------------------------------------------

    def note(self, look: Look) -> list[Violation]:
        """Take everything of people's as it is now: they have just looked at it.

        Returns:
            What is gone of theirs that they did not remove.
        """
        gone = [key for key in self.theirs if key not in look]
        lost = [known for key in gone if (known := self.theirs.pop(key)) is not None]
        for key in self.theirs:
            thing = look.thing(key)
            content = look.content(key) if thing.kind is Kind.VDI else ""
            self.theirs[key] = Known(thing, facts(look, key), content)
        self.written = [page for page in self.written if self.is_found(look, page)]
        for key in list(self.points):
            if key not in look.vms:
                del self.points[key]
            else:
                self.points[key] = look.content_of(key)
        self.remember(look)
        return [Violation("theirs.gone", f"{known.thing} is gone") for known in lost]

    def remember(self, look: Look) -> None:
        """Take note of what the source VM holds, and of snapshots of it that are new."""
        earlier = len(self.states) - 1
        if self.source in look.vms:
            state = look.content_of(self.source)
            if not self.states or self.states[-1] != state:
                self.states.append(state)
        now = len(self.states) - 1
        for key, vm in look.vms.items():
            if key not in self.theirs and self.role(look, key) is Role.BASE:
                self.snapshots.setdefault(vm["uuid"], {max(earlier, 0), now})

    def is_found(self, look: Look, page: Written) -> bool:
        """Return whether a page is still where it was written, or in anything made from that."""
        homes = [key for key in look.vdis if key == page.home.key]
        others = [key for key in look.vdis if key != page.home.key]
        places = (look.place(key) for key in (*homes, *others))
        return any(contents.page(place, page.offset) == page.data for place in places if place)


_VM_FACTS = words(
    "uuid name_label name_description is_a_template is_a_snapshot snapshot_of power_state tags"
    " other_config blocked_operations VIFs suspend_VDI memory_static_max memory_dynamic_max"
    " VCPUs_max order ha_restart_priority"
)
_VDI_FACTS = words(
    "uuid name_label name_description SR virtual_size type is_a_snapshot snapshot_of tags"
    " other_config sharable read_only"
)


def facts(look: Look, key: Key) -> Record:
    """Return what a run must not change about something of people's; XAPI's own is left out."""
    if key in look.vms:
        record = look.vms[key]
        found = {name: record[name] for name in _VM_FACTS}
        found["drives"] = sorted(
            (vbd["userdevice"], vbd["VDI"], vbd["mode"]) for _, vbd in look.drives(key)
        )
        return found
    record = look.vdis[key]
    found = {name: record[name] for name in _VDI_FACTS}
    # XAPI gives a disk that has none an id of its content whenever somebody has read it.
    found["other_config"] = {k: v for k, v in record["other_config"].items() if k != "content_id"}
    found["users"] = sorted(look.users.get(key, ()))
    return found
