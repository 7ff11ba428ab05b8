"""A pool's records as its events describe them: a copy that lags by a moment, never by more.

Written by the event feed alone. A reader that has just changed something, or decides by what it
reads, first waits for a barrier (`Pool.refresh`), after which the copy holds at least everything
that had happened when the barrier was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class EventBatch:
    """One answer of `event.from`, parsed in the thread that received it."""

    token: str
    changed: tuple[Record, ...]
    deleted: tuple[tuple[str, Ref], ...]
    """(lower-case class, ref) of what is gone."""
    counts: Mapping[str, int]
    """How many objects of each class exist, by lower-case class."""
    is_first: bool
    """The token was empty: `changed` is everything there is."""


class Cache:
    """Tables of records by reference, and a way to wait for them to change."""

    def __init__(self) -> None:
        self._tables: dict[type[Any], dict[Ref, Any]] = {cls: {} for cls in RECORDS.values()}
        self._by_uuid: dict[str, Record] = {}
        self._generation = -1
        self._changed = asyncio.Condition()
        self._failure: BaseException | None = None
        self._departed: dict[Ref, str] = {}
        """What those were called that have gone: an error often comes after that."""
        self.readings = 0
        """How often everything was read anew: what happened between two of them was not told."""

    # -- reading -----------------------------------------------------------------------------

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

    def part(self, vms: Iterable[Vm], vdis: Iterable[Vdi]) -> Cache:
        """Return these records as they are now, with the drives between them and what has those.

        For many looks at small parts of a large pool.
        """
        part = Cache()
        records: list[Vm | Vdi] = [*vms, *vdis]
        for record in records:
            part._remember(record)
            for vbd in self.present(Vbd, record.vbds):
                others: list[Record] = [vbd]
                others += [*self.present(Vm, [vbd.vm]), *self.present(Vdi, [vbd.vdi])]
                for other in others:
                    part._remember(other)
        return part

    # -- waiting -----------------------------------------------------------------------------

    async def wait_for(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Wait until something holds; return False when it does not within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(predicate)
        except TimeoutError:
            return False
        return True

    async def wait_for_generation(self, token: str, timeout: float) -> bool:
        """Wait until everything that a token of `event.inject` stands for has arrived.

        Raises:
            ValueError: it is no token.
        """
        wanted = generation(token)
        return await self.wait_for(lambda: self._generation > wanted, timeout)

    @property
    def failure(self) -> BaseException | None:
        """Why no events are coming, while none are."""
        return self._failure

    # -- writing (the event feed) ------------------------------------------------------------

    async def apply(self, batch: EventBatch) -> list[str]:
        """Take in one answer of `event.from`.

        Returns:
            Lower-case names of classes in which deletions were missed, to be read again whole.
            The server remembers a bounded number of deletions only.
        """
        async with self._changed:
            if batch.is_first:
                there = {record.ref for record in batch.changed}
                for cls, table in self._tables.items():
                    for ref in [ref for ref in table if ref not in there]:
                        self._forget(cls, ref)
                self.readings += 1
            for kind, ref in batch.deleted:
                self._forget(RECORDS[kind], ref)
            for record in batch.changed:
                self._remember(record)
            self._generation = generation(batch.token)
            self._failure = None
            self._changed.notify_all()
        return [
            kind
            for kind, cls in RECORDS.items()
            if kind in batch.counts and batch.counts[kind] != len(self._tables[cls])
        ]

    async def replace(self, cls: type[Record], records: Iterable[Record]) -> None:
        """Put a whole class in the place of what was known of it."""
        new = {record.ref: record for record in records}
        async with self._changed:
            for ref in [ref for ref in self._tables[cls] if ref not in new]:
                self._forget(cls, ref)
            for record in new.values():
                self._remember(record)
            self._changed.notify_all()

    async def fail(self, failure: BaseException | None) -> None:
        """Tell everyone who waits that no events are coming, until the next batch does."""
        async with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def _remember(self, record: Record) -> None:
        known: Record | None = self._tables[type(record)].get(record.ref)
        if known is not None and self._by_uuid.get(known.uuid) is known:
            del self._by_uuid[known.uuid]  # a UUID may change, a ref never
        self._tables[type(record)][record.ref] = record
        self._by_uuid[record.uuid] = record

    def _forget(self, cls: type[Record], ref: Ref) -> None:
        record: Record | None = self._tables[cls].pop(ref, None)
        if record is not None and self._by_uuid.get(record.uuid) is record:
            del self._by_uuid[record.uuid]
        if isinstance(record, _REMEMBERED):
            self._departed[ref] = self._name(record)
            if len(self._departed) > MOST_DEPARTED:
                del self._departed[next(iter(self._departed))]


_REMEMBERED = (Vm, Vdi, Sr, Host, Network)
MOST_DEPARTED = 1000
MOST_NAME = 120
"""Longest name in a sentence; XAPI takes any."""


def _named(kind: str, record: Vm | Vdi | Sr | Host | Network | PoolRecord | Task) -> str:
    name = " ".join(record.name_label.split())
    name = name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 1]}…"
    return f"{kind} {name} ({record.uuid})" if name else f"{kind} {record.uuid}"


def generation(token: str) -> int:
    """Return the database generation of an event token, `%020d,%020d`.

    Raises:
        ValueError: it is no token.
    """
    found = token.partition(",")[0]
    if len(found) > 20:
        raise ValueError(f"{found[:40]!r} is no token")
    return int(found or -1)
