"""A copy of the records of a pool, which the event feed keeps up to date.

Only the event feed writes to it, so it lags by a moment. A caller that has just changed something,
or that decides by what it reads, first calls `Pool.refresh`. After that the copy has at least
everything that had happened at the time of the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from xorepd.ids import Ref
from xorepd.xapi.records import RECORDS, Record
from xorepd.xapi.tables import Tables


@dataclass(frozen=True, slots=True)
class EventBatch:
    """One answer of `event.from`, parsed in the thread that received it."""

    token: str
    changed: tuple[Record, ...]
    deleted: tuple[tuple[str, Ref], ...]
    """(lower-case class, ref) of deleted objects."""
    counts: Mapping[str, int]
    """How many objects of each class exist, by lower-case class."""
    is_first: bool
    """The token was empty, so `changed` has all objects."""


class PoolCache(Tables):
    """The tables of a pool, with a way to wait for changes."""

    def __init__(self) -> None:
        super().__init__()
        self._generation = -1
        self._changed = asyncio.Condition()
        self.failure: BaseException | None = None
        """Why no events are coming, while none are."""
        self.readings = 0
        """How often all objects were read again; events in between are lost."""

    # -- waiting -----------------------------------------------------------------------------

    async def wait_for(self, predicate: Callable[[], bool], timeout: float) -> bool:
        """Wait until a predicate holds; return False if it does not within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(predicate)
        except TimeoutError:
            return False
        return True

    async def wait_for_generation(self, token: str, timeout: float) -> bool:
        """Wait until all events up to a token of `event.inject` have arrived.

        Raises:
            ValueError: it is not a token.
        """
        wanted = generation(token)
        return await self.wait_for(lambda: self._generation > wanted, timeout)

    # -- writing (the event feed) ------------------------------------------------------------

    async def apply(self, batch: EventBatch) -> list[str]:
        """Apply one answer of `event.from`.

        Returns:
            Lower-case names of the classes of which deletions were lost, to read them again. The
            server remembers only a limited number of deletions.
        """
        async with self._changed:
            if batch.is_first:
                there = {record.ref for record in batch.changed}
                for cls, table in self._tables.items():
                    for ref in [ref for ref in table if ref not in there]:
                        self.drop(cls, ref)
                self.readings += 1
            for kind, ref in batch.deleted:
                self.drop(RECORDS[kind], ref)
            for record in batch.changed:
                self.put(record)
            self._generation = generation(batch.token)
            self.failure = None
            self._changed.notify_all()
        return [
            kind
            for kind, cls in RECORDS.items()
            if kind in batch.counts and batch.counts[kind] != len(self._tables[cls])
        ]

    async def replace(self, cls: type[Record], records: Iterable[Record]) -> None:
        """Replace all records of a class."""
        new = {record.ref: record for record in records}
        async with self._changed:
            for ref in [ref for ref in self._tables[cls] if ref not in new]:
                self.drop(cls, ref)
            for record in new.values():
                self.put(record)
            self._changed.notify_all()

    async def fail(self, failure: BaseException | None) -> None:
        """Note why events do not arrive, until the next batch, and wake all waiters."""
        async with self._changed:
            self.failure = failure
            self._changed.notify_all()


def generation(token: str) -> int:
    """Return the database generation of an event token, `%020d,%020d`.

    Raises:
        ValueError: it is not a token.
    """
    found = token.partition(",")[0]
    if len(found) > 20:
        raise ValueError(f"{found[:40]!r} is not a token")
    return int(found or -1)
