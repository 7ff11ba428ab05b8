"""Pools made of records, as XAPI would hold them: what inventory and recovery decide by.

`World` has the verbs of a pool (create, snapshot, clone, attach, write) with XAPI's effects on
records: snapshots and clones copy `other_config`, the content id with it, and get a date, a
snapshot points to its origin, and what is attached for writing loses its content id. Nothing in it
knows about marks; they are written with `mark`, and with `mark_earlier` in the earlier form.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from tests.unit.xapi import raws
from xorepd.ids import Ref, VdiUuid, VmUuid
from xorepd.replication.format.inventory import SourceSide, TargetSide, read_source, read_target
from xorepd.replication.format.marks import FOR, KEY, Commit, Mark, ReplicaKey, Role, decode
from xorepd.replication.format.ownership import temporary_name
from xorepd.xapi.cache import EventBatch, PoolCache
from xorepd.xapi.records import CONTENT_ID, Record, Vbd, Vdi, Vm, read_record

STREAM = ReplicaKey(pool="pool-1", vm="vm-1", sr="sr-1")
OTHER_STREAM = ReplicaKey(pool="pool-1", vm="vm-2", sr="sr-1")
SR, OTHER_SR = Ref("OpaqueRef:sr"), Ref("OpaqueRef:other-sr")
NULL = "OpaqueRef:NULL"


def earlier_text(mark: Mark, time: str) -> str:
    """Return a mark as earlier versions wrote it: without reference, content and order."""
    later = ("ref", "attempt", "lineage", "epoch", "order", "moment", "offset", "arrived")
    plain = {key: value for key, value in asdict(mark).items() if value}
    for key in (*later, "content", "disks"):
        plain.pop(key, None)
    for key in ("point", "title"):
        plain.get("commit", {}).pop(key, None)
    return json.dumps({"v": 1, **plain, "time": time})


class World:
    """One pool's VMs and disks."""

    def __init__(self) -> None:
        self._raws: dict[Ref, tuple[type[Vm] | type[Vdi] | type[Vbd], raws.Raw]] = {}
        self._made = self._contents = 0

    def _add(self, cls: type[Vm] | type[Vdi] | type[Vbd], kind: str, raw: raws.Raw) -> Ref:
        ref = Ref(f"OpaqueRef:{kind}-{self._made}")
        self._made += 1
        raw["uuid"] = raw["uuid"] or f"{kind}-{self._made}-uuid"
        self._raws[ref] = cls, raw
        return ref

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._raws

    def raw(self, ref: Ref) -> raws.Raw:
        return self._raws[ref][1]

    def raws(self) -> list[tuple[type[Vm] | type[Vdi] | type[Vbd], Ref, raws.Raw]]:
        """Return all objects: their class, reference and record."""
        return [(cls, ref, raw) for ref, (cls, raw) in self._raws.items()]

    def uuid(self, ref: Ref) -> str:
        return str(self.raw(ref)["uuid"])

    def _now(self) -> str:
        return f"20260302T12:{self._made // 60:02d}:{self._made % 60:02d}Z"

    def vm(self, name: str = "", **changes: Any) -> Ref:
        return self._add(Vm, "vm", raws.vm("", name_label=name, **changes))

    def disk(self, **changes: Any) -> Ref:
        """Make a disk; it has been written before, so it has a content id."""
        made = self._add(Vdi, "vdi", raws.vdi("", **{"SR": SR} | changes))
        self.raw(made)["other_config"] = {CONTENT_ID: self._new_content()} | dict(
            self.raw(made)["other_config"]
        )
        return made

    def _new_content(self) -> str:
        self._contents += 1
        return f"content-{self._contents}"

    def write(self, disk: Ref) -> None:
        """Attach a disk for writing somewhere, write to it, and detach it."""
        self.set_key(disk, CONTENT_ID, self._new_content())

    def content_id(self, disk: Ref) -> str:
        return str(self.raw(disk)["other_config"].get(CONTENT_ID, ""))

    def attach(self, vm: Ref, disk: Ref, device: str = "0", **changes: Any) -> Ref:
        ref = self._add(Vbd, "vbd", raws.vbd("", vm, disk, userdevice=device, **changes))
        self.raw(vm)["VBDs"].append(ref)
        if disk in self._raws:
            self.raw(disk)["VBDs"].append(ref)
            if self.raw(ref)["currently_attached"] and self.raw(ref)["mode"] == "RW":
                self.raw(disk)["other_config"].pop(CONTENT_ID, None)
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

    def revert(self, vm: Ref, snapshot: Ref) -> None:
        """Give a VM clones of the disks that a snapshot has, and let the snapshots follow them."""
        for vbd in list(self.raw(vm)["VBDs"]):
            disk = self.raw(vbd)["VDI"]
            self.detach(vbd)
            self.destroy(disk)
        for vbd in self.raw(snapshot)["VBDs"]:
            disk = self.raw(vbd)["VDI"]
            made, former = self.clone_disk(disk), self.raw(disk)["snapshot_of"]
            for _, raw in self._raws.values():
                if raw.get("snapshot_of") == former:
                    raw["snapshot_of"] = made
            self.attach(vm, made, self.raw(vbd)["userdevice"])

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

    def moment(self, ref: Ref) -> str:
        """Return when a snapshot was taken, as marks have it."""
        taken = self.raw(ref)["snapshot_time"]
        return datetime.strptime(taken, "%Y%m%dT%H:%M:%SZ").replace(tzinfo=UTC).isoformat()

    def mark(self, ref: Ref, role: Role, *, unsigned: bool = False, **facts: Any) -> Mark:
        """Write our mark on an object, as the run does; on a disk with what it holds now."""
        facts = {"stream": STREAM, "run": "run-1"} | facts
        if not unsigned:
            facts = {"content": self.content_id(ref)} | facts
        mark = Mark(role=role, **facts)
        if not unsigned:
            mark = mark.on(self.uuid(ref), ref)
        self.raw(ref)["other_config"][KEY] = mark.encode()
        return mark

    def mark_earlier(self, ref: Ref) -> None:
        """Write the mark of an object anew, in the earlier form."""
        mark = self.mark_on(ref)
        self.set_key(ref, KEY, earlier_text(mark, mark.moment))

    def mark_on(self, ref: Ref) -> Mark:
        mark = decode(self.raw(ref)["other_config"])
        assert mark is not None
        return mark

    def set_key(self, ref: Ref, key: str, value: str) -> None:
        self.raw(ref)["other_config"][key] = value

    async def cache(self, *others: Record) -> PoolCache:
        """Return the records of the pool, and others of classes that it does not make."""
        cache = PoolCache()
        records: list[Record] = [
            read_record(cls, ref, raw) for ref, (cls, raw) in self._raws.items()
        ]
        await cache.apply(EventBatch("1,1", (*records, *others), (), {}, is_first=True))
        return cache


class SourceWorld(World):
    """A pool with a VM of two disks, and our snapshots of it."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = 0
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
        self._taken += 1
        facts: dict[str, Any] = {"stream": STREAM.of_source, "run": run}
        facts |= {"order": self._taken, "moment": self.moment(made)}
        for disk in (made, *self.disks(made)):
            for sr, use in uses.items():
                self.set_key(disk, FOR + sr.replace("_", "-"), use)
        for disk in self.disks(made):
            origin = self.raw(disk)["snapshot_of"]
            content: dict[str, Any] = {"snapshot": self.uuid(disk), "disk": self.uuid(origin)}
            self.mark(disk, Role.SOURCE, **facts, **content)
        names = {str(device): self.uuid(disk) for device, disk in enumerate(self.disks(made))}
        self.mark(made, Role.SOURCE, **facts, snapshot=self.uuid(made), disks=names)
        return made

    def earlier_snapshot(self, run: str = "run-1", *, confirmed: bool) -> Ref:
        """Take a snapshot whose marks name their only target, as earlier versions did."""
        made = self.source_snapshot(run)
        for each in (made, *self.disks(made)):
            mark = replace(self.mark_on(each), stream=STREAM, confirmed=confirmed and each == made)
            self.set_key(each, KEY, earlier_text(mark, mark.moment))
        return made

    def unsigned_snapshot(self, run: str = "run-9") -> Ref:
        """Take a snapshot that its run never came to sign: it has the name of the call."""
        return self.snapshot(self.web, temporary_name(run))

    async def read(self, stream: ReplicaKey = STREAM) -> SourceSide:
        cache = await self.cache()
        return read_source(cache, stream, cache.vms[self.web])


class TargetWorld(World):
    """A pool with a replica, step by step as a run makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.replica: Ref = Ref(NULL)
        self._order = 0

    def stage(self, run: str = "run-1", contents: tuple[str, ...] = ("c-0", "c-1")) -> list[Ref]:
        """Create signed staging disks, one for each content."""
        made = []
        for device, content in enumerate(contents):
            disk = self.disk()
            facts: dict[str, Any] = {
                "snapshot": content,
                "disk": f"d-{device}",
                "device": str(device),
            }
            self.mark(disk, Role.DISK, run=run, **facts)
            made.append(disk)
        return made

    def create_replica(self, run: str = "run-1") -> None:
        self.replica = self.vm("replica of web01")
        self.mark(self.replica, Role.REPLICA, run=run)

    def begin_commit(self, staged: list[Ref], run: str = "run-1") -> Commit:
        """Write on the replica what is about to be swapped."""
        drives = [self.raw(vbd) for vbd in self.raw(self.replica)["VBDs"]]
        self._order += 1
        new = {str(device): self.uuid(disk) for device, disk in enumerate(staged)}
        commit = Commit(
            run=run,
            old={vbd["userdevice"]: self.uuid(vbd["VDI"]) for vbd in drives},
            new=new,
            point=temporary_name(run),
            title=f"point of {run}",
        )
        facts: dict[str, Any] = {
            "snapshot": f"snapshot of {run}",
            "order": self._order,
            "disks": new,
        }
        moment = datetime(2026, 3, 2, 11, self._order, tzinfo=UTC).isoformat()
        self.mark(self.replica, Role.REPLICA, run=run, **facts, moment=moment, commit=commit)
        return commit

    def swap(self, staged: list[Ref]) -> None:
        for vbd in list(self.raw(self.replica)["VBDs"]):
            self.detach(vbd)
        for device, disk in enumerate(staged):
            self.attach(self.replica, disk, str(device))

    def take_point(self) -> Ref:
        """Snapshot the replica in its commit; nothing is marked yet."""
        commit = self.mark_on(self.replica).commit
        assert commit is not None
        return self.snapshot(self.replica, commit.point)

    def sign_point(self, point: Ref, run: str = "run-1") -> None:
        disks = self.disks(point)
        for device, disk in enumerate(disks):
            content = self.content_of(self.raw(disk)["snapshot_of"])
            facts: dict[str, Any] = {
                "snapshot": content,
                "disk": f"d-{device}",
                "device": str(device),
            }
            facts["content"] = self.mark_on(disk).content
            self.mark(disk, Role.POINT, run=run, **facts)
        inherited = replace(
            self.mark_on(self.replica).on(self.uuid(point), point),
            role=Role.POINT,
            arrived=self.moment(point),
            disks={str(device): self.uuid(disk) for device, disk in enumerate(disks)},
            commit=None,
        )
        self.set_key(point, KEY, inherited.encode())
        self.raw(point)["name_label"] = f"point of {run}"

    def release(self) -> None:
        self.set_key(self.replica, KEY, replace(self.mark_on(self.replica), commit=None).encode())

    def content_of(self, disk: Ref) -> str:
        return self.mark_on(disk).snapshot

    def all_earlier(self) -> None:
        """Write all marks anew, in the earlier form."""
        for ref, (_, raw) in self._raws.items():
            if KEY in raw.get("other_config", {}):
                self.mark_earlier(ref)

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
        self.release()
        for disk in old:
            self.destroy(disk)
        return point

    async def read(self, stream: ReplicaKey = STREAM, sr: Ref = SR) -> TargetSide:
        return read_target(await self.cache(), stream, sr)


def uuids(disks: Any) -> set[VdiUuid | VmUuid]:
    return {each.uuid for each in disks}
