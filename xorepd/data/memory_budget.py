"""The memory that all transfers of a daemon together may take for data on its way. No I/O.

    take  ───► what a disk cannot do without, all at once, in turn; waits for it
    grow  ───► more, of what is free, up to a fair share; never waits
    give  ◄─── that again, as others come or the budget shrinks
    close ◄─── everything

Whoever waits holds nothing: what he had he has given back before. And who has what he needs waits
for nobody's memory. So there is no circle of disks that wait for each other, however they meet
elsewhere. Disks that read together take what all of them need as one.

A fair share is what the needs of all, also of those who wait, leave of the budget, in equal parts.

What is counted are the bytes of disks: in our buffers, in queues, and what was asked for and comes
through sockets. A transport that collects data by itself has a bound of its own on top of it, such
as the 64 MiB for each relay of `compressed`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from xorepd.units import MiB

READING = 3 * MiB
"""For a disk that is read: a piece of 1 MiB in hand, and 2 MiB asked for or in a queue."""
WRITING = 1 * MiB
"""For one that is written: what its socket has not taken yet, and a batch of small extents."""
CARRYING = READING + WRITING
COMPARING = 2 * READING

USUAL = 256 * MiB
"""As in a configuration that does not mention it."""

OnWait = Callable[[bool], None]
"""Told that waiting begins, or ends."""


class MemoryBudget:
    """So many bytes, and who has them or waits for them.

    Args:
        size: may be changed at any time. When it shrinks, what was taken is given back as those
            who have it come to an end.
    """

    def __init__(self, size: int = USUAL) -> None:
        self._size = size
        self._needs = self._extras = 0
        self._having: set[Allocation] = set()
        self._queue: deque[_Request] = deque()

    @property
    def size(self) -> int:
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size
        self._admit()

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        return self._needs + self._extras

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(len(request.open) for request in self._queue)

    @property
    def share(self) -> int:
        """Bytes that each may have beyond its need."""
        coming = sum(request.size for request in self._queue)
        left = self._size - self._needs - coming
        return max(0, left) // max(1, len(self._having) + self.waiting)

    @contextmanager
    def allocate(self, on_wait: OnWait = lambda waits: None) -> Iterator[Allocation]:
        """Provide what one disk, or one shared read, takes: nothing at first, nothing afterwards.

        Args:
            on_wait: told when it waits.
        """
        allocation = Allocation(self, on_wait)
        try:
            yield allocation
        finally:
            allocation.is_closed = True
            self._drop(allocation)
            self._admit()  # it may have been one of several that wait together

    async def take(self, needs: Mapping[Allocation, int]) -> None:
        """Return when each of these has what it needs: at once, or after those who came before.

        More than the whole budget is given to whoever is alone.

        Args:
            needs: bytes. Where all have so much already there is nothing to wait for.
        """
        if all(allocation.need >= need for allocation, need in needs.items()):
            return
        for allocation in needs:
            self._drop(allocation)
        request = _Request(needs)
        self._queue.append(request)
        self._admit()
        if request.granted.done():
            return
        for allocation in needs:
            allocation.on_wait(True)
        try:
            await request.granted
        finally:
            if request in self._queue:  # cancelled: those behind it may fit
                self._queue.remove(request)
                self._admit()
            for allocation in needs:
                allocation.on_wait(False)

    def grow(self, allocation: Allocation, size: int) -> bool:
        """Give one more, if so much is free and nobody waits; return whether."""
        if allocation not in self._having or self._queue:
            return False
        if allocation.extra + size > self.share or self.held + size > self._size:
            return False
        allocation.extra += size
        self._extras += size
        return True

    def give(self, allocation: Allocation, size: int) -> None:
        """Take back what one had grown by."""
        if allocation in self._having:
            allocation.extra -= size
            self._extras -= size
            self._admit()

    def _drop(self, allocation: Allocation) -> None:
        if allocation in self._having:
            self._having.remove(allocation)
            self._needs -= allocation.need
            self._extras -= allocation.extra
            allocation.need = allocation.extra = 0
            self._admit()

    def _admit(self) -> None:
        """Serve those who wait, in the order in which they came, as far as it goes."""
        while self._queue:
            request = self._queue[0]
            if self._having and self.held + request.size > self._size:
                return
            self._queue.popleft()
            if request.granted.cancelled():
                continue
            for allocation, need in request.open.items():
                allocation.need = need
                self._needs += need
                self._having.add(allocation)
            request.granted.set_result(None)


class Allocation:
    """What one has of a budget; made by `MemoryBudget.holding`."""

    def __init__(self, budget: MemoryBudget, on_wait: OnWait = lambda waits: None) -> None:
        self._budget = budget
        self.on_wait = on_wait
        self.need = 0
        self.extra = 0
        """Bytes that it has grown by."""
        self.is_closed = False

    @property
    def surplus(self) -> int:
        """Bytes of `extra` that others should have by now."""
        return max(0, self.extra - self._budget.share)

    async def take(self, need: int) -> None:
        """Return when it has what it needs; see `MemoryBudget.take`."""
        await self._budget.take({self: need})

    def grow(self, size: int) -> bool:
        return self._budget.grow(self, size)

    def give(self, size: int) -> None:
        self._budget.give(self, size)


class _Request:
    """Some who wait for what they need together."""

    def __init__(self, needs: Mapping[Allocation, int]) -> None:
        self.needs = needs
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def open(self) -> dict[Allocation, int]:
        """What is still to be had: for who has gone, or has got it otherwise, nothing."""
        return {
            allocation: need
            for allocation, need in self.needs.items()
            if not allocation.is_closed and not allocation.need
        }

    @property
    def size(self) -> int:
        return sum(self.open.values())


class ReadAhead:
    """How many bytes may be under way: some of what is needed, and more as long as there is more.

    Args:
        allocation: what it grows in; None lets it grow as it likes.
        first: at the beginning, and at least.
        largest: at most.
    """

    def __init__(self, allocation: Allocation | None, first: int, largest: int) -> None:
        self._allocation, self._first, self._largest = allocation, first, largest
        self._extra = 0
        """What it has of the allocation: given back when it is used no more."""
        self.size = first

    def widen(self, by: int) -> bool:
        """Let more be under way, if there is memory for it; return whether."""
        if self.size + by > self._largest:
            return False
        more = self.size + by - self._first - self._extra
        if more > 0:
            if self._allocation is not None and not self._allocation.grow(more):
                return False
            self._extra += more
        self.size += by
        return True

    def narrow(self, by: int) -> None:
        """Let less be under way: it was not needed."""
        self.size = max(self._first, self.size - by)

    def fit(self, under_way: int) -> None:
        """Give back what others need, as soon as it is free.

        Args:
            under_way: bytes that are at this moment.
        """
        if self._allocation is None or not self._extra:
            return
        allowed = self._first + self._extra - self._allocation.surplus
        self.size = max(self._first, min(self.size, allowed))
        kept = max(self.size, under_way) - self._first
        if kept < self._extra:
            given, self._extra = self._extra - kept, kept
            self._allocation.give(given)

    def close(self) -> None:
        """Give back all that it has grown by; nothing is under way any more."""
        if self._allocation is not None and self._extra:
            self._allocation.give(self._extra)
        self._extra, self.size = 0, self._first
