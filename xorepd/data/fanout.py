"""One reader for several who want the same: read once, given to each branch at its own pace.

    reader ─► pump ─┬─► queue ─► branch ─► transport
                    └─► queue ─► branch ─► transport

A queue holds `QUEUE_BYTES` bytes. A piece is copied once, and the queues share the copy. While all
queues are full the pump waits, and so the reader does. While one is full and another branch has
nothing to do, the slow branch holds up the other. The queues get longer then, as long as there is
memory. Streams stop for a moment here and there, so the rest may last `FIRST_DELAY_S`, and a
twentieth of the time that the read has taken. Then the slow branch is detached. It goes on behind
what it has in its queue with a reader of its own.

The memory for all of it is taken before the reader is opened, as one: what every branch needs by
itself, and what the shared reader needs. A branch that has no reader of its own has room for its
queue instead. So nobody who is waited for here waits for memory.
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
"""No reader gives more at once."""

QUEUE_BYTES = READING - PIECE
"""Bytes that one branch may be behind: with the piece that comes on top, what a reader needs."""

LARGEST_QUEUE = 16 * MiB
"""The same where there is memory: what a connection of 1 Gbit/s moves in 130 ms."""

FIRST_DELAY_S = 0.25
"""Seconds for which slow branches may hold up the others at the beginning of a read."""

DELAY_SHARE = 0.05
"""Part of the time by which that grows: after the two minutes that a segment of an import takes,
it covers the seconds that a pool takes to confirm it."""

LARGEST_DELAY_S = 5.0
"""Where it ends growing: a target that hangs costs the others no more."""

OpenReader = Callable[[Allocation], AbstractAsyncContextManager[Reader]]
"""Open the shared reader, which reads ahead in this memory."""
OpenRest = Callable[[Reader, int], AbstractAsyncContextManager[Reader]]
"""Open what a reader would still give from an offset on."""


class Branch:
    """A `Reader` that gives what the shared one does; made by `FanOut.attach`."""

    def __init__(self, fan: FanOut, allocation: Allocation) -> None:
        self._fan = fan
        self.allocation = allocation
        self.open_rest: OpenRest | None = None
        """What it goes on with when it is detached; set before it is read."""
        self._queue: deque[tuple[int, bytes]] = deque()
        self._filled = asyncio.Event()
        self._failure: Exception | None = None
        self.backlog = 0
        """Bytes that it has not done with: in its queue, and in its hands."""
        self.is_waiting = False
        """Whether its taker waits for it."""
        self.is_attached = True
        self.has_all = False
        """Whether the shared reader has come to its end."""
        self.shared_bytes = 0
        """How much it has given of the shared read."""

    @property
    def virtual_size(self) -> int:
        return self._fan.reader.virtual_size

    @property
    def extents(self) -> Iterable[Extent]:
        return self._fan.reader.extents

    async def opened(self) -> None:
        """Wait until the shared reader is open: its size and extents are known then.

        Raises:
            Exception: what opening it raised.
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
        """Return the next piece of the shared read; None when no more will come of it."""
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
        """Get no more of the shared read: it failed or ended, or went on without this one."""
        self.is_attached, self._failure, self.has_all = False, failure, has_all
        self._filled.set()
        self._fan.stir()


def most_branches(budget: MemoryBudget) -> int:
    """Return how many one shared read may have: what they need is had at once or never."""
    return (budget.size - READING) // CARRYING


class FanOut:
    """One reader and its branches.

    Args:
        open_reader: opened by `run`.
        budget: where the memory comes from, that of the branches too.
        on_slow: told of a branch that was detached.
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
        """The shared reader, open or not any more."""
        assert self._reader is not None
        return self._reader

    async def opened(self) -> None:
        await self._opened.wait()

    def attach(self, allocation: Allocation) -> Branch:
        """Return one more branch; `run` has not begun yet.

        Args:
            allocation: has what the branch needs once the reader is open.
        """
        branch = Branch(self, allocation)
        self._branches.append(branch)
        return branch

    @property
    def attached(self) -> list[Branch]:
        return [branch for branch in self._branches if branch.is_attached]

    def stir(self) -> None:
        """Let the pump look again: a branch has moved."""
        self._stirred.set()

    async def run(self) -> None:
        """Read, and give to the branches, until the end or until nobody is left.

        What fails here fails in the branches.
        """
        failure: Exception | None = DataError("the reading that several targets shared was ended")
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
    """How long somebody may still hold up the others: it grows with time, and is spent by waiting.

    Args:
        first_s: at the beginning.
        now: loop time.
    """

    def __init__(self, first_s: float, now: float) -> None:
        self._left, self._most, self._at = first_s, max(first_s, LARGEST_DELAY_S), now

    def left(self, now: float) -> float:
        self._left = min(self._left + DELAY_SHARE * (now - self._at), self._most)
        self._at = now
        return self._left

    def spend(self, until: float) -> None:
        """Count what has passed since `left` was asked as waiting."""
        self._left = max(0.0, self._left - (until - self._at))
        self._at = until
