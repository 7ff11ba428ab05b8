"""What the target holds already is not sent again, also where nothing tracks changes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab import hands
from tests.lab.test_resume import has_its_content
from tests.lab.test_resync import units
from tests.lab.test_targets import BOTH, THREE_POOLS
from tests.lab.world import World, clock, new_run, serve_nbd, world
from xorepd.data import fingerprint_map as builder
from xorepd.data.http import chunked
from xorepd.replication.run.jobs import Context, run_job
from xorepd.replication.transfer import disks as transfer
from xorepd.state.maps import open_maps
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd_lab.faults.faults import Fault

KiB, MiB = 1 << 10, 1 << 20
UNIT = 64 * KiB
DATA = 30 * MiB
COARSE: dict[str, Any] = {"changed_blocks": "off", "verify": "sample"}
"""Deltas come as blocks of 2 MiB, and the staging disks are read back in part."""


@asynccontextmanager
async def daemon(world: World, file: Path, size: int = 1 << 30) -> AsyncIterator[Context]:
    """Provide what a daemon has that keeps maps in a file."""
    async with open_maps(file, size, clock) as maps, world.daemon() as context:
        yield replace(context, maps=maps)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the daemons of a test keep their maps."""
    return tmp_path / "maps.db"


async def replicate(world: World, file: Path, **changes: Any) -> RunRecord:
    """Run the job once with a new daemon, which must succeed."""
    async with daemon(world, file) as context:
        record = await world.run(context, **COARSE | changes)
    assert record.error is None, record.error
    return record


def data_disk(record: RunRecord) -> DiskRecord:
    [disk] = [disk for disk in record.disks if disk.device == "1"]
    return disk


BOTH_WAYS = pytest.mark.parametrize("filled", ["export", "nbd"], indirect=True)
"""Staging disks are read back as an export of what changed, or at any place."""


@pytest.fixture
async def filled(two_pools: World, file: Path, request: pytest.FixtureRequest) -> World:
    """A restore point of a data disk that is full of data, and its map."""
    if getattr(request, "param", "export") == "nbd":
        for pool in ("prod", "dr"):
            await serve_nbd(two_pools, pool)
    await two_pools.lab.guest_write("web01", 1, sequential=(0, DATA), seed=1)
    await replicate(two_pools, file)
    return two_pools


@BOTH_WAYS
async def test_deltas_without_tracking_send_the_64_kib_that_differ(
    filled: World, file: Path
) -> None:
    for seed in (2, 3, 4):
        touched = await filled.lab.guest_write("web01", 1, random=5, seed=seed, within=(0, DATA))

        disk = data_disk(await replicate(filled, file))

        assert (disk.reader, disk.sent_bytes) == ("export", units(touched))
        assert disk.unchanged_bytes == disk.read_bytes - disk.sent_bytes > 0
        await filled.newest_equals_its_source()
    assert await filled.left_over() == []


async def test_trimmed_blocks_become_zeroes_and_nothing_is_sent_of_what_is_written_as_it_was(
    filled: World, file: Path
) -> None:
    await filled.lab.guest_write("web01", 1, sequential=(4 * MiB, MiB), seed=9)
    await replicate(filled, file)
    await filled.lab.guest_write("web01", 1, sequential=(4 * MiB, MiB), seed=9)
    await filled.lab.guest_write("web01", 1, trim=(8 * MiB, 128 * KiB))

    disk = data_disk(await replicate(filled, file))

    assert (disk.sent_bytes, disk.unchanged_bytes) == (128 * KiB, 4 * MiB - 128 * KiB)
    await filled.newest_equals_its_source()


async def test_tracked_blocks_that_hold_what_they_held_are_left_out(
    two_pools: World, file: Path
) -> None:
    for pool in ("prod", "dr"):
        await serve_nbd(two_pools, pool)
    await two_pools.lab.guest_write("web01", 1, sequential=(4 * MiB, MiB), seed=9)
    await replicate(two_pools, file, changed_blocks="enable")
    await two_pools.lab.guest_write("web01", 1, sequential=(4 * MiB, MiB), seed=9)
    await two_pools.lab.guest_write("web01", 1, sequential=(6 * MiB, UNIT), seed=3)

    disk = data_disk(await replicate(two_pools, file, changed_blocks="enable"))

    assert (disk.reader, disk.changed_bytes) == ("nbd-changes", MiB + UNIT)
    assert (disk.sent_bytes, disk.unchanged_bytes) == (UNIT, MiB)
    await two_pools.newest_equals_its_source()


async def test_who_verifies_everything_has_everything_sent(filled: World, file: Path) -> None:
    await filled.lab.guest_write("web01", 1, random=1, seed=2, within=(0, 2 * MiB))

    disk = data_disk(await replicate(filled, file, verify="full"))

    assert (disk.sent_bytes, disk.unchanged_bytes) == (2 * MiB, 0)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 + 100]),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_file_that_is_torn_or_gone_costs_blocks_of_2_mib_and_is_made_anew(
    filled: World, file: Path, damage: str
) -> None:
    await asyncio.to_thread(DAMAGES[damage], file)
    await filled.lab.guest_write("web01", 1, random=1, seed=2, within=(0, 2 * MiB))
    unfinished = data_disk(await replicate(filled, file))
    await filled.newest_equals_its_source()
    touched = await filled.lab.guest_write("web01", 1, random=1, seed=3, within=(0, 2 * MiB))

    disk = data_disk(await replicate(filled, file))

    assert (unfinished.sent_bytes, unfinished.unchanged_bytes) == (2 * MiB, 0)
    assert disk.sent_bytes == units(touched)
    await filled.newest_equals_its_source()


async def test_the_map_of_another_point_tells_nothing(filled: World, file: Path) -> None:
    await filled.lab.guest_write("web01", 1, random=1, seed=2, within=(0, 2 * MiB))
    await filled.replicate(**COARSE)  # by a daemon that keeps no maps
    await filled.lab.guest_write("web01", 1, random=1, seed=3, within=(0, 2 * MiB))

    disk = data_disk(await replicate(filled, file))

    assert (disk.sent_bytes, disk.unchanged_bytes) == (2 * MiB, 0)
    await filled.newest_equals_its_source()


async def test_the_map_of_a_run_that_failed_at_its_commit_tells_nothing(
    filled: World, file: Path
) -> None:
    await filled.lab.guest_write("web01", 1, random=1, seed=2, within=(0, 2 * MiB))
    filled.lab.faults.add(Fault("rpc", "VM.snapshot", pool="dr", times=1, error=("NO_SPACE",)))
    async with daemon(filled, file) as context:
        failed = await filled.run(context, **COARSE)
    assert failed.outcome is Outcome.FAILED
    touched = await filled.lab.guest_write("web01", 1, random=1, seed=3, within=(0, 2 * MiB))
    touched += await filled.lab.guest_write("web01", 1, random=1, seed=2, within=(0, 2 * MiB))

    disk = data_disk(await replicate(filled, file))

    assert disk.sent_bytes == units(touched)
    await filled.newest_equals_its_source()


async def test_a_map_that_is_wrong_is_found_by_the_sample_and_forgotten(
    two_pools: World, file: Path
) -> None:
    for pool in ("prod", "dr"):
        await serve_nbd(two_pools, pool)
    await two_pools.lab.guest_write("web01", 1, sequential=(0, MiB), seed=1)
    await replicate(two_pools, file)
    await two_pools.lab.guest_write("web01", 1, sequential=(0, MiB), seed=2)
    await replicate(two_pools, file)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(  # what changed is missing: the new map is as the one before it
            "DELETE FROM pages WHERE place >> 32 IN (SELECT id FROM maps WHERE base IS NOT NULL)"
        )
    await two_pools.lab.guest_write("web01", 1, sequential=(0, MiB), seed=1)

    async with daemon(two_pools, file) as context:
        wrong = await two_pools.run(context, **COARSE)
        right = await two_pools.run(context, **COARSE)

    assert "differs from what was sent" in (wrong.error or "")
    assert right.error is None, right.error
    assert data_disk(right).sent_bytes == 2 * MiB
    await two_pools.newest_equals_its_source()


@pytest.mark.leaves("session")
async def test_a_killed_daemon_is_continued_and_its_map_as_well(
    two_pools: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 4 * MiB)
    monkeypatch.setattr(builder, "OUTBOX_S", 0.0)
    await two_pools.lab.guest_write("web01", 1, sequential=(0, DATA), seed=1)
    keep: dict[str, Any] = COARSE | {"resume": "1d"}
    loop = asyncio.get_running_loop()
    stall = two_pools.lab.faults.add(
        Fault("import", "raw", object="[Importing] web01-data", skip=5, stall=True, stall_at=MiB)
    )
    async with daemon(two_pools, file) as context:
        run = loop.create_task(two_pools.run(context, **keep), name="run")
        await stall.stalled.wait()
        await has_its_content(two_pools)
        for where in ("rpc", "export", "import"):
            two_pools.lab.faults.add(Fault(where, times=None, reset=True))
        run.cancel()
        stall.release()
        await asyncio.wait({run})
    two_pools.lab.faults.clear()

    resumed = data_disk(await replicate(two_pools, file, **keep))

    assert resumed.resumed_from >= 12 * MiB
    await two_pools.newest_equals_its_source()
    for within in ((0, 4 * MiB), (20 * MiB, 4 * MiB)):
        touched = await two_pools.lab.guest_write("web01", 1, random=2, seed=3, within=within)
        assert data_disk(await replicate(two_pools, file)).sent_bytes == units(touched)
        await two_pools.newest_equals_its_source()


@BOTH_WAYS
async def test_a_delta_that_breaks_leaves_out_the_same_when_it_goes_on(
    filled: World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 256 * KiB)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
    touched = await filled.lab.guest_write("web01", 1, random=20, seed=2, within=(0, DATA))
    cut = filled.lab.faults.add(
        Fault("import", "raw", object="[Importing] web01-data", skip=2, cut_at=70 * KiB)
    )

    broken = data_disk(await replicate(filled, file, resume="1d"))

    assert (cut.fired, broken.reconnects) == (1, 1)
    assert units(touched) <= broken.sent_bytes <= units(touched) + 512 * KiB
    await filled.newest_equals_its_source()
    touched = await filled.lab.guest_write("web01", 1, random=3, seed=3, within=(0, DATA))
    assert data_disk(await replicate(filled, file)).sent_bytes == units(touched)
    await filled.newest_equals_its_source()


async def test_a_disk_that_has_grown_keeps_its_map(filled: World, file: Path) -> None:
    def grow(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.hard_shutdown(vm)
        disk = xenapi.VBD.get_VDI(hands.drive_of(xenapi, vm, "1"))
        xenapi.VDI.resize(disk, str(int(xenapi.VDI.get_virtual_size(disk)) + 20 * MiB))
        xenapi.VM.start(vm, False, False)

    await filled.ask("prod", grow)
    touched = await filled.lab.guest_write("web01", 1, random=3, seed=2, within=(0, 8 * MiB))

    disk = data_disk(await replicate(filled, file))

    assert units(touched) == disk.sent_bytes
    point = (await filled.points())[0]  # libvhdi reads no disk that is larger than its parent
    ours = await filled.exported_hashes("dr", point["self"])
    assert ours == await filled.exported_hashes("prod", point["snapshot"])


@BOTH_WAYS
async def test_a_base_deleted_by_hand_is_made_up_for_without_reading_the_target(
    filled: World, file: Path
) -> None:
    touched = await filled.lab.guest_write("web01", 1, random=5, seed=2)
    touched += await filled.lab.guest_write("web01", 1, trim=(8 * MiB, 2 * MiB))
    await filled.ask("prod", hands.delete_snapshots)
    read = reads_of(filled, "dr")

    record = await replicate(filled, file, verify="off")

    disk = data_disk(record)
    assert (record.outcome, disk.mode, disk.reason) == (
        Outcome.DELTA,
        "resync",
        "base-gone-on-source",
    )
    assert disk.sent_bytes == disk.changed_bytes == units(touched)
    assert (disk.compared_bytes or 0) >= 28 * MiB
    assert reads_of(filled, "dr") == read
    await filled.newest_equals_its_source()
    touched = await filled.lab.guest_write("web01", 1, random=2, seed=3, within=(0, DATA))
    assert data_disk(await replicate(filled, file)).sent_bytes == units(touched)
    await filled.newest_equals_its_source()


def reads_of(world: World, pool: str) -> int:
    """Return how often a disk of a pool has been read."""
    return sum(call.pool == pool and call.kind in ("export", "nbd") for call in world.lab.calls)


async def test_a_comparison_makes_the_map_that_was_lost(filled: World, file: Path) -> None:
    await asyncio.to_thread(file.unlink)
    await filled.ask("prod", hands.delete_snapshots)
    compared = data_disk(await replicate(filled, file))
    touched = await filled.lab.guest_write("web01", 1, random=3, seed=2, within=(0, DATA))

    disk = data_disk(await replicate(filled, file))

    assert (compared.mode, compared.sent_bytes) == ("resync", 0)
    assert (disk.mode, disk.sent_bytes) == ("delta", units(touched))
    await filled.newest_equals_its_source()


async def test_each_target_has_a_map_of_its_own(tmp_path: Path, file: Path) -> None:
    job = BOTH | COARSE
    async with world(tmp_path / "lab", THREE_POOLS) as three, daemon(three, file) as context:
        await three.lab.guest_write("web01", 1, sequential=(0, DATA), seed=1)
        await run_job(three.job(**job), new_run(), context)
        await three.lab.guest_write("web01", 1, random=3, seed=2, within=(0, 8 * MiB))
        await run_job(three.job(**job | {"targets": [job["targets"][0]]}), new_run(), context)
        await three.lab.guest_write("web01", 1, random=1, seed=3, within=(10 * MiB, MiB))

        records = await run_job(three.job(**job), new_run(), context)

        assert [record.error for record in records] == [None, None]
        near, far = (data_disk(record) for record in records)
        assert near.sent_bytes == UNIT
        assert UNIT < far.sent_bytes <= 4 * UNIT
        for pool in ("dr", "far"):
            await three.newest_equals_its_source(pool)


async def test_a_pool_that_takes_only_vhds_gets_whole_blocks(filled: World, file: Path) -> None:
    filled.lab.faults.add(Fault("import", "raw", times=None, http_status=404))
    await filled.lab.guest_write("web01", 1, random=1, seed=2, within=(0, 2 * MiB))

    disk = data_disk(await replicate(filled, file))

    assert (disk.writer, disk.sent_bytes, disk.unchanged_bytes) == ("vhd", 2 * MiB, 0)
    await filled.newest_equals_its_source()
    filled.lab.faults.clear()


async def test_only_the_maps_of_the_newest_points_are_kept(filled: World, file: Path) -> None:
    sizes = []
    for seed in range(2, 6):
        await filled.lab.guest_write("web01", 1, sequential=(0, DATA), seed=seed)
        await replicate(filled, file)
        sizes.append((await asyncio.to_thread(file.stat)).st_size)

    assert max(sizes) <= sizes[0] + 64 * KiB


async def test_without_room_for_maps_everything_is_sent_and_nothing_fails(
    filled: World, tmp_path: Path
) -> None:
    async with daemon(filled, tmp_path / "small.db", 20 * KiB) as context:
        await filled.lab.guest_write("web01", 1, random=1, seed=2, within=(0, 2 * MiB))
        record = await filled.run(context, **COARSE)

    assert record.error is None
    assert data_disk(record).sent_bytes == 2 * MiB
