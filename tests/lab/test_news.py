"""What a pool is asked for so that its records are up to date: seldom, and at once when needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.lab.world import World
from xorepd.ids import PoolName
from xorepd.xapi import events
from xorepd.xapi.pool import Pool
from xorepd_lab.faults.faults import Fault


@pytest.fixture
async def dr(two_pools: World) -> AsyncIterator[Pool]:
    async with two_pools.daemon() as context:
        await context.pools[PoolName("dr")].refresh()
        yield context.pools[PoolName("dr")]


def count(lab: World, method: str) -> int:
    return sum(call.pool == "dr" and call.name == method for call in lab.lab.calls)


async def test_those_who_wait_together_are_served_together(two_pools: World, dr: Pool) -> None:
    under_way = two_pools.lab.faults.add(Fault("rpc", "event.inject", pool="dr", stall=True))
    before = count(two_pools, "event.inject")
    async with asyncio.TaskGroup() as group:
        group.create_task(dr.refresh())
        await under_way.stalled.wait()
        # What is under way may be older than what these have done before they came.
        for _ in range(8):
            group.create_task(dr.refresh())
        await asyncio.sleep(0)
        under_way.release()

    assert count(two_pools, "event.inject") == before + 2


async def test_one_who_gives_up_leaves_the_others_their_answer(two_pools: World, dr: Pool) -> None:
    under_way = two_pools.lab.faults.add(Fault("rpc", "event.inject", pool="dr", stall=True))
    async with asyncio.TaskGroup() as group:
        first = group.create_task(dr.refresh())
        await under_way.stalled.wait()
        others = [group.create_task(dr.refresh()) for _ in range(2)]
        await asyncio.sleep(0)
        first.cancel()
        under_way.release()

    assert first.cancelled()
    assert not any(other.cancelled() for other in others)


async def test_news_gathers_until_somebody_needs_it(
    two_pools: World, dr: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "COLLECTED_S", 3600.0)
    (sr, *_) = dr.cache.srs
    await dr.call("SR.set_name_label", sr, "first")
    await dr.cache.wait_for(lambda: dr.cache.srs[sr].name_label == "first", 30.0)
    before = count(two_pools, "event.from")

    for number in range(20):
        await dr.call("SR.set_name_label", sr, f"name {number}")
    assert count(two_pools, "event.from") == before

    await dr.refresh()
    assert dr.cache.srs[sr].name_label == "name 19"
    assert count(two_pools, "event.from") <= before + 2
