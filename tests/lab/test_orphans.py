"""Replicas of jobs that were removed, as a daemon finds them on its pools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.lab.world import World, clock
from xorepd.config.models import Settings
from xorepd.control.protocol import OrphansReply
from xorepd.daemon.engine import open_engine
from xorepd.state.records import Outcome


async def orphans(world: World, *jobs: Any, **pools: Any) -> OrphansReply:
    plain = {
        "pools": {name: pools.get(name) or world.settings(name) for name in ("prod", "dr")},
        "jobs": {job.name: job for job in jobs},
        "file": Path("/xorepd.toml"),
    }
    async with open_engine(Settings.model_validate(plain), clock) as engine:
        return await engine.orphans.find_orphans()


async def test_replica_of_a_removed_job_is_found_and_a_job_for_its_vm_adopts_it(
    replicated: World,
) -> None:
    found = await orphans(replicated)
    adopting = replicated.job(name="new", verify="off")

    [orphan] = found.orphans
    [point] = await replicated.points()
    assert (orphan.pool, orphan.sr, orphan.job, orphan.points) == ("dr", "dr-storage", "web", 1)
    assert orphan.newest_point_at is not None
    assert orphan.newest_point_at.isoformat() == point["moment"]
    assert (await orphans(replicated, adopting)).orphans == ()
    assert (await replicated.replicate(name="new", verify="off")).outcome is Outcome.DELTA


async def test_pool_that_does_not_answer_is_named_and_the_others_are_asked(
    replicated: World,
) -> None:
    closed = replicated.settings("prod", url="https://127.0.0.1:1")

    found = await orphans(replicated, prod=closed)

    assert [orphan.pool for orphan in found.orphans] == ["dr"]
    assert set(found.not_asked) == {"prod"}
    assert "127.0.0.1:1" in found.not_asked["prod"]
