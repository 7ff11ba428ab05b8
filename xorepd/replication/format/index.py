"""All our marks on one pool, by the stream and the role that they name. Pure.

A pool has thousands of objects, and a run asks a dozen times which of them belong to its stream. So
each mark is decoded once, when the record arrives (`Tables.index`), and found by what it says:

    marks = marks_on(cache)
    marks.vms.find(stream, Role.POINT, signed=True)

Signed means that the mark was written on the very object that bears it (see `ownership`). All
others were copied along, or belong to an object that its run did not come to sign.

Source snapshots serve all targets of their VM. They are found by `ReplicaKey.of_source`, in the
earlier form too, in which they also name a target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from xorepd.ids import Ref
from xorepd.replication.format.marks import Mark, ReplicaKey, Role, decode
from xorepd.replication.format.ownership import is_signed
from xorepd.xapi.records import Record, Vdi, Vm
from xorepd.xapi.tables import Tables

W = TypeVar("W", Vm, Vdi)


@dataclass(frozen=True, slots=True)
class Bearer(Generic[W]):
    """An object that bears a mark of ours."""

    what: W
    mark: Mark
    is_signed: bool
    """The mark was written on this very object, and is not a copy."""


class Bearers(Generic[W]):
    """What bears our marks among a pool's VMs, or among its disks."""

    def __init__(self) -> None:
        self._all: dict[Ref, Bearer[W]] = {}
        self._by: defaultdict[ReplicaKey | Role | None, dict[Ref, Bearer[W]]] = defaultdict(dict)

    def mark(self, ref: Ref) -> Mark | None:
        """Return the mark on an object, signed or not; None where it has none."""
        bearer = self._all.get(ref)
        return bearer.mark if bearer is not None else None

    def own_mark(self, ref: Ref) -> Mark | None:
        """Return the mark on an object if it was written on this very object."""
        bearer = self._all.get(ref)
        return bearer.mark if bearer is not None and bearer.is_signed else None

    def find(
        self,
        stream: ReplicaKey | None = None,
        role: Role | None = None,
        *,
        signed: bool | None = None,
    ) -> list[Bearer[W]]:
        """Return what bears a mark that says this; None stands for anything."""
        return [
            each
            for each in self._by.get(role if stream is None else stream, {}).values()
            if role in (None, each.mark.role) and signed in (None, each.is_signed)
        ]

    def put(self, what: W) -> None:
        self.drop(what.ref)
        mark = decode(what.other_config)
        if mark is not None:
            bearer = self._all[what.ref] = Bearer(what, mark, is_signed(what, mark))
            for key in _keys(mark):
                self._by[key][what.ref] = bearer

    def drop(self, ref: Ref) -> None:
        former = self._all.pop(ref, None)
        if former is not None:
            for key in _keys(former.mark):
                del self._by[key][ref]
                if not self._by[key]:
                    del self._by[key]


def _keys(mark: Mark) -> Iterator[ReplicaKey | Role | None]:
    yield from (None, mark.role, mark.stream)
    if mark.role is Role.SOURCE and mark.stream.sr:
        yield mark.stream.of_source


class MarkIndex:
    """All that bears our marks on one pool."""

    def __init__(self) -> None:
        self.vms = Bearers[Vm]()
        self.disks = Bearers[Vdi]()

    def put(self, record: Record) -> None:
        match record:
            case Vm():
                self.vms.put(record)
            case Vdi():
                self.disks.put(record)
            case _:
                pass

    def drop(self, record: Record) -> None:
        match record:
            case Vm():
                self.vms.drop(record.ref)
            case Vdi():
                self.disks.drop(record.ref)
            case _:
                pass


def marks_on(cache: Tables) -> MarkIndex:
    """Return our marks on a pool, as its records are now."""
    return cache.index(MarkIndex)
