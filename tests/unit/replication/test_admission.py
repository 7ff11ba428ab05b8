"""Who works on a VM where, and who waits for whom."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from xorepd.replication.context.admission import DAEMON, Admission, Place, replica_place


def place(name: str, most: int | None) -> Place:
    return Place((name,), lambda: most)


class People:
    """Holders that come and go on command."""

    def __init__(self) -> None:
        self.admission = Admission()
        self.there: set[str] = set()
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def comes(self, name: str, *places: Place, holder: str = "") -> None:
        self._leave[name] = asyncio.Event()

        async def stay() -> None:
            async with self.admission.hold(holder or name, places):
                self.there.add(name)
                try:
                    await self._leave[name].wait()
                finally:
                    self.there.remove(name)

        self._tasks[name] = asyncio.get_running_loop().create_task(stay())
        await self.settled()

    async def goes(self, name: str) -> None:
        self._leave[name].set()
        await self._tasks[name]
        await self.settled()

    async def dies(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.wait({self._tasks[name]})
        await self.settled()

    async def settled(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_only_so_many_are_in_a_place_and_the_next_comes_when_one_goes() -> None:
    people, pool = People(), place("pool", 2)
    for name in "abcd":
        await people.comes(name, pool)
    assert people.there == {"a", "b"}
    assert (people.admission.at_work(("pool",)), people.admission.waiting(("pool",))) == (2, 2)

    await people.goes("a")
    assert people.there == {"b", "c"}
    for name in "bcd":
        await people.goes(name)
    assert people.admission.at_work(("pool",)) == 0


async def test_who_waits_for_one_place_keeps_no_other() -> None:
    people, one, two = People(), place("one", 1), place("two", 1)
    await people.comes("a", one)
    await people.comes("b", one, two)
    await people.comes("c", two)
    assert people.there == {"a", "c"}

    await people.goes("a")
    assert people.there == {"c"}
    await people.goes("c")
    assert people.there == {"b"}
    await people.goes("b")


async def test_two_who_need_the_same_two_places_never_wait_for_each_other() -> None:
    people, one, two = People(), place("one", 1), place("two", 1)
    for number in range(6):
        await people.comes(str(number), *((one, two) if number % 2 else (two, one)))
    for number in range(6):
        assert people.there == {str(number)}
        await people.goes(str(number))


async def test_targets_of_one_vm_count_once() -> None:
    people, pool = People(), place("pool", 1)
    await people.comes("first", pool, holder="vm")
    await people.comes("second", pool, holder="vm")
    await people.comes("other", pool)
    assert people.there == {"first", "second"}

    await people.goes("first")
    assert people.there == {"second"}
    await people.goes("second")
    assert people.there == {"other"}
    await people.goes("other")


@pytest.mark.parametrize("waiting", [True, False])
async def test_who_is_cancelled_leaves_no_trace(waiting: bool) -> None:
    people, pool = People(), place("pool", 1)
    await people.comes("a", pool)
    await people.comes("b", pool)

    await people.dies("b" if waiting else "a")

    assert people.there == {"a" if waiting else "b"}
    assert people.admission.waiting(("pool",)) == 0
    assert people.admission.at_work(("pool",)) == 1
    await people.goes("a" if waiting else "b")


async def test_limit_that_rises_admits_who_waits_and_one_that_falls_sends_nobody_away() -> None:
    people, most = People(), [1]
    pool = Place(("pool",), lambda: most[0])
    for name in "abc":
        await people.comes(name, pool)
    most[0] = 3
    people.admission.wake()
    await people.comes("d", pool)
    assert people.there == {"a", "b", "c"}

    most[0] = 1
    people.admission.wake()
    await people.goes("a")
    assert people.there == {"b", "c"}
    for name in "bc":
        await people.goes(name)
    assert people.there == {"d"}
    await people.goes("d")


async def test_daemon_admits_more_at_once_when_its_limit_rises() -> None:
    people = People()
    people.admission.max_vms = 1
    daemon = Place(DAEMON, lambda: people.admission.max_vms)
    for name in "abc":
        await people.comes(name, daemon)
    assert people.there == {"a"}

    people.admission.max_vms = 2
    await people.settled()
    assert people.there == {"a", "b"}

    people.admission.max_vms = 1
    await people.goes("a")
    assert people.there == {"b"}
    await people.goes("b")
    await people.goes("c")


async def test_runs_of_one_vm_to_one_sr_take_turns_and_keep_no_place_meanwhile() -> None:
    people, daemon = People(), place("daemon", 2)
    replica = replica_place("vm", "sr")
    await people.comes("first run", replica, daemon)
    await people.comes("second run", replica, daemon)
    await people.comes("to another SR", replica_place("vm", "sr-2"), daemon)
    assert people.there == {"first run", "to another SR"}

    await people.goes("to another SR")
    assert people.there == {"first run"}
    await people.goes("first run")
    assert people.there == {"second run"}
    await people.goes("second run")


async def test_place_without_a_limit_takes_all() -> None:
    admission = Admission()
    async with AsyncExitStack() as stack:
        for number in range(100):
            await stack.enter_async_context(admission.hold(number, [place("pool", None)]))
        assert admission.at_work(("pool",)) == 100
    assert admission.at_work(("pool",)) == 0
