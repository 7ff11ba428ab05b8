"""Consent to full copies, fulls that are due, and retention by days: what a job may ask for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.lab import hands
from tests.lab.world import World
from xorepd.state.records import Outcome


async def test_full_copy_is_held_until_it_is_let_and_costs_no_point(replicated: World) -> None:
    await replicated.ask("prod", forget_bases)
    replicated.lab.recorder.calls.clear()

    async with replicated.daemon() as context:
        held = await replicated.run(context, full="ask", resync=False, verify="off")
    called = {call.name for call in replicated.lab.recorder.calls}
    points = await replicated.points()

    assert held.outcome is Outcome.FAILED
    assert "let it once with `xorepctl run web --allow-full`" in (held.error or "")
    assert len(points) == 1
    assert held.step == "plan"
    assert not any(name.endswith("VM.snapshot") for name in called)
    assert await replicated.left_over() == []
    let = await replicated.replicate(full="allow", resync=False, verify="off")
    assert let.outcome is Outcome.FULL


def forget_bases(xenapi: Any) -> None:
    for snapshot in xenapi.VM.get_snapshots(hands.vm_of(xenapi, "web01")):
        hands.destroy_with_disks(xenapi, snapshot)


async def test_first_copy_needs_no_consent(two_pools: World) -> None:
    assert (await two_pools.replicate(full="ask", verify="off")).outcome is Outcome.FULL


async def test_disk_is_sent_whole_after_so_many_deltas(two_pools: World) -> None:
    records = [await two_pools.replicate(verify="off", full_every=2) for _ in range(4)]

    assert [record.outcome for record in records] == [
        Outcome.FULL,
        Outcome.DELTA,
        Outcome.DELTA,
        Outcome.FULL,
    ]
    assert {disk.reason for disk in records[3].disks} == {"due"}
    assert (await two_pools.replicate(verify="off", full_every=2)).outcome is Outcome.DELTA
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_newest_point_of_each_day_stays(replicated: World) -> None:
    def shift_back(xenapi: Any) -> None:
        """Date every restore point a day back, as if a day had passed."""
        for ref, vm in xenapi.VM.get_all_records().items():
            mark = json.loads(vm["other_config"].get("xorepd:mark", "{}"))
            if vm["is_a_snapshot"] and mark.get("role") == "point":
                mark["moment"] = str(datetime.fromisoformat(mark["moment"]) - timedelta(days=1))
                other = vm["other_config"] | {"xorepd:mark": json.dumps(mark)}
                xenapi.VM.set_other_config(ref, other)

    # Where it is noon now: no midnight comes between the runs.
    noon = f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"
    job: dict[str, Any] = {"keep": {"last": 1, "daily": 2}, "timezone": noon, "verify": "off"}
    first = (await replicated.points())[0]["self"]
    second = (await replicated.replicate(verify="off")).restore_point
    await replicated.ask("dr", shift_back)
    third = (await replicated.replicate(**job)).restore_point
    assert [mark["self"] for mark in await replicated.points()] == [third, second]
    assert first not in {third, second}

    fourth = (await replicated.replicate(**job)).restore_point
    assert [mark["self"] for mark in await replicated.points()] == [fourth, second]
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []
