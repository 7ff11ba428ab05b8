"""A daemon that dies at any of its calls: the last point is intact, the next run is a delta.

The lab holds a call back before it is executed; the pools then go silent, so that nothing the dying
engine still tries reaches them; and a new daemon, which remembers nothing, takes over. Every call
that changes something is such a moment, so every state between two changes is met.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.lab.world import World, new_run, world
from tests.patience import patience
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome
from xorepd_lab.faults.faults import Fault

SHARDS = 2
EVERY_CALL = os.environ.get("XOREPD_SWEEP") == "all"
"""`make test` dies at the first call of each kind; `make test-sweep` at every single one."""

DEAD = ("session",)
"""What the dead leave behind: XAPI forgets a session that nobody uses after a day."""

_HARMLESS = ("get_", "inject", "from", "login_with_password", "logout")

Moment = tuple[str, str, int]
"""(pool, method, how many calls of it come before)."""


def moments_of(calls: list[tuple[str, str]]) -> list[Moment]:
    """Return every call of a run that changes something."""
    seen: Counter[tuple[str, str]] = Counter()
    moments = []
    for pool, name in calls:
        method = name.removeprefix("Async.")
        before = seen[pool, method]
        if not method.rpartition(".")[2].startswith(_HARMLESS) and (EVERY_CALL or not before):
            moments.append((pool, method, before))
        seen[pool, method] += 1
    return moments


async def killed_at(two_pools: World, moment: Moment, **changes: Any) -> bool:
    """Start a run of a job with these changes and kill it; return whether it came that far."""
    pool, method, before = moment
    lab, loop = two_pools.lab, asyncio.get_running_loop()
    # Held back, and never executed: the error is what the lab does when it lets go.
    held = lab.faults.add(
        Fault("rpc", method, pool, skip=before, stall=True, error=("INTERNAL_ERROR", "killed"))
    )
    async with two_pools.daemon() as context:
        run = loop.create_task(run_job(two_pools.job(**changes), new_run(), context))
        reached = loop.create_task(held.stalled.wait())
        await asyncio.wait({run, reached}, return_when=asyncio.FIRST_COMPLETED, timeout=patience())
        came_so_far = reached.done()
        if came_so_far:
            lab.faults.add(Fault("rpc", times=None, reset=True))
            lab.faults.add(Fault("export", times=None, reset=True))
            lab.faults.add(Fault("import", times=None, reset=True))
        reached.cancel()
        run.cancel()
        held.release()
        await asyncio.wait({run})
    lab.faults.clear()
    return came_so_far


async def calls_of_a_run(two_pools: World) -> list[tuple[str, str]]:
    """Replicate once and return the calls that it took."""
    before = len(two_pools.lab.calls)
    await two_pools.replicate()
    return [(call.pool, call.name) for call in two_pools.lab.calls[before:] if call.kind == "rpc"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shard", range(SHARDS))
async def test_killed_during_a_delta_leaves_the_last_point_and_the_next_run_is_a_delta(
    tmp_path: Path, shard: int
) -> None:
    async with world(tmp_path / "lab", leaves=DEAD) as two_pools:
        await two_pools.replicate()
        await two_pools.lab.guest_write("web01", 1, random=2, seed=shard)
        moments = moments_of(await calls_of_a_run(two_pools))
        assert len(moments) > (50 if EVERY_CALL else 15)
        seed = 100
        for moment in moments[shard::SHARDS]:
            seed += 1
            await two_pools.lab.guest_write("web01", 1, random=2, seed=seed)
            last = (await two_pools.points())[0]["self"]
            before = await two_pools.hashes("dr", last)

            await killed_at(two_pools, moment)

            assert await two_pools.hashes("dr", last) == before, moment
            record = await two_pools.replicate()
            assert record.outcome is Outcome.DELTA, (moment, record.disks)
            await two_pools.newest_equals_its_source()
            assert await two_pools.left_over() == [], moment


def snapshots_of_vms(xenapi: Any) -> int:
    return sum(vm["is_a_snapshot"] for vm in xenapi.VM.get_all_records().values())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shard", range(SHARDS))
async def test_killed_during_the_first_full_leaves_nothing_behind(
    tmp_path: Path, shard: int
) -> None:
    async with world(tmp_path / "probe") as probe:
        moments = moments_of(await calls_of_a_run(probe))
    for number, moment in enumerate(moments[shard::SHARDS]):
        async with world(tmp_path / f"lab{number}", leaves=DEAD) as two_pools:
            await killed_at(two_pools, moment)
            # Marked or not: the VM record of a restore point is its commit.
            committed = await two_pools.ask("dr", snapshots_of_vms)

            record = await two_pools.replicate()

            assert record.outcome is (Outcome.DELTA if committed else Outcome.FULL), moment
            assert len(await two_pools.points()) == committed + 1, moment
            await two_pools.newest_equals_its_source()
            assert await two_pools.left_over() == [], moment
