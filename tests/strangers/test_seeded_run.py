"""A copy carried by hand and marked by Xen Orchestra's own tool spares our first full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lab import carried
from tests.lab.world import World, world
from tests.strangers.programs import NODE, need_node_module, run
from xorepd.state.records import Outcome
from xorepd.units import MiB

# The tool never logs out.
pytestmark = [pytest.mark.lab, pytest.mark.stranger, pytest.mark.leaves("session")]

TOOL = NODE / "node_modules" / "@xen-orchestra" / "cr-seed-cli" / "index.mjs"


def login(lab: World, pool: str) -> str:
    known = lab.lab.pools[pool]
    return known.url.replace("://", f"://{known.username}:{known.password}@")


def uuid_of(vm: str) -> Any:
    return lambda xenapi: xenapi.VM.get_uuid(vm)


async def test_a_seed_that_xo_cr_seed_marked_gives_a_delta_on_the_first_run(
    tmp_path: Path,
) -> None:
    node = need_node_module("@xen-orchestra/cr-seed-cli")
    async with world(tmp_path / "lab", leaves=("session",)) as lab:
        taken = await carried.snapshot(lab)
        vm = await carried.carry(lab, taken)
        done = await run(
            *(node, TOOL, login(lab, "prod"), await lab.ask("prod", uuid_of(taken))),
            *(login(lab, "dr"), await lab.ask("dr", uuid_of(vm))),
            *(carried.JOB, carried.SCHEDULE),
        )
        assert (done.status, done.err) == (0, "")
        await lab.lab.guest_write("web01", 1, random=3, seed=1)

        record = await lab.replicate()

        assert record.outcome is Outcome.DELTA
        assert [disk.mode for disk in record.disks] == ["resync", "resync"]
        assert sum(disk.read_bytes for disk in record.disks) <= 8 * MiB
        await lab.newest_equals_its_source()
