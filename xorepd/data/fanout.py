"""Read a disk once for several targets: each branch takes the data at its own pace.

    reader ─► pump ─┬─► queue ─► branch ─► transport
                    └─► queue ─► branch ─► transport

A queue holds `QUEUE_BYTES` bytes. A piece is copied once, and the queues share the copy. While all
queues are full the pump waits, and so the reader does. While one is full and another branch has
nothing to do, the slow branch delays the other. Then the queues grow, as long as there is memory.
After that the delay may last `FIRST_DELAY_S`, and a twentieth of the time of the read, because
every transfer stops for a moment now and then. Then the slow branch is detached. After the data in
its queue it continues with a reader of its own.

The memory for all branches and for the shared reader is taken at once, before the reader is opened.
While a branch has no reader of its own, that reader's memory is for its queue. So no branch that
others wait for can wait for memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, closing

from xorepd.data.memory_budget import CARRYING, READING, Allocation, MemoryBudget, ReadAhead
from xorepd.data.reader import Piece, Reader
from xorepd.errors import DataError
from xorepd.extents import Extent
from xorepd.units import MiB

PIECE = 1 * MiB
"""Largest piece of any reader."""

QUEUE_BYTES = READING - PIECE
"""Bytes that one branch may lag: with one more piece, as much as a reader needs."""

LARGEST_QUEUE = 16 * MiB
"""The same where there is memory: what a connection of 1 Gbit/s moves in 130 ms."""

FIRST_DELAY_S = 0.25
"""Seconds by which slow branches may delay the others at the beginning of a read."""

DELAY_SHARE = 0.05
"""Part of the elapsed time by which that grows. After the two minutes of a segment of an import, it
covers the seconds that the pool takes to confirm the segment."""

LARGEST_DELAY_S = 5.0
"""Largest delay: a target that hangs costs the others no more."""

OpenReader = Callable[[Allocation], AbstractAsyncContextManager[Reader]]
"""Opens the shared reader, which reads ahead in this memory."""
OpenRest = Callable[[Reader, int], AbstractAsyncContextManager[Reader]]
"""Opens a reader for the rest of a read, from an offset on."""


class Branch:
    """A `Reader` of the data of the shared reader; made by `FanOut.attach`."""

    def __init__(self, fan: FanOut, allocation: Allocation) -> None:
        self._fan = fan
        self.allocation = allocation
        self.open_rest: OpenRest | None = None
        """Opens the rest after it was detached; set before reading."""
        self._queue: deque[tuple[int, bytes]] = deque()
        self._filled = asyncio.Event()
        self._failure: Exception | None = None
        self.backlog = 0
        """Bytes in its queue and in use by its target."""
        self.is_waiting = False
        """Whether its target waits for data."""
        self.is_attached = True
        self.has_all = False
        """Whether the shared read is complete."""
        self.shared_bytes = 0
        """Bytes that came from the shared read."""

    @property
    def virtual_size(self) -> int:
        return self._fan.reader.virtual_size

    @property
    def extents(self) -> Iterable[Extent]:
        return self._fan.reader.extents

    async def opened(self) -> None:
        """Wait until the shared reader is open, so that its size and extents are known.

        Raises:
            Exception: the reader could not be opened.
        """
        await self._fan.opened()
        if self._failure is not None:
            raise self._failure

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        position = 0
        while (piece := await self._next()) is not None:
            offset, data = piece
            yield offset, memoryview(data)
            position = offset + len(data)
            self.backlog -= len(data)
            self.shared_bytes += len(data)
            self._fan.stir()
        if self.has_all:
            return
        assert self.open_rest is not None
        async with (
            self.open_rest(self._fan.reader, position) as reader,
            aclosing(reader.pieces()) as rest,
        ):
            async for piece_of_rest in rest:
                yield piece_of_rest

    async def _next(self) -> tuple[int, bytes] | None:
        """Return the next piece of the shared read; None after the last."""
        while not self._queue and self.is_attached:
            self._filled.clear()
            self.is_waiting = True
            self._fan.stir()
            await self._filled.wait()
            self.is_waiting = False
        if self._failure is not None:
            raise self._failure
        return self._queue.popleft() if self._queue else None

    def give(self, offset: int, data: bytes) -> None:
        self._queue.append((offset, data))
        self.backlog += len(data)
        self._filled.set()

    def part(self, *, failure: Exception | None = None, has_all: bool = False) -> None:
        """Leave the shared read: it failed, is complete, or continues without this branch."""
        self.is_attached, self._failure, self.has_all = False, failure, has_all
        self._filled.set()
        self._fan.stir()


def most_branches(budget: MemoryBudget) -> int:
    """Return how many branches one shared read may have: their needs must fit the budget."""
    return (budget.size - READING) // CARRYING


class FanOut:
    """One reader and its branches.

    Args:
        open_reader: Called by `run`.
        budget: The memory of the reader and all branches.
        on_slow: Called with a branch that was detached.
    """

    def __init__(
        self,
        open_reader: OpenReader,
        budget: MemoryBudget,
        *,
        on_slow: Callable[[Branch], None] = lambda branch: None,
        window: int = QUEUE_BYTES,
        patience_s: float = FIRST_DELAY_S,
    ) -> None:
        self._open_reader, self.budget, self._on_slow = open_reader, budget, on_slow
        self._first_queue, self._patience_s = window, patience_s
        self._branches: list[Branch] = []
        self._stirred, self._opened = asyncio.Event(), asyncio.Event()
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader:
        """The shared reader; it may be closed already."""
        assert self._reader is not None
        return self._reader

    async def opened(self) -> None:
        await self._opened.wait()

    def attach(self, allocation: Allocation) -> Branch:
        """Add a branch, before `run` begins.

        Args:
            allocation: The memory of the branch.
        """
        branch = Branch(self, allocation)
        self._branches.append(branch)
        return branch

    @property
    def attached(self) -> list[Branch]:
        return [branch for branch in self._branches if branch.is_attached]

    def stir(self) -> None:
        """Wake the pump, because a branch has changed."""
        self._stirred.set()

    async def run(self) -> None:
        """Read and pass the data to the branches, until the end or until no branch is left.

        A failure is raised in the branches.
        """
        failure: Exception | None = DataError("the read that several targets share was cancelled")
        try:
            with self.budget.allocate() as allocation:
                needs = {branch.allocation: CARRYING for branch in self.attached}
                await self.budget.take({allocation: READING, **needs})
                async with self._open_reader(allocation) as reader:
                    self._reader = reader
                    self._opened.set()
                    await self._pump(reader, allocation)
            failure = None
        except Exception as error:
            failure = error
        finally:
            for branch in self.attached:
                branch.part(failure=failure, has_all=failure is None)
            self._opened.set()

    async def _pump(self, reader: Reader, allocation: Allocation) -> None:
        patience = DelayAllowance(self._patience_s, asyncio.get_running_loop().time())
        with closing(ReadAhead(allocation, self._first_queue, LARGEST_QUEUE)) as window:
            async with aclosing(reader.pieces()) as pieces:
                async for offset, data in pieces:
                    await self._room(window, patience)
                    if not self.attached:
                        return
                    copy = bytes(data)
                    for branch in self.attached:
                        branch.give(offset, copy)

    async def _room(self, window: ReadAhead, patience: DelayAllowance) -> None:
        """Wait until every attached branch can take a piece, or is no longer attached."""
        loop = asyncio.get_running_loop()
        behind = max(branch.backlog for branch in self._branches)
        if behind <= window.size // 2:
            window.narrow(PIECE)
        window.fit(behind)
        while full := [branch for branch in self.attached if branch.backlog >= window.size]:
            self._stirred.clear()
            if not any(branch.is_waiting for branch in self.attached):
                await self._stirred.wait()
                continue
            if window.widen(PIECE):
                continue
            try:
                async with asyncio.timeout(patience.left(loop.time())):
                    await self._stirred.wait()
            except TimeoutError:
                for branch in full:
                    if branch.is_attached and branch.backlog >= window.size:
                        branch.part()
                        self._on_slow(branch)
            patience.spend(loop.time())


class DelayAllowance:
    """How long slow branches may still delay the others. It grows with time; waiting uses it up.

    Args:
        first_s: Initial seconds.
        now: Loop time.
    """

    def __init__(self, first_s: float, now: float) -> None:
        self._left, self._most, self._at = first_s, max(first_s, LARGEST_DELAY_S), now

    def left(self, now: float) -> float:
        self._left = min(self._left + DELAY_SHARE * (now - self._at), self._most)
        self._at = now
        return self._left

    def spend(self, until: float) -> None:
        """Count the time since the last call of `left` as waiting."""
        self._left = max(0.0, self._left - (until - self._at))
        self._at = until
