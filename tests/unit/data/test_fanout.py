from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from tests.unit.data.readers import LETTER, StringReader
from xorepd.data.fanout import DELAY_SHARE, LARGEST_DELAY_S, Branch, DelayAllowance, FanOut
from xorepd.data.memory_budget import Allocation, MemoryBudget
from xorepd.data.reader import Piece, Reader
from xorepd.data.remainder import Rest
from xorepd.errors import DataError, StreamCut

NEVER = float("inf")
TIGHT = 1
"""Bytes of a budget that is enough for one shared read, because it is alone, and for no more."""


class Source:
    """A disk that can be opened again and again; counts what is read of it."""

    def __init__(self, disk: str, *, fails_after: int | None = None) -> None:
        self.disk, self.fails_after = disk, fails_after
        self.readers: list[StringReader] = []

    @asynccontextmanager
    async def open(self, allocation: Allocation | None = None) -> AsyncIterator[Reader]:
        reader = StringReader(self.disk)
        self.readers.append(reader)
        yield reader if self.fails_after is None else Failing(reader, self.fails_after)

    @asynccontextmanager
    async def open_rest(self, shared: Reader, start: int) -> AsyncIterator[Reader]:
        async with self.open() as reader:
            yield Rest(reader, start, lambda offset, data: None)

    def content(self) -> list[tuple[int, bytes]]:
        return [
            (number * LETTER, letter.encode() * LETTER)
            for number, letter in enumerate(self.disk)
            if letter != "-"
        ]


class Failing:
    def __init__(self, inner: StringReader, after: int) -> None:
        self._inner, self._after = inner, after
        self.virtual_size, self.extents = inner.virtual_size, inner.extents

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._inner.pieces()) as pieces:
            async for piece in pieces:
                if self._inner.given > self._after:
                    raise StreamCut("disk", self._after)
                yield piece


def fan_of(
    source: Source,
    *,
    window: int = 2 * LETTER,
    patience_s: float = NEVER,
    on_slow: Callable[[Branch], None] = lambda branch: None,
    memory: int = TIGHT,
) -> FanOut:
    return FanOut(
        source.open, MemoryBudget(memory), window=window, patience_s=patience_s, on_slow=on_slow
    )


def branch_of(fan: FanOut, source: Source) -> Branch:
    branch = fan.attach(Allocation(fan.budget))
    branch.open_rest = source.open_rest
    return branch


class Taker:
    """Takes a branch piece by piece; asks for each after the first when it is let."""

    def __init__(self, branch: Branch, *, lets: int = 1000) -> None:
        self.branch = branch
        self.taken: list[tuple[int, bytes]] = []
        self._lets = asyncio.Semaphore(lets)

    async def run(self) -> None:
        async with aclosing(self.branch.pieces()) as pieces:
            async for offset, data in pieces:
                self.taken.append((offset, bytes(data)))
                await self._lets.acquire()

    def let_go(self) -> None:
        for _ in range(1000):
            self._lets.release()


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def test_every_branch_gets_everything_of_one_read() -> None:
    source = Source("AB-C--DEF")
    fan = fan_of(source)
    takers = [Taker(branch_of(fan, source)) for _ in range(3)]

    async with asyncio.TaskGroup() as group:
        group.create_task(fan.run())
        for taker in takers:
            await taker.branch.opened()
            group.create_task(taker.run())

    assert [taker.taken for taker in takers] == [source.content()] * 3
    assert len(source.readers) == 1
    assert {taker.branch.shared_bytes for taker in takers} == {6 * LETTER}
    assert takers[0].branch.virtual_size == 9 * LETTER


async def test_reader_waits_while_all_branches_are_full() -> None:
    source = Source("ABCDEFGH")
    fan = fan_of(source, patience_s=0)
    takers = [Taker(branch_of(fan, source), lets=0) for _ in range(2)]

    async with asyncio.TaskGroup() as group:
        group.create_task(fan.run())
        for taker in takers:
            group.create_task(taker.run())
        await settle()
        given, attached = source.readers[0].given, len(fan.attached)
        for taker in takers:
            taker.let_go()

    assert given == 3 * LETTER  # two in the queues, and one in the pump's hands
    assert attached == 2
    assert [taker.taken for taker in takers] == [source.content()] * 2


async def test_slow_branch_is_detached_and_goes_on_with_a_reader_of_its_own() -> None:
    source = Source("ABC-DEFGH")
    slow_ones: list[Branch] = []
    fan = fan_of(source, patience_s=0, on_slow=slow_ones.append)
    fast, slow = Taker(branch_of(fan, source)), Taker(branch_of(fan, source), lets=0)

    async with asyncio.TaskGroup() as group:
        group.create_task(fan.run())
        group.create_task(slow.run())
        await asyncio.wait({group.create_task(fast.run())})
        assert slow_ones == [slow.branch]
        slow.let_go()

    assert fast.taken == slow.taken == source.content()
    assert fast.branch.shared_bytes == 8 * LETTER
    assert slow.branch.shared_bytes == 2 * LETTER
    assert len(source.readers) == 2


async def test_slow_branch_that_is_given_time_stays() -> None:
    source = Source("ABCDEFGH")
    fan = fan_of(source, patience_s=NEVER)
    fast, slow = Taker(branch_of(fan, source)), Taker(branch_of(fan, source), lets=0)

    async with asyncio.TaskGroup() as group:
        group.create_task(fan.run())
        group.create_task(slow.run())
        group.create_task(fast.run())
        await settle()
        behind = len(fast.taken)
        slow.let_go()

    assert behind == 2
    assert fast.taken == slow.taken == source.content()
    assert len(source.readers) == 1


async def test_failure_of_the_reader_is_that_of_every_branch() -> None:
    source = Source("ABCDEFGH", fails_after=3 * LETTER)
    fan = fan_of(source)
    takers = [Taker(branch_of(fan, source)) for _ in range(2)]

    pump = asyncio.get_running_loop().create_task(fan.run(), name="pump")
    failures = await asyncio.gather(*(taker.run() for taker in takers), return_exceptions=True)
    await pump

    assert [type(failure) for failure in failures] == [StreamCut, StreamCut]
    assert source.readers[0].is_closed


async def test_failure_to_open_is_told_to_those_who_wait_for_it() -> None:
    def refuse() -> None:
        raise StreamCut("disk", 0)

    @asynccontextmanager
    async def closed(allocation: Allocation) -> AsyncIterator[Reader]:
        refuse()
        yield StringReader("")

    fan = FanOut(closed, MemoryBudget())
    branch = fan.attach(Allocation(fan.budget))
    await fan.run()

    with pytest.raises(StreamCut):
        await branch.opened()


async def test_branch_that_leaves_costs_the_others_nothing() -> None:
    source = Source("ABCDEFGH")
    fan = fan_of(source)
    stays, leaves = Taker(branch_of(fan, source)), Taker(branch_of(fan, source), lets=0)

    async with asyncio.TaskGroup() as group:
        group.create_task(fan.run())
        group.create_task(stays.run())
        leaving = group.create_task(leaves.run())
        await settle()
        leaving.cancel()
        leaves.branch.part()

    assert stays.taken == source.content()
    assert len(source.readers) == 1


async def test_reading_ends_when_nobody_is_left() -> None:
    source = Source("ABCDEFGH")
    fan = fan_of(source)
    branches = [branch_of(fan, source) for _ in range(2)]
    pump = asyncio.get_running_loop().create_task(fan.run(), name="pump")
    await settle()

    for branch in branches:
        branch.part()
    await pump

    assert source.readers[0].is_closed
    assert source.readers[0].given < 8 * LETTER


async def test_reading_that_is_cancelled_fails_those_who_depend_on_it() -> None:
    source = Source("ABCDEFGH")
    fan = fan_of(source)
    takers = [Taker(branch_of(fan, source), lets=0) for _ in range(2)]
    loop = asyncio.get_running_loop()
    pump = loop.create_task(fan.run(), name="pump")
    tasks = [loop.create_task(taker.run(), name="taker") for taker in takers]
    await settle()

    pump.cancel()
    for taker in takers:
        taker.let_go()
    failures = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(failure) for failure in failures] == [DataError, DataError]
    assert pump.cancelling()


def test_patience_grows_with_the_time_that_a_read_takes() -> None:
    patience = DelayAllowance(0.25, now=100.0)

    assert patience.left(100.0) == 0.25
    assert patience.left(110.0) == pytest.approx(0.25 + 10 * DELAY_SHARE)


def test_patience_is_spent_by_waiting() -> None:
    patience = DelayAllowance(1.0, now=100.0)

    patience.left(100.0)
    patience.spend(100.75)
    assert patience.left(100.75) == 0.25
    patience.spend(200.0)
    assert patience.left(200.0) == 0


def test_patience_ends_growing() -> None:
    assert DelayAllowance(0.25, now=0.0).left(1e6) == LARGEST_DELAY_S
    assert DelayAllowance(NEVER, now=0.0).left(1e6) == NEVER
