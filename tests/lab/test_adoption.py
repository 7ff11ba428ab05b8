"""Copies that others made spare the first full, and stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.lab import carried, hands
from tests.lab.world import World, serve_nbd
from xorepd.state.records import Outcome
from xorepd.units import MiB

pytestmark = pytest.mark.lab


async def bring(world: World, era: str) -> str:
    """Let Xen Orchestra of an era have replicated web01; return its replica's reference."""
    taken = await carried.snapshot(world)
    vm = await carried.carry(world, taken)
    contents = await carried.label_source(world, taken, era=era)
    await carried.label_copy(world, vm, taken, contents, era=era)
    return vm


def state_of(vm: str) -> Any:
    """Return a question about everything of a VM and its snapshots that must not change."""

    def question(xenapi: Any) -> list[Any]:
        found = []
        for ref in (vm, *sorted(xenapi.VM.get_snapshots(vm))):
            record = xenapi.VM.get_record(ref)
            found.append({key: record[key] for key in ("uuid", "name_label", "other_config")})
            for vbd in sorted(record["VBDs"]):
                vdi = xenapi.VDI.get_record(xenapi.VBD.get_VDI(vbd))
                found.append({key: vdi[key] for key in ("uuid", "name_label", "other_config")})
        return found

    return question


@pytest.mark.parametrize("era", ["6.2", "6.3", "6.5"])
async def test_a_replica_that_xen_orchestra_made_spares_the_full(
    two_pools: World, era: str
) -> None:
    vm = await bring(two_pools, era)
    before = await two_pools.ask("dr", state_of(vm))
    await two_pools.lab.guest_write("web01", 1, random=2, seed=1)

    record = await two_pools.replicate()

    assert record.outcome is Outcome.DELTA
    assert sum(disk.moved_bytes for disk in record.disks) <= 8 * MiB
    await two_pools.newest_equals_its_source()
    assert await two_pools.ask("dr", state_of(vm)) == before
    await two_pools.lab.guest_write("web01", 1, random=2, seed=2)
    assert (await two_pools.replicate()).outcome is Outcome.DELTA
    await two_pools.newest_equals_its_source()
    assert await two_pools.ask("dr", state_of(vm)) == before


async def test_a_copy_that_holds_something_else_costs_the_full_and_is_named(
    two_pools: World,
) -> None:
    for pool in ("prod", "dr"):
        await serve_nbd(two_pools, pool)
    taken = await carried.snapshot(two_pools, "older")
    vm = await carried.carry(two_pools, taken)
    await two_pools.lab.guest_write("web01", 1, sequential=(0, 4 * MiB), seed=9)
    newer = await carried.snapshot(two_pools)
    contents = await carried.label_source(two_pools, newer, era="6.3")
    await carried.label_copy(two_pools, vm, newer, contents, era="6.3")

    with capture_logs() as logs:
        record = await two_pools.replicate()

    assert record.outcome is Outcome.FULL
    assert {disk.device: disk.mode for disk in record.disks} == {"0": "delta", "1": "full"}
    [said] = [entry for entry in logs if entry["event"] == "base.not_adopted"]
    assert "holds other content" in said["reason"]
    await two_pools.newest_equals_its_source()


async def test_a_copy_whose_transfer_never_ended_is_no_base(two_pools: World) -> None:
    vm = await bring(two_pools, "6.2")

    def interrupt(xenapi: Any) -> None:
        xenapi.VM.remove_from_other_config(vm, "xo:backup:datetime")
        xenapi.VM.add_to_other_config(vm, "xo:backup:datetime", "19700101T000000Z")

    await two_pools.ask("dr", interrupt)

    assert (await two_pools.replicate()).outcome is Outcome.FULL


async def test_nothing_of_ours_hangs_on_keys_that_xen_orchestra_takes_away(
    replicated: World,
) -> None:
    for pool in ("prod", "dr"):
        await replicated.ask(pool, hands.strip_keys_of_xen_orchestra)
    await replicated.lab.guest_write("web01", 1, random=2, seed=3)

    assert (await replicated.replicate()).outcome is Outcome.DELTA
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []
