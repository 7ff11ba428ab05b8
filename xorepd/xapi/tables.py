"""A pool's records by reference, as they are at one moment. Plain values: nothing here waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from xorepd.ids import Ref
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

REMEMBERED = (Vm, Vdi, Sr, Host, Network)
MOST_DEPARTED = 1000
MOST_NAME = 120
"""Longest name in a sentence; XAPI takes any."""


class Tables:
    """Tables of records by reference."""

    def __init__(self) -> None:
        self._tables: dict[type[Any], dict[Ref, Any]] = {cls: {} for cls in RECORDS.values()}
        self._by_uuid: dict[str, Record] = {}
        self._departed: dict[Ref, str] = {}
        """What those were called that have gone: an error often comes after that."""

    def table(self, cls: type[R]) -> Mapping[Ref, R]:
        return self._tables[cls]

    @property
    def vms(self) -> Mapping[Ref, Vm]:
        return self._tables[Vm]

    @property
    def vdis(self) -> Mapping[Ref, Vdi]:
        return self._tables[Vdi]

    @property
    def vbds(self) -> Mapping[Ref, Vbd]:
        return self._tables[Vbd]

    @property
    def vifs(self) -> Mapping[Ref, Vif]:
        return self._tables[Vif]

    @property
    def srs(self) -> Mapping[Ref, Sr]:
        return self._tables[Sr]

    @property
    def pbds(self) -> Mapping[Ref, Pbd]:
        return self._tables[Pbd]

    @property
    def hosts(self) -> Mapping[Ref, Host]:
        return self._tables[Host]

    @property
    def networks(self) -> Mapping[Ref, Network]:
        return self._tables[Network]

    @property
    def pifs(self) -> Mapping[Ref, Pif]:
        return self._tables[Pif]

    @property
    def tasks(self) -> Mapping[Ref, Task]:
        return self._tables[Task]

    @property
    def pool(self) -> PoolRecord:
        return next(iter(self.table(PoolRecord).values()))

    def by_uuid(self, cls: type[R], uuid: str) -> R | None:
        """Return the record of a class with a UUID."""
        found = self._by_uuid.get(uuid)
        return found if isinstance(found, cls) else None

    def describe(self, kind: str, ref: str) -> str:
        """Return what people call an object: `VM web01 (3d6b2b1e-…)`; "" where it is not known.

        May be called from any thread.

        Args:
            kind: its class, as far as that is known; it does not matter.
            ref: a reference to it, or its UUID.
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
        """Return the records behind references; those that dangle are left out."""
        table = self._tables[cls]
        return [table[ref] for ref in refs if ref in table]

    def part(self, vms: Iterable[Vm], vdis: Iterable[Vdi]) -> Tables:
        """Return these records as they are now, with the drives between them and what has those.

        For many looks at small parts of a large pool.
        """
        part = Tables()
        records: list[Vm | Vdi] = [*vms, *vdis]
        for record in records:
            part.put(record)
            for vbd in self.present(Vbd, record.vbds):
                others: list[Record] = [vbd]
                others += [*self.present(Vm, [vbd.vm]), *self.present(Vdi, [vbd.vdi])]
                for other in others:
                    part.put(other)
        return part

    def put(self, record: Record) -> None:
        """Take in a record, in the place of what was known of the object."""
        known: Record | None = self._tables[type(record)].get(record.ref)
        if known is not None and self._by_uuid.get(known.uuid) is known:
            del self._by_uuid[known.uuid]  # a UUID may change, a ref never
        self._tables[type(record)][record.ref] = record
        self._by_uuid[record.uuid] = record

    def drop(self, cls: type[Record], ref: Ref) -> None:
        """Leave out an object that is gone, but for its name."""
        record: Record | None = self._tables[cls].pop(ref, None)
        if record is not None and self._by_uuid.get(record.uuid) is record:
            del self._by_uuid[record.uuid]
        if isinstance(record, REMEMBERED):
            self._departed[ref] = self._name(record)
            if len(self._departed) > MOST_DEPARTED:
                del self._departed[next(iter(self._departed))]


def _named(kind: str, record: Vm | Vdi | Sr | Host | Network | PoolRecord | Task) -> str:
    name = " ".join(record.name_label.split())
    name = name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 1]}…"
    return f"{kind} {name} ({record.uuid})" if name else f"{kind} {record.uuid}"
