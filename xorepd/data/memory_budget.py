"""The memory that all transfers of a daemon share for data in transit. No I/O.

    take  ───► what a disk needs at least, all at once; waits in turn
    grow  ───► more, if it is free, up to a fair share; never waits
    give  ◄─── returns what it grew by, as others come or the budget shrinks
    close ◄─── returns everything

A disk that waits for memory holds none: it returns what it had before it waits. A disk that has
what it needs never waits for memory. So no circle of disks can wait for each other. Disks that
share a read take the needs of all of them at once.

The fair share is the budget without the needs of all disks, waiting ones included, in equal parts.

The budget counts the data of disks: in our buffers, in queues, and requested through sockets. A
transport that buffers data itself has a bound of its own in addition, such as the 64 MiB for each
relay of `compressed`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from xorepd.units import MiB

READING = 3 * MiB
"""To read a disk: a piece of 1 MiB in hand, and 2 MiB requested or in a queue."""
WRITING = 1 * MiB
"""To write a disk: what the socket has not sent yet, and a batch of small extents."""
CARRYING = READING + WRITING
COMPARING = 2 * READING

USUAL = 256 * MiB
"""The default of the configuration."""

OnWait = Callable[[bool], None]
"""Called when a wait begins (True) or ends (False)."""


class MemoryBudget:
    """A number of bytes, and its allocations.

    Args:
        size: May change at any time. After it has shrunk, allocations are returned as their disks
            end.
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
        """Allocated bytes."""
        return self._needs + self._extras

    @property
    def waiting(self) -> int:
        """Number of allocations that wait."""
        return sum(len(request.open) for request in self._queue)

    @property
    def share(self) -> int:
        """Bytes that each allocation may have beyond its need."""
        coming = sum(request.size for request in self._queue)
        left = self._size - self._needs - coming
        return max(0, left) // max(1, len(self._having) + self.waiting)

    @contextmanager
    def allocate(self, on_wait: OnWait = lambda waits: None) -> Iterator[Allocation]:
        """Provide an empty allocation for one disk or shared read; return its memory at the end.

        Args:
            on_wait: Called when it waits.
        """
        allocation = Allocation(self, on_wait)
        try:
            yield allocation
        finally:
            allocation.is_closed = True
            self._drop(allocation)
            self._admit()  # others may have waited together with it

    async def take(self, needs: Mapping[Allocation, int]) -> None:
        """Wait until each of these has what it needs, after all earlier callers.

        A need above the whole budget is granted when there is no other allocation.

        Args:
            needs: Bytes. If all have as much already, return at once.
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
            if request in self._queue:  # cancelled: later requests may fit now
                self._queue.remove(request)
                self._admit()
            for allocation in needs:
                allocation.on_wait(False)

    def grow(self, allocation: Allocation, size: int) -> bool:
        """Let an allocation grow, if memory is free and no other waits; return whether it did."""
        if allocation not in self._having or self._queue:
            return False
        if allocation.extra + size > self.share or self.held + size > self._size:
            return False
        allocation.extra += size
        self._extras += size
        return True

    def give(self, allocation: Allocation, size: int) -> None:
        """Take back a part of what an allocation has grown by."""
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
        """Serve waiting requests in order, as long as they fit."""
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
    """The memory of one disk or shared read; made by `MemoryBudget.allocate`."""

    def __init__(self, budget: MemoryBudget, on_wait: OnWait = lambda waits: None) -> None:
        self._budget = budget
        self.on_wait = on_wait
        self.need = 0
        self.extra = 0
        """Bytes that it has grown by, beyond its need."""
        self.is_closed = False

    @property
    def surplus(self) -> int:
        """Bytes of `extra` above the fair share."""
        return max(0, self.extra - self._budget.share)

    async def take(self, need: int) -> None:
        """Wait until it has what it needs; see `MemoryBudget.take`."""
        await self._budget.take({self: need})

    def grow(self, size: int) -> bool:
        return self._budget.grow(self, size)

    def give(self, size: int) -> None:
        self._budget.give(self, size)


class _Request:
    """Allocations that wait together."""

    def __init__(self, needs: Mapping[Allocation, int]) -> None:
        self.needs = needs
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def open(self) -> dict[Allocation, int]:
        """The needs that are still open, without closed allocations and ones that have theirs."""
        return {
            allocation: need
            for allocation, need in self.needs.items()
            if not allocation.is_closed and not allocation.need
        }

    @property
    def size(self) -> int:
        return sum(self.open.values())


class ReadAhead:
    """How many bytes may be requested or queued at once. Grows while it helps and memory is free.

    Args:
        allocation: The memory that it grows in; None: without a limit.
        first: Initial and least size in bytes.
        largest: Largest size in bytes.
    """

    def __init__(self, allocation: Allocation | None, first: int, largest: int) -> None:
        self._allocation, self._first, self._largest = allocation, first, largest
        self._extra = 0
        """Bytes by which it has grown the allocation."""
        self.size = first

    def widen(self, by: int) -> bool:
        """Grow, if there is memory; return whether it did."""
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
        """Shrink, because the size was not needed."""
        self.size = max(self._first, self.size - by)

    def fit(self, under_way: int) -> None:
        """Return the memory above the fair share, as far as it is not in use.

        Args:
            under_way: Bytes in use now.
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
        """Return all that it has grown by; nothing is in use any more."""
        if self._allocation is not None and self._extra:
            self._allocation.give(self._extra)
        self._extra, self.size = 0, self._first
