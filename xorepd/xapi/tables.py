"""The records of a pool by reference. Plain values, without I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, cast

from xorepd.ids import Ref, is_null
from xorepd.xapi.records import (
    RECORDS,
    Host,
    Network,
    Pbd,
    Pif,
    PoolRecord,
    Record,
    Sr,
    Task,
    Vbd,
    Vdi,
    Vif,
    Vm,
)

R = TypeVar("R", bound=Record)

POINTERS: Mapping[type[Any], tuple[str, ...]] = {
    Vm: ("snapshot_of", "suspend_vdi"),
    Vdi: ("snapshot_of",),
}
"""Fields by which a record is found from the object that they name."""

REMEMBERED = (Vm, Vdi, Sr, Host, Network)
MOST_DEPARTED = 1000
MOST_NAME = 120
"""Longest name in a sentence; XAPI takes any."""


class Index(Protocol):
    """What is derived from records: told of each change, so it is never out of date."""

    def put(self, record: Record) -> None:
        """Take in a record, in the place of an earlier one with the same reference."""
        ...

    def drop(self, record: Record) -> None:
        """Leave out a record that `put` took in."""
        ...


I = TypeVar("I", bound=Index)  # noqa: E741


class Tables:
    """Tables of records by reference."""

    def __init__(self) -> None:
        self._tables: dict[type[Any], dict[Ref, Any]] = {cls: {} for cls in RECORDS.values()}
        self.vms: Mapping[Ref, Vm] = self._tables[Vm]
        self.vdis: Mapping[Ref, Vdi] = self._tables[Vdi]
        self.vbds: Mapping[Ref, Vbd] = self._tables[Vbd]
        self.vifs: Mapping[Ref, Vif] = self._tables[Vif]
        self.srs: Mapping[Ref, Sr] = self._tables[Sr]
        self.pbds: Mapping[Ref, Pbd] = self._tables[Pbd]
        self.hosts: Mapping[Ref, Host] = self._tables[Host]
        self.networks: Mapping[Ref, Network] = self._tables[Network]
        self.pifs: Mapping[Ref, Pif] = self._tables[Pif]
        self.tasks: Mapping[Ref, Task] = self._tables[Task]
        self._by_uuid: dict[str, Record] = {}
        self._pointing: defaultdict[tuple[type[Any], str, Ref], dict[Ref, Any]] = defaultdict(dict)
        self._indexes: dict[Callable[[], Index], Index] = {}
        self._departed: dict[Ref, str] = {}
        """Names of objects that are gone, because an error about one often comes later."""

    def table(self, cls: type[R]) -> Mapping[Ref, R]:
        return self._tables[cls]

    @property
    def pool(self) -> PoolRecord:
        return next(iter(self.table(PoolRecord).values()))

    def by_uuid(self, cls: type[R], uuid: str) -> R | None:
        """Return the record of a class with a UUID."""
        found = self._by_uuid.get(uuid)
        return found if isinstance(found, cls) else None

    def describe(self, kind: str, ref: str) -> str:
        """Return the name of an object for people: `VM web01 (3d6b2b1e-…)`; "" if it is unknown.

        May be called from any thread.

        Args:
            kind: Class of the object; ignored.
            ref: A reference or UUID.
        """
        found = next((t[Ref(ref)] for t in self._tables.values() if Ref(ref) in t), None)
        found = found or self._by_uuid.get(ref)
        return self._departed.get(Ref(ref), "") if found is None else self._name(found)

    def _name(self, record: Record) -> str:
        match record:
            case Vm(is_a_snapshot=True):
                return _named("snapshot", record)
            case Vm(is_a_template=True):
                return _named("template", record)
            case Vbd(userdevice=device, vm=vm):
                return f"drive {device} of {self.describe('VM', vm) or 'a VM that is gone'}"
            case Vif(device=device, vm=vm):
                return f"interface {device} of {self.describe('VM', vm) or 'a VM that is gone'}"
            case Pbd(sr=sr, host=host):
                there = self.describe("host", host) or "a host that is gone"
                return f"PBD of {self.describe('SR', sr) or 'an SR that is gone'} on {there}"
            case Pif(network=network):
                return f"PIF of {self.describe('network', network) or 'a network that is gone'}"
            case _:
                return _named(record.kind, record)

    def present(self, cls: type[R], refs: Iterable[Ref]) -> list[R]:
        """Return the records of references, without dangling ones."""
        table = self._tables[cls]
        return [table[ref] for ref in refs if ref in table]

    def pointing(self, cls: type[R], field: str, to: Ref) -> list[R]:
        """Return the records of a class whose field names an object, which may be gone.

        Args:
            field: one of the `POINTERS` of the class.
            to: the object; nothing points to no object.
        """
        assert field in POINTERS[cls]
        return list(self._pointing.get((cls, field, to), {}).values())

    def index(self, kind: Callable[[], I]) -> I:
        """Return the index of a kind, made when it is first asked for and kept from then on.

        Args:
            kind: makes one without any records.
        """
        found = self._indexes.get(kind)
        if found is None:
            found = self._indexes[kind] = kind()
            for table in self._tables.values():
                for record in table.values():
                    found.put(record)
        return cast(I, found)

    def put(self, record: Record) -> None:
        """Add a record, or replace the old record of the object."""
        known: Record | None = self._tables[type(record)].get(record.ref)
        if known is not None:
            self._unlink(known)  # even its UUID may change, its ref never does
        self._tables[type(record)][record.ref] = record
        self._by_uuid[record.uuid] = record
        for key in _pointers(record):
            self._pointing[key][record.ref] = record
        for index in self._indexes.values():
            index.put(record)

    def drop(self, cls: type[Record], ref: Ref) -> None:
        """Remove an object that is gone; remember its name."""
        record: Record | None = self._tables[cls].pop(ref, None)
        if record is None:
            return
        self._unlink(record)
        for index in self._indexes.values():
            index.drop(record)
        if isinstance(record, REMEMBERED):
            self._departed[ref] = self._name(record)
            if len(self._departed) > MOST_DEPARTED:
                del self._departed[next(iter(self._departed))]

    def _unlink(self, record: Record) -> None:
        if self._by_uuid.get(record.uuid) is record:
            del self._by_uuid[record.uuid]
        for key in _pointers(record):
            self._pointing[key].pop(record.ref, None)
            if not self._pointing[key]:
                del self._pointing[key]


def _pointers(record: Record) -> list[tuple[type[Any], str, Ref]]:
    """Return what a record points to, each with the class of the record and the field."""
    cls = type(record)
    named = ((field, Ref(getattr(record, field))) for field in POINTERS.get(cls, ()))
    return [(cls, field, ref) for field, ref in named if not is_null(ref)]


def _named(kind: str, record: Vm | Vdi | Sr | Host | Network | PoolRecord | Task) -> str:
    name = " ".join(record.name_label.split())
    name = name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 1]}…"
    return f"{kind} {name} ({record.uuid})" if name else f"{kind} {record.uuid}"
