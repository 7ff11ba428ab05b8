"""Disks come, meet, grow, are cancelled and go: the budget is kept, and everybody is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.readers import LETTER, StringReader
from xorepd.data.memory_budget import CARRYING, READING, Allocation, MemoryBudget, ReadAhead
from xorepd.data.reader import Reader
from xorepd.data.remainder import Rest
from xorepd.replication.context.shared_reads import SharedReads
from xorepd.units import MiB

TURNS = st.integers(0, 6)
"""Turns of the loop."""


@dataclass(frozen=True)
class Disk:
    """Somebody who takes memory, for himself or for several as one."""

    comes_after: int
    needs: tuple[int, ...]
    grows: tuple[int, ...]
    """What is under way at each step of his work: he widens his window to it if he can."""
    cancelled_after: int | None


DISKS = st.builds(
    Disk,
    comes_after=TURNS,
    needs=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    grows=st.lists(st.integers(0, 12), max_size=5).map(tuple),
    cancelled_after=st.none() | st.integers(0, 12),
)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@given(disks=st.lists(DISKS, min_size=1, max_size=8), size=st.integers(18, 40))
@settings(deadline=None)
def test_budget_is_never_exceeded_and_everybody_is_served_in_turn(
    disks: list[Disk], size: int
) -> None:
    budget = MemoryBudget(size)
    came: dict[int, Allocation] = {}
    gone: set[int] = set()

    def check() -> None:
        assert 0 <= budget.held <= size
        has_got = [allocation.need > 0 for number, allocation in came.items() if number not in gone]
        assert has_got == sorted(has_got, reverse=True), "somebody was overtaken"
        assert all(has_got) or budget.held, "somebody waits for nobody"

    async def work(number: int, disk: Disk) -> None:
        await turns(disk.comes_after)
        with ExitStack() as stack:
            allocations = [stack.enter_context(budget.allocate()) for _ in disk.needs]
            stack.callback(gone.add, number)
            came[number] = allocations[0]
            await budget.take(dict(zip(allocations, disk.needs, strict=True)))
            assert [allocation.need for allocation in allocations] == list(disk.needs)
            check()
            window = ReadAhead(allocations[0], 1, 100)
            for under_way in disk.grows:
                while window.size < under_way and window.widen(1):
                    check()
                await turns(1)
                window.fit(min(under_way, window.size))
                check()
            await turns(1)
            window.close()
            check()

    async def run() -> None:
        tasks = [
            asyncio.get_running_loop().create_task(work(number, disk), name=f"disk {number}")
            for number, disk in enumerate(disks)
        ]
        for turn in range(13):
            for number, disk in enumerate(disks):
                if disk.cancelled_after == turn and tasks[number].cancel():
                    gone.add(number)
            await turns(1)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    asyncio.run(asyncio.wait_for(run(), 5))
    assert (budget.held, budget.waiting) == (0, 0)


@given(
    places=st.integers(2, 4),
    disks=st.lists(st.text("AB-", min_size=1, max_size=6), min_size=1, max_size=5),
    others=st.lists(st.tuples(TURNS, TURNS), max_size=4),
    pauses=st.lists(TURNS, min_size=20, max_size=20),
    at_once=st.integers(1, 4),
    leaves=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 30)),
    room=st.integers(0, 3),
)
@settings(deadline=None)
def test_disks_that_read_together_never_wait_for_each_other_and_for_memory_in_a_circle(
    places: int,
    disks: list[str],
    others: list[tuple[int, int]],
    pauses: list[int],
    at_once: int,
    leaves: tuple[int, int] | None,
    room: int,
) -> None:
    """Meetings have no end here but that all come: whoever kept memory meanwhile would hang."""
    budget = MemoryBudget(READING + (2 + room) * CARRYING)
    names = [f"place {number}" for number in range(places)]
    given: dict[tuple[str, int], bytes] = {}

    def checked() -> None:
        assert budget.held <= budget.size

    async def serve(name: str, reads: SharedReads, pause: int) -> None:
        await turns(pause)
        await reads.announce(name, [(str(number), "") for number in range(len(disks))])
        turn = asyncio.Semaphore(at_once)

        async def carry(number: int) -> None:
            async with turn:
                with budget.allocate() as allocation:
                    given[name, number] = await read(name, reads, number, allocation, pause)
                    checked()

        async with asyncio.TaskGroup() as group:
            for number in range(len(disks)):
                group.create_task(carry(number))

    async def read(
        name: str, reads: SharedReads, number: int, allocation: Allocation, pause: int
    ) -> bytes:
        disk, taken = disks[number], b""

        @asynccontextmanager
        async def opened(shared: Allocation) -> AsyncIterator[Reader]:
            assert shared.need == READING
            checked()
            yield StringReader(disk)

        @asynccontextmanager
        async def open_rest(shared: Reader, start: int) -> AsyncIterator[Reader]:
            yield Rest(StringReader(disk), start, lambda offset, data: None)

        async with reads.join(name, (str(number), ""), allocation, opened) as branch:
            source: Reader = StringReader(disk)
            if branch is None:
                await allocation.take(CARRYING)
            else:
                branch.open_rest = open_rest
                source = branch
            assert allocation.need == CARRYING
            async with aclosing(source.pieces()) as pieces:
                async for _, data in pieces:
                    taken += data
                    await turns(pause)
        return taken

    async def other(pause: int, works: int) -> None:
        await turns(pause)
        with budget.allocate() as allocation:
            await allocation.take(CARRYING)
            checked()
            await turns(works)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            reads = SharedReads(names, set(), float("inf"), group, budget)
            serving = [
                group.create_task(serve(name, reads, pause))
                for name, pause in zip(names, pauses, strict=False)
            ]

            def left(name: str, _: object) -> None:
                reads.leave(name)

            for name, task in zip(names, serving, strict=True):
                task.add_done_callback(partial(left, name))
            for each in others:
                group.create_task(other(*each))
            if leaves is not None:
                who, after = leaves
                await turns(after)
                serving[who % places].cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*serving, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 5))
    assert (budget.held, budget.waiting) == (0, 0)
    left = None if leaves is None else f"place {leaves[0] % places}"
    for name in names:
        for number, disk in enumerate(disks):
            if name != left:
                assert given[name, number] == content(disk)


def content(disk: str) -> bytes:
    return b"".join(letter.encode() * LETTER for letter in disk.replace("-", ""))


@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=8), disks=st.integers(1, 12))
@settings(deadline=None)
def test_budget_that_changes_serves_everybody_in_the_end(sizes: list[int], disks: int) -> None:
    budget = MemoryBudget(sizes[0] * MiB)

    async def disk() -> None:
        with budget.allocate() as allocation:
            await allocation.take(CARRYING)
            await turns(3)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(disks):
                group.create_task(disk())
            for size in sizes:
                await turns(1)
                budget.size = size * MiB

    asyncio.run(asyncio.wait_for(run(), 5))
    assert (budget.held, budget.waiting) == (0, 0)
