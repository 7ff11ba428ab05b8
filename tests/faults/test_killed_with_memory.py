"""A daemon that dies while it makes the suspended VM: the restore point stands, the rest goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.killing import DEAD, Moment, killed_at
from tests.lab.test_memory_snapshots import memory_of, resume, run, state_of_source, suspended
from tests.lab.world import world
from xorepd.state.records import Outcome

SHARDS = 2

BEFORE_THE_POINT: list[Moment] = [
    ("prod", "VM.checkpoint", 0),
    ("prod", "VDI.set_other_config", 2),  # of the image, after those of two disks
]
"""In a second run: two disks, and one restore point with its suspended VM is there."""

AFTER_THE_POINT: list[Moment] = [
    ("dr", "VDI.create", 0),
    ("dr", "VDI.clone", 2),
    ("dr", "VDI.clone", 3),
    ("dr", "VM.create", 0),
    ("dr", "VM.add_to_blocked_operations", 0),
    ("dr", "VBD.create", 2),
    ("dr", "VIF.create", 0),
    ("dr", "VM.set_is_a_template", 0),
]

PRUNING: list[Moment] = [
    ("dr", "VM.destroy", 0),  # of the suspended VM that goes
    ("dr", "VM.destroy", 1),
    ("prod", "VDI.destroy", 0),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shard", range(SHARDS))
async def test_killed_with_memory_leaves_the_last_point_and_no_remains(
    tmp_path: Path, shard: int
) -> None:
    async with world(tmp_path / "lab", leaves=DEAD) as two_pools:
        assert (await run(two_pools, keep=1)).error is None
        seed = 100
        for moment in (BEFORE_THE_POINT + AFTER_THE_POINT + PRUNING)[shard::SHARDS]:
            seed += 1
            await two_pools.lab.guest_write("web01", 1, random=2, seed=seed)
            before = (await two_pools.points())[0]

            assert await killed_at(two_pools, moment, snapshot="memory", keep=1), moment

            now = (await two_pools.points())[0]
            is_new = moment not in BEFORE_THE_POINT
            assert (now["order"] > before["order"]) == is_new, moment
            record = await run(two_pools, keep=1)
            assert (record.error, record.outcome) == (None, Outcome.DELTA), moment
            assert memory_of(record).reason == "", moment
            await two_pools.newest_equals_its_source()
            [point] = await two_pools.points()
            [vm] = await two_pools.ask("dr", suspended)
            assert vm["mark"]["order"] == point["order"], moment
            assert await two_pools.ask("prod", state_of_source) == ("Running", False), moment
            assert await two_pools.left_over() == [], moment
        await two_pools.ask("dr", resume)
