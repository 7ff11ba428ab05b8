"""Which of several bases without data goes first."""

from __future__ import annotations

import pytest

from tests.unit.replication.builders import STREAM, World
from xorepd.replication.format.marks import Role
from xorepd.replication.removal.destroying import older_metadata


@pytest.mark.parametrize("times", [("12:00:00", "12:00:01"), ("12:00:00", "12:00:00")])
async def test_oldest_tracking_goes_first_also_within_one_second(times: tuple[str, str]) -> None:
    world = World()
    origin = world.disk()
    made = []
    for order, time in enumerate(times):
        disk = world.snapshot_disk(origin)
        world.raw(disk)["type"] = "cbt_metadata"
        world.raw(disk)["cbt_enabled"] = True
        world.raw(disk)["snapshot_time"] = f"20260302T{time}Z"
        world.mark(disk, Role.SOURCE, stream=STREAM.of_source, order=order + 1)
        made.append(disk)
    cache = await world.cache()
    older, newer = (cache.vdis[ref] for ref in made)

    assert older_metadata(cache, newer) == older
    assert older_metadata(cache, older) is None
