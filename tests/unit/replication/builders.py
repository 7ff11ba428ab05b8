"""Pools made of records, as XAPI would hold them: what inventory and recovery decide by.

`World` has the verbs of a pool (create, snapshot, clone, attach) with XAPI's effects on records:
snapshots and clones copy `other_config` and get a date, a snapshot points to its origin. Nothing
in it knows about marks; they are written with `mark`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.unit.xapi import raws
from xorepd.ids import Ref, VdiUuid, VmUuid
from xorepd.replication.inventory import SourceSide, TargetSide, read_source, read_target
from xorepd.replication.markers import FOR, KEY, Commit, Mark, Role, Stream, decode
from xorepd.xapi.cache import Cache, EventBatch
from xorepd.xapi.records import Record, Vbd, Vdi, Vm

STREAM = Stream(pool="pool-1", vm="vm-1", sr="sr-1")
OTHER_STREAM = Stream(pool="pool-1", vm="vm-2", sr="sr-1")
SR, OTHER_SR = Ref("OpaqueRef:sr"), Ref("OpaqueRef:other-sr")
NULL = "OpaqueRef:NULL"


class World:
    """One pool's VMs and disks."""

    def __init__(self) -> None:
        self._raws: dict[Ref, tuple[type[Vm] | type[Vdi] | type[Vbd], raws.Raw]] = {}
        self._made = 0

    def _add(self, cls: type[Vm] | type[Vdi] | type[Vbd], kind: str, raw: raws.Raw) -> Ref:
        ref = Ref(f"OpaqueRef:{kind}-{self._made}")
        self._made += 1
        raw["uuid"] = raw["uuid"] or f"{kind}-{self._made}-uuid"
        self._raws[ref] = cls, raw
        return ref

    def raw(self, ref: Ref) -> raws.Raw:
        return self._raws[ref][1]

    def uuid(self, ref: Ref) -> str:
        return str(self.raw(ref)["uuid"])

    def _now(self) -> str:
        return f"20260302T12:{self._made // 60:02d}:{self._made % 60:02d}Z"

    def vm(self, name: str = "", **changes: Any) -> Ref:
        return self._add(Vm, "vm", raws.vm("", name_label=name, **changes))

    def disk(self, **changes: Any) -> Ref:
        return self._add(Vdi, "vdi", raws.vdi("", SR=SR, **changes))

    def attach(self, vm: Ref, disk: Ref, device: str = "0", **changes: Any) -> Ref:
        ref = self._add(Vbd, "vbd", raws.vbd("", vm, disk, userdevice=device, **changes))
        self.raw(vm)["VBDs"].append(ref)
        if disk in self._raws:
            self.raw(disk)["VBDs"].append(ref)
        return ref

    def detach(self, vbd: Ref) -> None:
        raw = self.raw(vbd)
        self.raw(raw["VM"])["VBDs"].remove(vbd)
        self.raw(raw["VDI"])["VBDs"].remove(vbd)
        del self._raws[vbd]

    def disks(self, vm: Ref) -> list[Ref]:
        return [self.raw(vbd)["VDI"] for vbd in self.raw(vm)["VBDs"]]

    def snapshot_disk(self, disk: Ref) -> Ref:
        return self._copy_disk(disk, is_a_snapshot=True, snapshot_of=disk)

    def clone_disk(self, disk: Ref) -> Ref:
        return self._copy_disk(disk, is_a_snapshot=False, snapshot_of=NULL)

    def _copy_disk(self, disk: Ref, **changes: Any) -> Ref:
        raw = self.raw(disk)
        copied = {"uuid": "", "VBDs": [], "other_config": dict(raw["other_config"])}
        return self._add(Vdi, "vdi", raw | copied | changes | {"snapshot_time": self._now()})

    def snapshot(self, vm: Ref, name: str = "snapshot") -> Ref:
        return self._copy_vm(vm, name, self.snapshot_disk, is_a_snapshot=True, snapshot_of=vm)

    def clone(self, vm: Ref, name: str = "clone") -> Ref:
        changes = {"is_a_snapshot": False, "snapshot_of": NULL, "is_a_template": False}
        return self._copy_vm(vm, name, self.clone_disk, **changes)

    def _copy_vm(self, vm: Ref, name: str, copy_disk: Any, **changes: Any) -> Ref:
        raw = self.raw(vm)
        devices = [self.raw(vbd)["userdevice"] for vbd in raw["VBDs"]]
        disks = [copy_disk(disk) for disk in self.disks(vm)]  # before the VM, as XAPI does
        copied = {"uuid": "", "name_label": name, "VBDs": [], "other_config": {}}
        made = self._add(Vm, "vm", raw | copied | changes | {"snapshot_time": self._now()})
        self.raw(made)["other_config"] |= raw["other_config"]
        for device, disk in zip(devices, disks, strict=True):
            self.attach(made, disk, device)
        return made

    def destroy(self, ref: Ref) -> None:
        """Destroy a VM or a disk; the drives between go with either."""
        for vbd in list(self.raw(ref)["VBDs"]):
            self.detach(vbd)
        del self._raws[ref]

    def mark(self, ref: Ref, role: Role, *, unsigned: bool = False, **facts: Any) -> Mark:
        """Write our mark on an object, as the run does."""
        facts = {"stream": STREAM, "run": "run-1"} | facts
        mark = Mark(role=role, **facts)
        if not unsigned:
            mark = mark.on(self.uuid(ref))
        self.raw(ref)["other_config"][KEY] = mark.encode()
        return mark

    def set_key(self, ref: Ref, key: str, value: str) -> None:
        self.raw(ref)["other_config"][key] = value

    async def cache(self) -> Cache:
        cache = Cache()
        records: list[Record] = [cls.parse(ref, raw) for ref, (cls, raw) in self._raws.items()]
        await cache.apply(EventBatch("1,1", tuple(records), (), {}, is_first=True))
        return cache


class SourceWorld(World):
    """A pool with a VM of two disks, and our snapshots of it."""

    def __init__(self) -> None:
        super().__init__()
        self.web = self.vm("web01")
        self.roots = [self.disk(), self.disk()]
        for device, disk in enumerate(self.roots):
            self.attach(self.web, disk, str(device))

    def source_snapshot(self, run: str = "run-1", **uses: str) -> Ref:
        """Take a snapshot and mark it with all its disks, as a run does.

        Args:
            uses: UUID of each target SR that it is for, with `_` for `-` → `wanted` or `held`.
        """
        made = self.snapshot(self.web, f"snapshot of {run}")
        facts = {"stream": STREAM.of_source, "run": run, "time": self.raw(made)["snapshot_time"]}
        for disk in (made, *self.disks(made)):
            for sr, use in uses.items():
                self.set_key(disk, FOR + sr.replace("_", "-"), use)
        for disk in self.disks(made):
            origin = self.raw(disk)["snapshot_of"]
            content = {"snapshot": self.uuid(disk), "disk": self.uuid(origin)}
            self.mark(disk, Role.SOURCE, **facts, **content)
        self.mark(made, Role.SOURCE, **facts, snapshot=self.uuid(made))
        return made

    def earlier_snapshot(self, run: str = "run-1", *, confirmed: bool) -> Ref:
        """Take a snapshot whose marks name their only target, as earlier versions did."""
        made = self.source_snapshot(run)
        for each in (made, *self.disks(made)):
            plain = decode(self.raw(each)["other_config"])
            assert plain is not None
            is_done = confirmed and each == made
            earlier = replace(plain, stream=STREAM, confirmed=is_done)
            self.set_key(each, KEY, earlier.encode())
        return made

    async def read(self, stream: Stream = STREAM) -> SourceSide:
        cache = await self.cache()
        return read_source(cache, stream, cache.vms[self.web])


class TargetWorld(World):
    """A pool with a replica, step by step as a run makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.replica: Ref = Ref(NULL)

    def stage(self, run: str = "run-1", contents: tuple[str, ...] = ("c-0", "c-1")) -> list[Ref]:
        """Create signed staging disks, one for each content."""
        made = []
        for device, content in enumerate(contents):
            disk = self.disk()
            facts = {"snapshot": content, "disk": f"d-{device}", "device": str(device)}
            self.mark(disk, Role.DISK, run=run, **facts)
            made.append(disk)
        return made

    def create_replica(self, run: str = "run-1") -> None:
        self.replica = self.vm("replica of web01")
        self.mark(self.replica, Role.REPLICA, run=run)

    def begin_commit(self, staged: list[Ref], run: str = "run-1") -> Commit:
        """Write on the replica what is about to be swapped."""
        drives = [self.raw(vbd) for vbd in self.raw(self.replica)["VBDs"]]
        commit = Commit(
            run=run,
            old={vbd["userdevice"]: self.uuid(vbd["VDI"]) for vbd in drives},
            new={str(device): self.uuid(disk) for device, disk in enumerate(staged)},
        )
        self.mark(self.replica, Role.REPLICA, run=run, time=self._now(), commit=commit)
        return commit

    def swap(self, staged: list[Ref]) -> None:
        for vbd in list(self.raw(self.replica)["VBDs"]):
            self.detach(vbd)
        for device, disk in enumerate(staged):
            self.attach(self.replica, disk, str(device))

    def take_point(self) -> Ref:
        """Snapshot the replica in its commit; nothing is marked yet."""
        return self.snapshot(self.replica, "point")

    def sign_point(self, point: Ref, run: str = "run-1") -> None:
        for device, disk in enumerate(self.disks(point)):
            origin = self.raw(disk)["snapshot_of"]
            content = self.content_of(origin)
            facts = {"snapshot": content, "disk": f"d-{device}", "device": str(device)}
            self.mark(disk, Role.POINT, run=run, **facts)
        self.mark(point, Role.POINT, run=run, time=self.raw(point)["snapshot_time"])

    def release(self, run: str = "run-1") -> None:
        self.mark(self.replica, Role.REPLICA, run=run)

    def content_of(self, disk: Ref) -> str:
        mark = decode(self.raw(disk)["other_config"])
        assert mark is not None
        return mark.snapshot

    def run(self, run: str = "run-1", contents: tuple[str, ...] = ("c-0", "c-1")) -> Ref:
        """Do a whole run; return its restore point. What was replaced is destroyed."""
        if self.replica == NULL:
            self.create_replica(run)
        old = self.disks(self.replica)
        staged = self.stage(run, contents)
        self.begin_commit(staged, run)
        self.swap(staged)
        point = self.take_point()
        self.sign_point(point, run)
        self.release(run)
        for disk in old:
            self.destroy(disk)
        return point

    async def read(self, stream: Stream = STREAM, sr: Ref = SR) -> TargetSide:
        return read_target(await self.cache(), stream, sr)


def uuids(disks: Any) -> set[VdiUuid | VmUuid]:
    return {each.uuid for each in disks}
