"""Clocks of pools that are wrong, or jump: the order of points stands, and no true one is lost."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.lab.world import World
from xorepd.state.records import Outcome
from xorepd_lab.faults.incidents import Incident

pytestmark = pytest.mark.lab

DAY = 86_400.0


@pytest.mark.parametrize("ahead", [3 * DAY, 30 * 365 * DAY], ids=["three days", "thirty years"])
async def test_a_clock_that_was_ahead_once_costs_no_daily_point(
    two_pools: World, ahead: float
) -> None:
    """One run a day; the source's clock is ahead during the second."""
    lab, job = two_pools.lab, {"keep": {"last": 1, "daily": 7}, "verify": "off"}
    made = []
    for day in range(5):
        if day == 1:
            await lab.happen(Incident("clock-jump", pool="prod", seconds=ahead))
        made.append((await two_pools.replicate(**job)).restore_point)
        if day == 1:
            await lab.happen(Incident("clock-jump", pool="prod", seconds=-ahead))
        await two_pools.ask("dr", a_day_passes)

    assert [mark["self"] for mark in await two_pools.points()] == made[::-1]


def a_day_passes(xenapi: Any) -> None:
    """Date every restore point a day back, whatever clock it was dated by."""
    for ref, vm in xenapi.VM.get_all_records().items():
        mark = json.loads(vm["other_config"].get("xorepd:mark", "{}"))
        if mark.get("role") == "point":
            for member in ("moment", "arrived"):
                mark[member] = str(datetime.fromisoformat(mark[member]) - timedelta(days=1))
            other = vm["other_config"] | {"xorepd:mark": json.dumps(mark)}
            xenapi.VM.set_other_config(ref, other)


async def test_age_goes_by_the_clock_of_the_daemon(two_pools: World) -> None:
    await two_pools.lab.happen(Incident("clock-jump", pool="prod", seconds=DAY))

    with capture_logs() as logs:
        record = await two_pools.replicate(verify="off")

    assert record.point_in_time is not None
    assert abs((datetime.now(UTC) - record.point_in_time).total_seconds()) < 600
    [said] = [entry for entry in logs if entry["event"] == "pool.clock_off"]
    assert said["pool"] == "prod"
    assert abs(said["ahead_s"] - DAY) < 600


async def test_a_clock_that_steps_back_makes_no_older_point(replicated: World) -> None:
    first = (await replicated.points())[0]["self"]
    await replicated.lab.happen(Incident("clock-jump", pool="prod", seconds=-DAY))

    with capture_logs() as logs:
        async with replicated.daemon() as context:
            second = (await replicated.run(context, verify="off")).restore_point
            await replicated.lab.happen(Incident("clock-jump", pool="prod", seconds=2 * DAY))
            third = await replicated.run(context, verify="off")

    assert third.outcome is Outcome.DELTA
    marks = [mark["self"] for mark in await replicated.points()]
    assert marks == [third.restore_point, second, first]
    assert [entry["pool"] for entry in logs if entry["event"] == "pool.clock_jumped"] == ["prod"]
    await replicated.newest_equals_its_source()
