"""Comparisons of both sides that are cut and go on: in the same run, in the next one, in another
daemon."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.lab import carried, hands
from tests.lab.test_resume import unseen
from tests.lab.world import World, serve_nbd
from xorepd.data.nbd import reader as nbd_reader
from xorepd.replication.run.jobs import Context
from xorepd.replication.transfer import disks as transfer
from xorepd.replication.transfer import resync
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd_lab.faults.faults import Fault

KiB, MiB = 1 << 10, 1 << 20
UNIT = 64 * KiB
DATA = 30 * MiB
WINDOW = 4 * MiB
KEEP = {"resume": "1d", "verify": "sample"}


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync, "FIRST_WINDOW", WINDOW)
    monkeypatch.setattr(resync, "LONGEST_WINDOW", WINDOW)
    for module, tries in ((transfer, 2), (nbd_reader, 1)):
        monkeypatch.setattr(module, "PAUSE_S", 0.01)
        monkeypatch.setattr(module, "TRIES", tries)


@pytest.fixture
async def baseless(replicated: World) -> AsyncIterator[World]:
    """A data disk full of data with a restore point, whose base somebody deleted; NBD is served."""
    for pool in ("prod", "dr"):
        await serve_nbd(replicated, pool)
    await replicated.lab.guest_write("web01", 1, sequential=(0, DATA), seed=1)
    await replicated.replicate(verify="off")
    await replicated.ask("prod", hands.delete_snapshots)
    yield replicated
    replicated.lab.faults.clear()


def disk_of(record: RunRecord, device: str = "1") -> DiskRecord:
    [disk] = [disk for disk in record.disks if disk.device == device]
    return disk


def read_of(world: World, pool: str) -> int:
    """Return how many bytes were read over NBD of that disk of a pool that was read most."""
    read = Counter[str]()
    for call in world.lab.recorder.calls:
        if (call.pool, call.kind, call.name) == (pool, "nbd", "read"):
            read[call.arguments[0]] += call.moved
    return max(read.values())


async def killed(world: World, *, after: int) -> None:
    """Run a daemon until so many pieces of the source's data disk were read, and kill it there."""
    loop = asyncio.get_running_loop()
    stall = world.lab.faults.add(
        Fault("nbd", "read", pool="prod", object="web01-data", skip=after, stall=True)
    )
    async with world.daemon() as context:
        run = loop.create_task(world.run(context, **KEEP), name="run")
        await stall.stalled.wait()
        for where in ("rpc", "export", "import", "nbd"):
            world.lab.faults.add(Fault(where, times=None, reset=True))
        run.cancel()
        stall.release()
        await asyncio.wait({run})
    world.lab.faults.clear()


@pytest.mark.leaves("session")
async def test_a_comparison_killed_thrice_at_nine_tenths_is_not_done_twice(
    baseless: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "LONGEST_WINDOW", 2 * MiB)
    await baseless.lab.guest_write("web01", 1, random=3, seed=2)
    baseless.lab.recorder.calls.clear()

    for after in (27, 1, 1):
        await killed(baseless, after=after)
    record = await baseless.replicate(**KEEP)

    disk = disk_of(record)
    assert (disk.mode, disk.reason) == ("resync", "base-gone-on-source")
    assert disk.resumed_from >= 24 * MiB
    for pool in ("prod", "dr"):
        assert DATA <= read_of(baseless, pool) < 1.3 * DATA
    await baseless.newest_equals_its_source()
    assert await baseless.left_over() == []


@pytest.mark.parametrize(
    ("pool", "name"), [("prod", "web01-data"), ("dr", "[Importing] web01-data")]
)
async def test_a_comparison_that_breaks_goes_on_at_its_window(
    baseless: World, pool: str, name: str
) -> None:
    await baseless.lab.guest_write("web01", 1, sequential=(8 * MiB, 3 * MiB), seed=3)
    await baseless.lab.guest_write("web01", 1, sequential=(25 * MiB, MiB), seed=4)
    cut = baseless.lab.faults.add(Fault("nbd", "read", pool=pool, object=name, skip=20, reset=True))
    baseless.lab.recorder.calls.clear()

    record = await baseless.replicate(**KEEP)

    disk = disk_of(record)
    assert (cut.fired, disk.reconnects) == (1, 1)
    assert disk.sent_bytes == disk.changed_bytes == 4 * MiB
    assert DATA <= (disk.compared_bytes or 0) <= DATA + WINDOW
    await baseless.newest_equals_its_source()
    assert await baseless.left_over() == []


async def test_a_comparison_shows_how_far_it_is(baseless: World) -> None:
    await baseless.lab.guest_write("web01", 1, random=2, seed=3)
    stall = baseless.lab.faults.add(
        Fault("nbd", "read", pool="prod", object="web01-data", skip=20, stall=True)
    )
    async with baseless.daemon() as context:
        run = asyncio.get_running_loop().create_task(baseless.run(context, **KEEP), name="run")
        await stall.stalled.wait()
        [meanwhile] = context.board.records()
        stall.release()
        record = await run

    disk = disk_of(meanwhile)
    assert disk.is_being_compared
    assert disk.to_compare_bytes == DATA
    assert 4 * WINDOW <= (disk.compared_bytes or 0) <= 20 * MiB + 2 * WINDOW
    assert disk_of(record).compared_bytes == disk_of(record).to_compare_bytes == DATA
    assert await baseless.left_over() == []


async def test_what_differs_is_sent_with_the_window_that_it_is_in(baseless: World) -> None:
    await baseless.lab.guest_write("web01", 1, sequential=(0, 12 * MiB), seed=3)
    baseless.lab.faults.add(
        Fault("nbd", "read", pool="prod", object="web01-data", skip=18, times=None, reset=True)
    )
    async with baseless.daemon() as context:
        first = await baseless.run(context, **KEEP)
        baseless.lab.faults.clear()

        second = await baseless.run(context, **KEEP)

    assert (first.outcome, first.resumable) == (Outcome.FAILED, True)
    assert 0 < disk_of(first).sent_bytes <= 12 * MiB
    assert disk_of(first).sent_bytes + disk_of(second).sent_bytes == 12 * MiB
    assert disk_of(second).resumed_from >= disk_of(first).sent_bytes
    await baseless.newest_equals_its_source()


async def cut_and_damaged(world: World, context: Context) -> None:
    """Let a run be cut behind several windows, and somebody write into what it has confirmed."""
    name = "[Importing] web01-data"
    world.lab.faults.add(
        Fault("nbd", "read", pool="dr", object=name, skip=24, times=None, reset=True)
    )
    record = await world.run(context, **KEEP)
    world.lab.faults.clear()
    assert record.resumable
    uuid = await world.ask("dr", lambda x: x.VDI.get_uuid(x.VDI.get_by_name_label(name)[0]))
    await carried.overwrite(world, "dr", uuid, 5 * MiB, b"damage!!" * 64)
    await world.ask("dr", unseen(uuid))


async def test_a_job_that_checks_everything_compares_again_what_an_earlier_run_left(
    baseless: World,
) -> None:
    await baseless.lab.guest_write("web01", 1, sequential=(0, MiB), seed=3)
    async with baseless.daemon() as context:
        await cut_and_damaged(baseless, context)

        record = await baseless.run(context, resume="1d", verify="full")

    assert record.error is None, record.error
    disk = disk_of(record)
    assert (disk.sent_bytes, disk.compared_bytes) == (UNIT, DATA)
    await baseless.newest_equals_its_source()


async def test_what_turned_out_to_be_confirmed_wrongly_is_confirmed_no_more(
    baseless: World,
) -> None:
    async with baseless.daemon() as context:
        await cut_and_damaged(baseless, context)
        baseless.lab.faults.add(Fault("import", pool="dr", times=None, reset=True))
        found = await baseless.run(context, resume="1d", verify="full")
        baseless.lab.faults.clear()
        assert (found.outcome, disk_of(found).changed_bytes) == (Outcome.FAILED, UNIT)

        record = await baseless.run(context, **KEEP)

    assert record.error is None, record.error
    await baseless.newest_equals_its_source()


async def test_windows_of_a_sparse_disk_end_where_it_ends(two_pools: World) -> None:
    for pool in ("prod", "dr"):
        await serve_nbd(two_pools, pool)
    await two_pools.lab.guest_write("web01", 1, sequential=(20 * MiB, 100 * KiB), seed=1)
    await two_pools.replicate(verify="off")
    await two_pools.ask("prod", hands.delete_snapshots)

    record = await two_pools.replicate(**KEEP)

    disk = disk_of(record)
    assert (disk.mode, disk.sent_bytes, disk.reader) == ("resync", 0, "unchanged")
    assert record.outcome is Outcome.DELTA
    await two_pools.newest_equals_its_source()
