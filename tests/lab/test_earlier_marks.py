"""Pools that an earlier release has worked on: its marks are read, and the next run is a delta."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.world import World
from xorepd.state.records import Outcome

Marked = dict[str, Any]
Config = dict[str, str]

LATER = ("ref", "attempt", "lineage", "epoch", "order", "offset", "arrived", "content", "disks")
"""What marks of version 1 do not say."""


def to_version_1(mark: Marked, config: Config) -> None:
    for name in LATER:
        mark.pop(name, None)
    mark["v"], mark["time"] = 1, mark.pop("moment", "")


def to_the_oldest_form(mark: Marked, config: Config) -> None:
    """The mark of a source snapshot names its only target, and no other key does."""
    to_version_1(mark, config)
    uses = [key for key in config if key.startswith("xorepd:for:")]
    for key in uses:
        mark["stream"]["sr"] = key.removeprefix("xorepd:for:")
        mark["confirmed"] = config.pop(key) == "held"


async def age(world: World, form: Callable[[Marked, Config], None]) -> int:
    """Write all marks of both pools as an earlier release would have; return how many."""

    def rewrite(xenapi: Any) -> int:
        changed = 0
        for table in (xenapi.VM, xenapi.VDI):
            for ref, record in table.get_all_records().items():
                config = dict(record["other_config"])
                config.pop("xorepd:current", None)
                if text := config.get("xorepd:mark"):
                    mark = json.loads(text)
                    form(mark, config)
                    config["xorepd:mark"] = json.dumps(mark)
                    changed += 1
                if config != record["other_config"]:
                    table.set_other_config(ref, config)
        return changed

    return sum([await world.ask(pool, rewrite) for pool in ("prod", "dr")])


@pytest.mark.parametrize("form", [to_version_1, to_the_oldest_form])
async def test_pools_with_marks_of_an_earlier_release_get_deltas(
    replicated: World, form: Callable[[Marked, Config], None]
) -> None:
    await replicated.lab.guest_write("web01", 1, random=3, seed=1, within=(0, 2 << 20))
    await replicated.replicate(keep=2)
    old = {mark["self"] for mark in await replicated.points()}
    assert await age(replicated, form) > 8

    for seed in range(2, 5):
        await replicated.lab.guest_write("web01", 1, random=3, seed=seed, within=(0, 2 << 20))

        record = await replicated.replicate(keep=2)

        assert record.outcome is Outcome.DELTA
        assert {disk.device: disk.read_bytes for disk in record.disks} == {"0": 0, "1": 2 << 20}
        await replicated.newest_equals_its_source()
        assert await replicated.left_over() == []
    now = await replicated.points()
    assert [mark["v"] for mark in now] == [2, 2]
    assert old.isdisjoint(mark["self"] for mark in now)
