from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from xorepd.config.models import LEAST_MEMORY, DaemonSettings
from xorepd.data.fanout import most_branches
from xorepd.data.memory_budget import (
    CARRYING,
    COMPARING,
    READING,
    WRITING,
    Allocation,
    MemoryBudget,
    ReadAhead,
)
from xorepd.units import MiB


class Waiter:
    """Somebody who takes what a disk needs, and notes when he waits and when he has it."""

    def __init__(self, budget: MemoryBudget, group: asyncio.TaskGroup) -> None:
        self._budget = budget
        self.waits = False
        self.has_it = asyncio.Event()
        self._done = asyncio.Event()
        self.task = group.create_task(self._run())

    async def _run(self) -> None:
        with self._budget.allocate(self._note) as self.allocation:
            await self.allocation.take(CARRYING)
            self.has_it.set()
            await self._done.wait()

    def _note(self, waits: bool) -> None:
        self.waits = waits

    def leave(self) -> None:
        self._done.set()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@contextmanager
def allocations(budget: MemoryBudget, count: int) -> Iterator[list[Allocation]]:
    with ExitStack() as stack:
        yield [stack.enter_context(budget.allocate()) for _ in range(count)]


async def test_those_who_find_nothing_left_wait_and_are_served_in_their_order() -> None:
    budget = MemoryBudget(2 * CARRYING)
    async with asyncio.TaskGroup() as group:
        waiters = [Waiter(budget, group) for _ in range(4)]
        await settle()
        assert [waiter.has_it.is_set() for waiter in waiters] == [True, True, False, False]
        assert [waiter.waits for waiter in waiters] == [False, False, True, True]
        assert (budget.held, budget.waiting) == (2 * CARRYING, 2)

        waiters[1].leave()
        await settle()
        assert [waiter.has_it.is_set() for waiter in waiters] == [True, True, True, False]
        assert not waiters[2].waits

        for waiter in waiters:
            waiter.leave()
    assert (budget.held, budget.waiting) == (0, 0)


async def test_a_large_need_is_not_overtaken_by_small_ones() -> None:
    budget = MemoryBudget(2 * CARRYING)
    with allocations(budget, 3) as (first, large, small):
        await first.take(CARRYING)
        async with asyncio.TaskGroup() as group:
            group.create_task(large.take(2 * CARRYING))
            await settle()
            group.create_task(small.take(WRITING))
            await settle()
            assert (large.need, small.need) == (0, 0)
            budget.size = 4 * CARRYING
        assert (large.need, small.need) == (2 * CARRYING, WRITING)


async def test_cancelled_waiter_leaves_nothing_and_lets_those_behind_it_pass() -> None:
    budget = MemoryBudget(2 * CARRYING)
    with allocations(budget, 3) as (first, large, small):
        await first.take(CARRYING)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(large.take(2 * CARRYING))
            await settle()
            group.create_task(small.take(CARRYING))
            await settle()
            waiting.cancel()
        assert (large.need, small.need) == (0, CARRYING)
    assert (budget.held, budget.waiting) == (0, 0)


async def test_more_memory_wakes_those_who_wait() -> None:
    budget = MemoryBudget(CARRYING)
    async with asyncio.TaskGroup() as group:
        waiters = [Waiter(budget, group) for _ in range(3)]
        await settle()
        budget.size = 2 * CARRYING
        await settle()
        assert [waiter.has_it.is_set() for waiter in waiters] == [True, True, False]
        for waiter in waiters:
            waiter.leave()


async def test_several_get_what_they_need_together_or_not_at_all() -> None:
    budget = MemoryBudget(3 * CARRYING)
    with allocations(budget, 4) as (other, *together):
        await other.take(CARRYING)
        async with asyncio.TaskGroup() as group:
            group.create_task(budget.take(dict.fromkeys(together, CARRYING)))
            await settle()
            assert {allocation.need for allocation in together} == {0}
            await other.take(CARRYING)  # it has that already
            budget.size = 4 * CARRYING
        assert {allocation.need for allocation in together} == {CARRYING}


async def test_one_who_leaves_before_is_not_counted_among_those_who_wait_together() -> None:
    budget = MemoryBudget(2 * CARRYING)
    with allocations(budget, 2) as (other, stays):
        await other.take(CARRYING)
        async with asyncio.TaskGroup() as group:
            with budget.allocate() as leaves:
                group.create_task(budget.take({leaves: CARRYING, stays: CARRYING}))
                await settle()
                assert stays.need == 0
        assert stays.need == CARRYING
        assert budget.held == 2 * CARRYING


async def test_whoever_needs_more_gives_back_what_he_has_before_he_waits() -> None:
    budget = MemoryBudget(COMPARING + WRITING)
    with allocations(budget, 2) as (one, other):
        await one.take(READING)
        await other.take(READING)
        async with asyncio.TaskGroup() as group:
            group.create_task(one.take(COMPARING))
            await settle()
            assert one.need == 0
            await asyncio.wait_for(group.create_task(other.take(WRITING)), 1)  # has more already
            assert other.need == READING
            budget.size = COMPARING + READING
        assert one.need == COMPARING


async def test_what_is_larger_than_the_budget_is_let_in_alone() -> None:
    budget = MemoryBudget(CARRYING)
    with budget.allocate() as large:
        async with asyncio.TaskGroup() as group:
            with budget.allocate() as other:
                await other.take(WRITING)
                group.create_task(large.take(2 * CARRYING))
                await settle()
                assert large.need == 0
        assert large.need == 2 * CARRYING


async def test_extra_memory_is_shared_in_equal_parts_and_never_waited_for() -> None:
    budget = MemoryBudget(16 * MiB)
    with allocations(budget, 2) as (one, other):
        await one.take(4 * MiB)
        assert one.grow(12 * MiB)
        assert not one.grow(1)
        one.give(12 * MiB)

        await other.take(4 * MiB)
        assert one.grow(4 * MiB)
        assert not one.grow(1 * MiB)
        assert other.grow(4 * MiB)
        assert budget.held == 16 * MiB


async def test_extra_memory_is_asked_back_when_others_come() -> None:
    budget = MemoryBudget(16 * MiB)
    with allocations(budget, 2) as (one, other):
        await one.take(4 * MiB)
        assert one.grow(12 * MiB)
        assert one.surplus == 0
        async with asyncio.TaskGroup() as group:
            group.create_task(other.take(4 * MiB))
            await settle()
            assert one.surplus == 8 * MiB
            assert not one.grow(1)
            one.give(8 * MiB)
        assert other.need == 4 * MiB


async def test_extra_memory_is_asked_back_when_the_budget_shrinks() -> None:
    budget = MemoryBudget(16 * MiB)
    with budget.allocate() as one:
        await one.take(4 * MiB)
        assert one.grow(12 * MiB)
        budget.size = 6 * MiB
        assert one.surplus == 10 * MiB


async def test_nobody_grows_who_has_not_what_he_needs() -> None:
    with MemoryBudget().allocate() as allocation:
        assert not allocation.grow(1)


async def test_window_gives_back_what_is_not_under_way_any_more() -> None:
    budget = MemoryBudget(12 * MiB)
    with allocations(budget, 2) as (one, other):
        await one.take(4 * MiB)
        window = ReadAhead(one, 2 * MiB, 8 * MiB)
        while window.widen(MiB):
            pass
        assert (window.size, one.extra) == (8 * MiB, 6 * MiB)

        async with asyncio.TaskGroup() as group:
            group.create_task(other.take(4 * MiB))
            await settle()
            window.fit(7 * MiB)
            assert (window.size, one.extra) == (4 * MiB, 5 * MiB)
            window.fit(4 * MiB)
            assert (window.size, one.extra) == (4 * MiB, 2 * MiB)
        assert other.need == 4 * MiB

        window.narrow(16 * MiB)
        assert window.size == 2 * MiB
        window.close()
        assert one.extra == 0


async def test_window_that_was_narrowed_widens_within_what_it_still_has() -> None:
    with MemoryBudget(8 * MiB).allocate() as allocation:
        await allocation.take(4 * MiB)
        window = ReadAhead(allocation, 2 * MiB, 8 * MiB)
        assert window.widen(4 * MiB)
        window.narrow(2 * MiB)
        assert window.widen(2 * MiB)
        assert (window.size, allocation.extra) == (6 * MiB, 4 * MiB)


def test_window_without_a_budget_widens_up_to_its_end() -> None:
    window = ReadAhead(None, 2 * MiB, 4 * MiB)

    assert window.widen(2 * MiB)
    assert not window.widen(1)


def test_the_smallest_budget_has_room_for_a_disk_on_its_way_to_three_targets() -> None:
    assert most_branches(MemoryBudget(LEAST_MEMORY)) == 3


def test_a_budget_is_usually_that_of_a_configuration_that_does_not_mention_it() -> None:
    assert MemoryBudget().size == DaemonSettings().memory
