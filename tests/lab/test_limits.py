"""Pools that take only so many VMs at once, by configuration or because they answer slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.lab.world import World, new_run, world
from tests.patience import patience
from xorepd.ids import PoolName
from xorepd.replication.context.admission import pool_key
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd.xapi.pace import ANSWERS
from xorepd_lab.faults.faults import Fault
from xorepd_lab.topology import SMALL, Topology

pytestmark = pytest.mark.lab

NAMES = ("web01", "web02", "web03", "web04")


def four_vms() -> Topology:
    """Return the small topology with four VMs of one small disk, all on one host and SR."""
    prod, recovery = SMALL.pools
    web = prod.vms[0]
    guests = tuple(
        replace(
            web,
            name=name,
            disks=(replace(web.disks[1], name=f"{name}-data"),),
            mac=f"02:16:3e:5e:6c:1{number}",
        )
        for number, name in enumerate(NAMES)
    )
    return replace(SMALL, pools=(replace(prod, vms=guests), recovery))


BEFORE_WORK = ("waiting", "connect", "queue")


async def run(on: World, context: Context) -> tuple[list[RunRecord], int]:
    """Run the job; return its records, and how many VMs were at work at once."""
    board, most = context.board, 0

    async def watch() -> None:
        nonlocal most
        version = 0
        while True:
            version = await board.changed(version)
            steps = [r.step for r in board.records() if r.outcome is Outcome.RUNNING]
            most = max(most, sum(step not in BEFORE_WORK for step in steps))

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        job = on.job(vms=NAMES, max_vms=4, verify="off")
        records = await run_job(job, new_run(), context)
        watching.cancel()
    return records, most


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "lab", four_vms()) as made:
        yield made


@pytest.mark.parametrize(
    ("pool", "limits", "most"),
    [
        ("prod", {"max_vms": 1}, 1),
        ("dr", {"max_vms": 2}, 2),
        ("prod", {"max_vms_per_sr": 1}, 1),
        ("dr", {"max_vms_per_sr": 1}, 1),
        ("prod", {"max_vms_per_host": 1}, 1),
    ],
)
async def test_no_more_vms_are_at_work_than_their_pools_take(
    four: World, pool: str, limits: dict[str, int], most: int
) -> None:
    async with four.daemon({pool: four.settings(pool, **limits)}) as context:
        records, at_once = await run(four, context)

    assert [record.outcome for record in records] == [Outcome.FULL] * 4
    assert at_once <= most


async def test_vm_that_waits_for_its_turn_says_so_and_its_deadline_begins_after_it(
    four: World,
) -> None:
    stalled = four.lab.faults.add(Fault("export", pool="prod", stall=True))
    async with four.daemon({"prod": four.settings("prod", max_vms=1)}) as context:
        job = four.job(vms=NAMES[:2], max_vms=2, verify="off", deadline=f"{patience(2):.0f}s")
        work = asyncio.get_running_loop().create_task(run_job(job, new_run(), context))
        await stalled.stalled.wait()
        version = 0
        while "queue" not in {record.step for record in context.board.records()}:
            version = await context.board.changed(version)
        assert context.admission.at_work(pool_key("prod")) == 1
        assert context.admission.waiting(pool_key("prod")) == 1
        records = await work

    errors = " ".join(record.error or "" for record in records)
    assert "the deadline of job web (in step transfer)" in errors
    assert "in step queue" not in errors


async def test_vm_that_another_job_replicates_to_the_same_sr_keeps_no_others_waiting(
    four: World,
) -> None:
    stalled = four.lab.faults.add(Fault("export", pool="prod", stall=True))
    async with four.daemon() as context:
        context.admission.max_vms = 2
        loop = asyncio.get_running_loop()

        async def run_of(job: str, vm: str) -> RunRecord:
            [record] = await run_job(
                four.job(name=job, vms=(vm,), verify="off"), new_run(), context
            )
            return record

        first = loop.create_task(run_of("one", "web01"))
        await stalled.stalled.wait()
        second = loop.create_task(run_of("two", "web01"))
        version = 0
        while "queue" not in {record.step for record in context.board.records()}:
            version = await context.board.changed(version)
        assert context.admission.at_work(pool_key("prod")) == 1

        other = await run_of("three", "web02")
        assert other.outcome is Outcome.FULL, other.error

        stalled.release()
        records = await asyncio.gather(first, second)

    assert records[1].outcome in (Outcome.FULL, Outcome.DELTA), records[1].error


async def test_without_limits_all_are_at_work_at_once(four: World) -> None:
    async with four.daemon() as context:
        _, at_once = await run(four, context)

    assert at_once > 1


async def test_pool_that_answers_slowly_gets_less_at_once_until_it_is_quick_again(
    four: World,
) -> None:
    slow = Fault("rpc", pool="dr", match="*.get_*", times=3 * ANSWERS, delay_s=0.25)
    four.lab.faults.add(slow)
    with capture_logs() as logs:
        async with four.daemon({"dr": four.settings("dr", slow_answer="0.2s")}) as context:
            records, _ = await run(four, context)
            pace = context.pools[PoolName("dr")].pace
            while pace.is_slow:  # the run may have ended before
                await context.pools[PoolName("dr")].refresh()
            other = context.pools[PoolName("prod")].pace

    assert [record.outcome for record in records] == [Outcome.FULL] * 4
    told = [log["event"] for log in logs if log["event"].startswith("pool.")]
    assert (told[0], told[-1]) == ("pool.slow", "pool.recovered")
    [first] = [log for log in logs if log["event"] == "pool.slow"]
    assert first["pool"] == "dr"
    assert first["median_s"] >= 0.25
    assert 1 <= first["max_vms"] <= 2
    assert other.median_s is not None
    assert not other.is_slow


async def test_vm_that_is_alone_on_a_slow_pool_is_replicated_all_the_same(four: World) -> None:
    four.lab.faults.add(Fault("rpc", pool="dr", match="*.get_*", times=None, delay_s=0.03))
    async with four.daemon({"dr": four.settings("dr", slow_answer="0.01s")}) as context:
        [record] = await run_job(four.job(vms=NAMES[:1], verify="off"), new_run(), context)
        pace = context.pools[PoolName("dr")].pace

    assert record.outcome is Outcome.FULL, record.error
    assert (pace.is_slow, pace.at_once) == (True, 1)
