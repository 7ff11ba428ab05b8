"""Chains and bitmaps that change, vanish or lie: the data stays right, and the record says why.

Where changed blocks are not available, or wrong, the run sends what the VHDs tell, and the next one
tracks again.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.lab import hands
from tests.lab.beginnings import Beginning
from tests.lab.world import World, new_run, serve_nbd
from tests.patience import patience
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.classes.storage import vdi_cbt
from xorepd_lab.faults.faults import Fault

KiB, MiB = 1 << 10, 1 << 20


async def prepare(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod")
    await two_pools.replicate(changed_blocks="enable", verify="off")


@pytest.fixture
def beginning(request: pytest.FixtureRequest) -> Beginning | None:
    return prepare if "tracked" in request.fixturenames else None


@pytest.fixture
def tracked(two_pools: World) -> World:
    """One restore point, tracked disks, NBD on the source."""
    return two_pools


async def run(two_pools: World) -> RunRecord:
    return await two_pools.replicate(changed_blocks="enable")


async def goes_on(two_pools: World, seed: int) -> None:
    """Check that the next run knows again what changed."""
    await two_pools.newest_equals_its_source()
    await two_pools.lab.guest_write("web01", 1, random=2, seed=seed)
    record = await run(two_pools)
    assert of_data(record) == ("nbd-changes", "")
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


def of_data(record: RunRecord) -> tuple[str, str]:
    """Return reader and reason of web01-data."""
    [disk] = [disk for disk in record.disks if disk.device == "1"]
    return disk.reader, disk.reader_reason


async def test_a_vm_that_was_reverted_gets_a_delta_without_the_bitmap(tracked: World) -> None:
    await tracked.lab.guest_write("web01", 1, random=5, seed=1)
    base = (await tracked.bases())[0]["self"]

    def revert(xenapi: Any) -> None:
        xenapi.VM.revert(xenapi.VM.get_by_uuid(base))
        vm = hands.vm_of(xenapi, "web01")
        if xenapi.VM.get_power_state(vm) == "Halted":
            xenapi.VM.start(vm, False, False)

    await tracked.ask("prod", revert)
    await tracked.lab.guest_write("web01", 1, random=3, seed=2)

    record = await run(tracked)

    # XAPI gives a reverted VM other disks, clones of the snapshot's, and tracks none of them. The
    # snapshots of the old disks become those of the new ones, so the base is known by its content.
    assert record.outcome is Outcome.DELTA
    reader, reason = of_data(record)
    assert reader == "export"
    assert "changed" in reason
    await tracked.newest_equals_its_source()
    await goes_on(tracked, 3)


async def test_a_base_whose_tracking_is_off_costs_the_bitmap_only(tracked: World) -> None:
    base = (await tracked.bases())[0]["self"]

    def disks(xenapi: Any) -> list[str]:
        return list(hands.disks_of(xenapi, xenapi.VM.get_by_uuid(base)).values())

    for disk in await tracked.ask("prod", disks):  # XAPI does so itself, and lets nobody else
        tracked.lab.pools["prod"].db.set("VDI", disk, cbt_enabled=False)
    await tracked.lab.guest_write("web01", 1, random=3, seed=1)

    record = await run(tracked)

    assert record.outcome is Outcome.DELTA
    reader, reason = of_data(record)
    assert (reader, "changed-block tracking is off on the base" in reason) == ("export", True)
    await goes_on(tracked, 2)


LIES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda bitmap: bitmap[:-1],
    "long": lambda bitmap: bitmap + b"\0",
    "of-a-large-disk": lambda bitmap: bitmap + bytes(8 << 20),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_bitmap_of_the_wrong_length_is_not_believed(
    tracked: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vdi_cbt, "b64encode", lambda bitmap: base64.b64encode(LIES[name](bitmap)))
    await tracked.lab.guest_write("web01", 1, random=3, seed=1)

    record = await run(tracked)

    reader, reason = of_data(record)
    assert reader == "export"
    assert "the bitmap of changed blocks has" in reason
    monkeypatch.undo()
    await goes_on(tracked, 2)


@pytest.mark.parametrize("told", [b"", b"****"], ids=["nothing", "no-base64"])
async def test_a_bitmap_that_is_none_is_not_believed(
    tracked: World, told: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vdi_cbt, "b64encode", lambda _: told)
    await tracked.lab.guest_write("web01", 1, random=3, seed=1)

    record = await run(tracked)

    reader, reason = of_data(record)
    assert reader == "export"
    assert "does not list changed blocks" in reason
    monkeypatch.undo()
    await goes_on(tracked, 2)


async def test_a_spoilt_answer_about_changed_blocks_is_no_bitmap(tracked: World) -> None:
    fault = tracked.lab.faults.add(
        Fault("rpc", "VDI.list_changed_blocks", times=None, error=("SR_BACKEND_FAILURE_460", "x"))
    )
    await tracked.lab.guest_write("web01", 1, random=3, seed=1)

    record = await run(tracked)

    assert fault.fired == 2
    reader, reason = of_data(record)
    assert (reader, "SR_BACKEND_FAILURE_460" in reason) == ("export", True)
    tracked.lab.faults.clear()
    await goes_on(tracked, 2)


@pytest.mark.parametrize("changed_blocks", ["off", "enable"])
async def test_a_chain_that_coalesces_while_it_is_exported_gives_the_same_disk(
    two_pools: World, changed_blocks: str
) -> None:
    await two_pools.replicate(changed_blocks=changed_blocks, verify="off")
    for seed in range(3):  # a chain of snapshots that somebody took
        await two_pools.lab.guest_write("web01", 1, sequential=(8 * MiB * seed, 4 * MiB), seed=seed)
        await two_pools.ask("prod", lambda x, s=seed: snapshot(x, f"by-hand-{s}"))
    await two_pools.lab.guest_write("web01", 1, sequential=(2 * MiB, 4 * MiB), seed=9)
    fault = two_pools.lab.faults.add(
        Fault("export", pool="prod", object="web01-data", stall=True, stall_at=3 * MiB)
    )

    async with two_pools.daemon() as context:
        job = two_pools.job(changed_blocks=changed_blocks)
        running = asyncio.get_running_loop().create_task(run_job(job, new_run(), context))
        async with asyncio.timeout(patience()):
            await fault.stalled.wait()
        await two_pools.ask("prod", destroy_by_hand)
        with suppress(TimeoutError):  # what is being read may have to wait
            await asyncio.wait_for(two_pools.lab.settled(), 2)
        fault.release()
        [record] = await running

    assert record.outcome is Outcome.DELTA, record.error
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


def snapshot(xenapi: Any, name: str) -> None:
    xenapi.VM.snapshot(hands.vm_of(xenapi, "web01"), name)


def destroy_by_hand(xenapi: Any) -> None:
    for ref, vm in xenapi.VM.get_all_records().items():
        if vm["name_label"].startswith("by-hand-"):
            hands.destroy_with_disks(xenapi, ref)
