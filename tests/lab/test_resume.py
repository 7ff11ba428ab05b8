"""Transfers that are cut and go on: in the same run, in the next one, in another daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.lab import carried, hands
from tests.lab.world import World, serve_nbd
from tests.patience import patience
from xorepd.data.http import chunked
from xorepd.replication.deciding import resume
from xorepd.replication.run.jobs import Context
from xorepd.replication.transfer import disks as transfer
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd_lab.faults.faults import Fault

KiB, MiB = 1 << 10, 1 << 20
DATA = 30 * MiB
KEEP = {"resume": "1d"}
RAW = "raw"
"""What the lab calls a chunked import."""


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Confirm every 4 MiB, and wait for nothing."""
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 4 * MiB)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)


@pytest.fixture
async def full(two_pools: World) -> AsyncIterator[World]:
    """A data disk that is full of data; nothing has been replicated yet."""
    await two_pools.lab.guest_write("web01", 1, sequential=(0, DATA), seed=1)
    yield two_pools
    two_pools.lab.faults.clear()


def disk_of(record: RunRecord, device: str = "1") -> DiskRecord:
    [disk] = [disk for disk in record.disks if disk.device == device]
    return disk


DISK = "[Importing] web01-data"
"""Name of the staging disk that most tests are about."""


async def interrupted(world: World, context: Context, *, after: int = 4, **job: Any) -> RunRecord:
    """Run until the data disk's import breaks for good, behind so many segments."""
    world.lab.faults.add(Fault("import", RAW, object=DISK, skip=after, times=None, cut_at=MiB))
    record = await world.run(context, **KEEP | job)
    world.lab.faults.clear()
    assert record.outcome is Outcome.FAILED
    assert record.resumable == bool(await world.bases())
    return record


async def staging(world: World) -> dict[str, dict[str, Any]]:
    """Return the staging disks on the target: name → record."""

    def look(xenapi: Any) -> dict[str, dict[str, Any]]:
        return {
            vdi["name_label"]: vdi
            for vdi in xenapi.VDI.get_all_records().values()
            if vdi["name_label"].startswith("[Importing]")
        }

    found: dict[str, dict[str, Any]] = await world.ask("dr", look)
    return found


async def confirmed(world: World) -> int:
    """Return the offset that stands on the data disk's staging disk."""
    text = (await staging(world))[DISK]["other_config"].get("xorepd:confirmed", "- 0")
    return int(text.split()[1])


async def has_its_content(world: World) -> None:
    """Wait until the data disk's staging disk has the content id that its mark names."""
    async with asyncio.timeout(30):
        while True:  # a pool has to be asked
            other = (await staging(world))[DISK]["other_config"]
            if other.get("content_id") == json.loads(other["xorepd:mark"])["content"]:
                return
            await asyncio.sleep(0.05)


def unseen(vdi: str) -> Any:
    """Return a deed that gives a disk back the content id that writing took off it.

    As if its storage had gone bad: XAPI knows nothing of it.
    """

    def deed(xenapi: Any) -> None:
        ref = xenapi.VDI.get_by_uuid(vdi)
        mark = json.loads(xenapi.VDI.get_other_config(ref)["xorepd:mark"])
        xenapi.VDI.remove_from_other_config(ref, "content_id")
        xenapi.VDI.add_to_other_config(ref, "content_id", mark["content"])

    return deed


@pytest.mark.parametrize("with_nbd", [False, True], ids=["export", "nbd"])
async def test_the_next_run_goes_on_where_the_last_segment_was_confirmed(
    full: World, with_nbd: bool
) -> None:
    if with_nbd:
        for pool in ("prod", "dr"):
            await serve_nbd(full, pool)
    async with full.daemon() as context:
        await interrupted(full, context)
        [snapshot] = await full.bases()
        assert await confirmed(full) == 16 * MiB
        await full.lab.guest_write("web01", 1, sequential=(0, MiB), seed=2)

        second = await full.run(context, **KEEP)

    assert second.error is None, second.error
    disk = disk_of(second)
    assert (disk.resumed_from, disk.sent_bytes) == (16 * MiB, DATA - 16 * MiB)
    assert (disk.mode, disk.reason) == ("full", "first-run")
    assert [point["snapshot"] for point in await full.points()] == [snapshot["self"]]
    await full.newest_equals_its_source()
    assert await full.left_over() == []

    third = await full.replicate(**KEEP)
    assert disk_of(third).resumed_from == 0
    assert (third.outcome, disk_of(third).mode) == (Outcome.DELTA, "delta")
    await full.newest_equals_its_source()


async def test_a_delta_goes_on_in_the_next_daemon(full: World) -> None:
    await full.replicate(verify="off")
    await full.lab.guest_write("web01", 1, sequential=(0, DATA), seed=3)
    async with full.daemon() as context:
        await interrupted(full, context)

    record = await full.replicate(**KEEP)

    disk = disk_of(record)
    assert (disk.mode, disk.resumed_from) == ("delta", 16 * MiB)
    assert disk.sent_bytes == DATA - 16 * MiB
    await full.newest_equals_its_source()
    assert await full.left_over() == []


async def test_a_resync_goes_on_and_compares_no_more_than_the_rest(full: World) -> None:
    await full.replicate(verify="off")
    await full.lab.guest_write("web01", 1, sequential=(0, DATA), seed=3)
    await full.ask("prod", hands.delete_snapshots)
    async with full.daemon() as context:
        await interrupted(full, context)

    record = await full.replicate(verify="sample", **KEEP)

    disk = disk_of(record)
    assert (disk.mode, disk.reason) == ("resync", "base-gone-on-source")
    assert (disk.resumed_from, disk.sent_bytes) == (16 * MiB, DATA - 16 * MiB)
    await full.newest_equals_its_source()
    assert await full.left_over() == []


async def test_an_import_that_breaks_goes_on_in_the_same_run(full: World) -> None:
    cut = full.lab.faults.add(Fault("import", RAW, object=DISK, skip=3, cut_at=MiB))

    record = await full.replicate(**KEEP)

    assert cut.fired == 1
    disk = disk_of(record)
    assert (disk.reconnects, disk.resumed_from) == (1, 0)
    assert DATA < disk.sent_bytes <= DATA + 4 * MiB
    await full.newest_equals_its_source()
    assert await full.left_over() == []


async def test_what_was_sent_before_the_source_broke_is_not_sent_again(full: World) -> None:
    cut = full.lab.faults.add(Fault("export", pool="prod", object="web01-data", cut_at=11 * MiB))

    record = await full.replicate(**KEEP)

    assert cut.fired == 1
    disk = disk_of(record)
    assert (disk.reconnects, disk.sent_bytes) == (1, DATA)
    await full.newest_equals_its_source()


async def test_a_disk_cut_five_times_at_nine_tenths_is_not_sent_twice(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", MiB)
    monkeypatch.setattr(transfer, "TRIES", 1)
    records = []
    async with full.daemon() as context:
        for after in (27, 0, 0, 0, 0):
            full.lab.faults.add(
                Fault("import", RAW, object=DISK, skip=after, times=None, cut_at=512 * KiB)
            )
            records.append(await full.run(context, **KEEP))
            full.lab.faults.clear()
        records.append(await full.run(context, **KEEP))

    assert [record.outcome for record in records] == [Outcome.FAILED] * 5 + [Outcome.FULL]
    assert sum(disk_of(record).sent_bytes for record in records) < 1.2 * DATA
    await full.newest_equals_its_source()
    assert await full.left_over() == []


@pytest.mark.leaves("session")
async def test_a_killed_daemon_is_continued_by_the_next_one(full: World) -> None:
    loop = asyncio.get_running_loop()
    stall = full.lab.faults.add(Fault("import", RAW, object=DISK, skip=4, stall=True, stall_at=MiB))
    async with full.daemon() as context:
        run = loop.create_task(full.run(context, **KEEP), name="run")
        await stall.stalled.wait()
        await has_its_content(full)
        for where in ("rpc", "export", "import"):
            full.lab.faults.add(Fault(where, times=None, reset=True))
        run.cancel()
        stall.release()
        await asyncio.wait({run})
    full.lab.faults.clear()

    record = await full.replicate(**KEEP)

    assert disk_of(record).resumed_from >= 12 * MiB
    await full.newest_equals_its_source()
    assert await full.left_over() == []


async def test_a_cancelled_run_is_continued_by_the_next_one(full: World) -> None:
    loop = asyncio.get_running_loop()
    stall = full.lab.faults.add(
        Fault("export", pool="prod", object="web01-data", stall=True, stall_at=9 * MiB)
    )
    async with full.daemon() as context:
        run = loop.create_task(full.run(context, **KEEP), name="run")
        await stall.stalled.wait()
        async with asyncio.timeout(patience()):
            while not await confirmed(full):  # noqa: ASYNC110 -- a pool has to be asked
                await asyncio.sleep(0.05)
        run.cancel()
        await asyncio.wait({run})
        stall.release()
        reached = await confirmed(full)

        record = await full.run(context, **KEEP)

    assert record.error is None, record.error
    assert 4 * MiB <= reached == disk_of(record).resumed_from
    await full.newest_equals_its_source()


async def test_what_was_interrupted_is_removed_where_nobody_wants_it(full: World) -> None:
    async with full.daemon() as context:
        await interrupted(full, context, resume="0s")

    assert await full.bases() == []
    assert await staging(full) == {}


async def test_what_is_too_old_is_removed_by_the_next_run(full: World) -> None:
    async with full.daemon() as context:
        await interrupted(full, context)
        old = await staging(full)

        record = await full.run(context, resume="1s")

    assert old
    assert record.error is None, record.error
    assert disk_of(record).resumed_from == 0
    assert await full.left_over() == []


async def test_a_snapshot_deleted_by_hand_is_not_missed(full: World) -> None:
    async with full.daemon() as context:
        await interrupted(full, context)
        await full.ask("prod", hands.delete_snapshots)

        record = await full.run(context, **KEEP)

    assert record.error is None, record.error
    assert disk_of(record).resumed_from == 0
    await full.newest_equals_its_source()
    assert await full.left_over() == []


async def test_runs_that_all_stop_at_one_place_give_up(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "MOST_TRIES", 2)
    async with full.daemon() as context:
        await interrupted(full, context)
        for _ in range(2):
            assert await staging(full)
            again = await interrupted(full, context, after=0)
            assert disk_of(again).resumed_from == 16 * MiB

        assert await staging(full) == {}
        assert await full.bases() == []


async def test_damage_below_the_confirmed_offset_is_found_and_not_continued(full: World) -> None:
    async with full.daemon() as context:
        await interrupted(full, context)
        vdi = (await staging(full))[DISK]["uuid"]
        await carried.overwrite(full, "dr", vdi, 5 * MiB, b"damage!!" * 64)
        await full.ask("dr", unseen(vdi))

        record = await full.run(context, **KEEP)

        assert record.outcome is Outcome.FAILED
        assert "differs from what was sent" in (record.error or "")
        assert await staging(full) == {}

        record = await full.run(context, **KEEP)

    assert record.error is None, record.error
    await full.newest_equals_its_source()
    assert await full.left_over() == []


async def test_disks_that_were_not_begun_are_planned_beside_the_one_that_goes_on(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "DISKS_AT_ONCE", 1)
    root = "[Importing] web01-root"
    cut = Fault("import", RAW, object=root, times=None, cut_at=4096)
    async with full.daemon() as context:
        full.lab.faults.add(cut)
        first = await full.run(context, **KEEP)
        full.lab.faults.clear()
        assert first.outcome is Outcome.FAILED

        record = await full.run(context, **KEEP)

    assert record.error is None, record.error
    await full.newest_equals_its_source()
    assert await full.left_over() == []


# -- consent -------------------------------------------------------------------------------------


def destroy_root_copy(xenapi: Any) -> None:
    """Delete what an interrupted run has sent of web01's root disk."""
    for ref, vdi in xenapi.VDI.get_all_records().items():
        if vdi["name_label"] == "[Importing] web01-root":
            xenapi.VDI.destroy(ref)


def destroy_root_bases(xenapi: Any) -> None:
    """Delete web01's root disk from all snapshots but the newest."""
    snapshots = xenapi.VM.get_snapshots(hands.vm_of(xenapi, "web01"))
    snapshots.sort(key=lambda ref: str(xenapi.VM.get_snapshot_time(ref)))
    for snapshot in snapshots[:-1]:
        xenapi.VDI.destroy(hands.disks_of(xenapi, snapshot)["0"])


async def test_a_full_that_waits_for_consent_takes_nothing_from_the_disks_begun(
    full: World,
) -> None:
    await full.replicate(verify="off")
    await full.lab.guest_write("web01", 1, sequential=(0, DATA), seed=3)
    job: dict[str, Any] = KEEP | {"resync": False, "full": "ask"}
    async with full.daemon() as context:
        await interrupted(full, context, **job)
        await full.ask("dr", destroy_root_copy)
        await full.ask("prod", destroy_root_bases)

        held = await full.run(context, **job)
        assert "disk 0 (base-gone-on-source) would be sent whole" in (held.error or "")
        assert held.resumable
        assert await confirmed(full) == 16 * MiB
        record = await full.run(context, **job | {"full": "allow"})

    assert record.error is None, record.error
    modes = [(disk.mode, disk.resumed_from) for disk in record.disks]
    assert modes == [("full", 0), ("delta", 16 * MiB)]
    await full.newest_equals_its_source()
    assert await full.left_over() == []


async def test_consent_holds_until_what_it_let_begin_has_ended(full: World) -> None:
    await full.replicate(verify="off")
    await full.ask("prod", hands.delete_snapshots)
    job: dict[str, Any] = KEEP | {"resync": False}
    async with full.daemon() as context:
        await interrupted(full, context, **job, full="allow")
        await full.ask("dr", destroy_root_copy)

        record = await full.run(context, **job, full="ask")
        assert record.error is None, record.error
        await full.newest_equals_its_source()
        await full.ask("prod", hands.delete_snapshots)
        following = await full.run(context, **job, full="ask")

    assert record.outcome is Outcome.FULL
    assert [disk.resumed_from for disk in record.disks] == [0, 16 * MiB]
    assert "xorepctl run web --allow-full" in (following.error or "")
    assert await full.left_over() == []
