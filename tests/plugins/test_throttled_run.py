"""A VM through the throttled transport, between two pools of the lab."""

from __future__ import annotations

import asyncio

from tests.lab.world import World, new_run
from tests.patience import patience
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.records import Outcome
from xorepd.units import MiB


async def under_way(context: Context) -> None:
    """Wait until a disk is being carried."""
    while not any(state.active_disks for state in context.links.states().values()):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def test_it_arrives_whole_and_what_passed_is_what_was_sent(two_pools: World) -> None:
    transport = {"name": "throttled", "link": "wan", "rate": "4Gbit/s"}
    async with two_pools.daemon() as context:
        record = await two_pools.run(context, transport=transport)
        state = context.links.states()["wan"]

    assert record.error is None
    assert state.sent_bytes == sum(disk.sent_bytes for disk in record.disks)
    assert state.active_disks == 0
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_run_that_crawls_is_let_go_by_command(two_pools: World) -> None:
    transport = {"name": "throttled", "link": "wan", "rate": "64kbit/s"}
    async with two_pools.daemon() as context:
        loop = asyncio.get_running_loop()
        job = two_pools.job(transport=transport)
        run = loop.create_task(run_job(job, new_run(), context))
        await under_way(context)
        await asyncio.sleep(1)
        assert context.links.states()["wan"].sent_bytes < MiB

        context.links.set_rate("wan", float("inf"))
        [record] = await run

    assert record.outcome is Outcome.FULL
    await two_pools.newest_equals_its_source()


async def test_cancelled_while_it_crawls_it_leaves_nothing(two_pools: World) -> None:
    transport = {"name": "throttled", "rate": "64kbit/s"}
    async with two_pools.daemon() as context:
        job = two_pools.job(transport=transport)
        run = asyncio.get_running_loop().create_task(run_job(job, new_run(), context))
        await under_way(context)
        run.cancel()
        await asyncio.wait({run}, timeout=patience())

    assert run.cancelled()
    assert await two_pools.points() == []
    assert await two_pools.left_over() == []
