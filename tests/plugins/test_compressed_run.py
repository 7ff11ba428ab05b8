"""A VM through the compressed transport and a relay, between two pools of the lab."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import xorepd_compressed.link as link
from tests.lab import hands
from tests.lab.relayed import relayed
from tests.lab.test_relay_process import Process
from tests.lab.world import World, clock, new_run, serve_nbd
from tests.patience import patience
from tests.unit.relay.ends import make_certificates
from xorepd.data.nbd import reader as nbd_reader
from xorepd.replication.run.jobs import Context, run_job
from xorepd.replication.transfer import disks as transfer
from xorepd.replication.transfer import resync
from xorepd.state.maps import open_maps
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault

MiB = 1 << 20


def through(port: int, pki: Path, **more: Any) -> dict[str, Any]:
    """Return the transport's table of a job."""
    return {
        "name": "compressed",
        "relay": f"127.0.0.1:{port}",
        "certificate": str(pki / "paris.pem"),
        "key": str(pki / "paris.key"),
        "ca": str(pki / "ca.pem"),
        **more,
    }


async def write(world: World, seed: int) -> None:
    """Change both disks, so that whichever stream a fault meets is long enough for it."""
    for disk in (0, 1):
        where = (20 * MiB, 4 * MiB)
        await world.lab.guest_write("web01", disk, sequential=where, seed=seed * 2 + disk)


def moved(record: RunRecord) -> int:
    return sum(disk.read_bytes for disk in record.disks)


def sent(record: RunRecord) -> int:
    return sum(disk.sent_bytes for disk in record.disks)


# -- what arrives ----------------------------------------------------------------------------------


async def test_full_and_deltas_arrive_whole_and_are_read_back_at_the_relay(
    two_pools: World, tmp_path: Path
) -> None:
    async with relayed(two_pools, tmp_path) as relay, two_pools.daemon() as context:
        transport = through(relay.port, relay.directory)
        with capture_logs() as logs:
            full = await two_pools.run(context, transport=transport)
        await two_pools.newest_equals_its_source()
        await write(two_pools, 1)
        delta = await two_pools.run(context, transport=transport, verify="sample")
        [state] = context.links.states().values()

    assert (full.outcome, full.error) == (Outcome.FULL, None)
    assert (delta.outcome, delta.error) == (Outcome.DELTA, None)
    assert {disk.writer for disk in full.disks + delta.disks} == {"elsewhere"}
    assert sum(entry["event"] == "disk.read" for entry in logs) == len(full.disks)
    assert state.sent_bytes == sent(full) + sent(delta)
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_memory_of_the_vm_arrives_like_its_disks(two_pools: World, tmp_path: Path) -> None:
    async with relayed(two_pools, tmp_path) as relay, two_pools.daemon() as context:
        transport = through(relay.port, relay.directory)
        record = await two_pools.run(context, transport=transport, snapshot="memory")

    memory = record.disks[-1]
    assert (record.error, memory.mode, memory.reason) == (None, "memory", "")
    assert memory.writer == "elsewhere"
    assert await two_pools.left_over() == []


async def test_what_the_map_tells_is_not_carried_and_the_rest_is_read_back_at_the_relay(
    two_pools: World, tmp_path: Path
) -> None:
    async with (
        relayed(two_pools, tmp_path) as relay,
        two_pools.daemon() as context,
        open_maps(tmp_path / "maps.db", 1 << 30, clock) as maps,
    ):
        job = {"transport": through(relay.port, relay.directory), "verify": "sample"}
        mapped = replace(context, maps=maps)
        await two_pools.run(mapped, **job)
        await two_pools.lab.guest_write("web01", 1, random=1, seed=7, within=(0, MiB))
        with capture_logs() as logs:
            delta = await two_pools.run(mapped, **job)

    assert delta.error is None, delta.error
    assert moved(delta) - sum(disk.unchanged_bytes for disk in delta.disks) == 64 * 1024
    assert sum(entry["event"] == "disk.read" for entry in logs) == 1
    await two_pools.newest_equals_its_source()


async def test_a_resync_that_is_cut_counts_no_more_than_its_window_for_done(
    two_pools: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "LONGEST_WINDOW", 8 * MiB)
    monkeypatch.setattr(transfer, "TRIES", 1)
    monkeypatch.setattr(nbd_reader, "PAUSE_S", 0.01)
    for pool in ("prod", "dr"):
        await serve_nbd(two_pools, pool)
    await two_pools.lab.guest_write("web01", 1, sequential=(0, 30 * MiB), seed=1)
    await two_pools.replicate(verify="off")
    for at in (MiB, 26 * MiB):
        await two_pools.lab.guest_write("web01", 1, sequential=(at, MiB), seed=2)
    await two_pools.ask("prod", hands.delete_snapshots)
    async with relayed(two_pools, tmp_path) as relay, two_pools.daemon() as context:
        job = {"transport": through(relay.port, relay.directory), "resume": "1d"}
        cut = Fault(
            "nbd", "read", pool="prod", object="web01-data", skip=14, times=None, reset=True
        )
        two_pools.lab.faults.add(cut)
        first = await two_pools.run(context, **job)
        two_pools.lab.faults.clear()
        second = await two_pools.run(context, verify="sample", **job)

    assert (first.outcome, first.resumable) == (Outcome.FAILED, True)
    assert second.error is None, second.error
    [disk] = [disk for disk in second.disks if disk.device == "1"]
    assert (disk.mode, disk.resumed_from, disk.changed_bytes) == ("resync", 8 * MiB, MiB)
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_throttle_around_it_counts_what_passes_the_link(
    two_pools: World, tmp_path: Path
) -> None:
    async with relayed(two_pools, tmp_path) as relay, two_pools.daemon() as context:
        inner = through(relay.port, relay.directory)
        outer = {"name": "throttled", "link": "wan", "rate": "4Gbit/s", "through": inner}
        record = await two_pools.run(context, transport=outer)
        states = context.links.states()

    assert record.error is None
    assert states["wan"].sent_bytes == sent(record) > 0
    assert states["wan"].active_disks == 0
    await two_pools.newest_equals_its_source()


async def test_what_cannot_be_read_back_at_the_relay_is_read_back_from_here(
    two_pools: World, tmp_path: Path
) -> None:
    fault = two_pools.lab.faults.add(Fault("export", pool="dr", reset=True))
    async with relayed(two_pools, tmp_path) as relay, two_pools.daemon() as context:
        with capture_logs() as logs:
            record = await two_pools.run(context, transport=through(relay.port, relay.directory))

    assert record.error is None
    assert fault.fired == 1
    assert [entry["reader"] for entry in logs if entry["event"] == "reader.unavailable"] == [
        "there"
    ]
    await two_pools.newest_equals_its_source()


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.fixture
async def process(two_pools: World, tmp_path: Path) -> AsyncIterator[Process]:
    """A relay in a process of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, socket.socket() as reserved:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(patience())
        reserved.bind(("127.0.0.1", 0))
        place = Process(two_pools, tmp_path, notify, reserved.getsockname()[1])
        reserved.close()
        make_certificates(tmp_path / "pki")
        place.configure()
        await place.start()
        try:
            yield place
        finally:
            assert place.process is not None
            place.process.kill()
            await place.ended()


def start(
    world: World, context: Context, transport: dict[str, Any]
) -> asyncio.Task[list[RunRecord]]:
    work = run_job(world.job(transport=transport), new_run(), context)
    return asyncio.get_running_loop().create_task(work, name="run")


async def goes_on(world: World, transport: dict[str, Any], last: str, before: Any) -> None:
    """Check that nothing was lost: the last point is as it was, and the next run is a delta."""
    assert (await world.points())[0]["self"] == last
    assert await world.hashes("dr", last) == before
    record = await world.replicate(transport=transport)
    assert record.outcome is Outcome.DELTA, record.error
    await world.newest_equals_its_source()
    assert await world.left_over() == []


@pytest.mark.parametrize("at", [0, 700, 3 * MiB], ids=["head", "begun", "midway"])
@pytest.mark.leaves("session")  # of the relay that was killed
async def test_relay_that_is_killed_costs_the_run_and_nothing_else(
    replicated: World, process: Process, at: int
) -> None:
    transport = through(process.port, process.directory / "pki")
    await write(replicated, 1)
    last = (await replicated.points())[0]["self"]
    before = await replicated.hashes("dr", last)
    fault = replicated.lab.faults.add(Fault("import", pool="dr", stall=True, stall_at=at))
    async with replicated.daemon() as context:
        run = start(replicated, context, transport)
        await fault.stalled.wait()
        process.signal(signal.SIGKILL)
        await process.ended()
        fault.release()
        [record] = await run

    assert (record.outcome, record.remedy) == (Outcome.FAILED, "retry"), record.error
    assert f"relay 127.0.0.1:{process.port}: the connection" in (record.error or "")
    await process.start()
    await goes_on(replicated, transport, last, before)


@pytest.mark.leaves("session")
async def test_relay_that_hangs_is_given_up(
    replicated: World, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENCE_S", 1.0)
    transport = through(process.port, process.directory / "pki")
    await write(replicated, 1)
    last = (await replicated.points())[0]["self"]
    before = await replicated.hashes("dr", last)
    fault = replicated.lab.faults.add(Fault("import", pool="dr", stall=True, stall_at=3 * MiB))
    async with replicated.daemon() as context:
        run = start(replicated, context, transport)
        await fault.stalled.wait()
        process.signal(signal.SIGSTOP)
        fault.release()
        [record] = await run

    assert (record.outcome, record.remedy) == (Outcome.FAILED, "retry"), record.error
    assert "silent" in (record.error or "")
    process.signal(signal.SIGCONT)
    await goes_on(replicated, transport, last, before)


@pytest.mark.leaves("session")  # of the daemon that died
async def test_daemon_that_dies_over_a_relayed_disk_goes_on_with_a_delta(
    replicated: World, process: Process
) -> None:
    transport = through(process.port, process.directory / "pki")
    for seed, fault in enumerate(
        (
            Fault("import", pool="dr", stall=True, stall_at=0),
            Fault("import", pool="dr", stall=True, stall_at=3 * MiB),
            Fault("export", pool="prod", stall=True, stall_at=3 * MiB),
        )
    ):
        await write(replicated, seed)
        last = (await replicated.points())[0]["self"]
        before = await replicated.hashes("dr", last)
        faults = replicated.lab.faults
        faults.add(fault)
        async with replicated.daemon() as context:
            run = start(replicated, context, transport)
            await fault.stalled.wait()
            for where in ("rpc", "export", "import"):  # nothing that it still tries gets through
                faults.add(Fault(where, times=None, reset=True))
            run.cancel()
            fault.release()
            await asyncio.wait({run})
        faults.clear()
        await goes_on(replicated, transport, last, before)


async def test_run_that_is_cancelled_leaves_both_pools_clean_at_once(
    replicated: World, tmp_path: Path
) -> None:
    await write(replicated, 1)
    async with relayed(replicated, tmp_path) as relay, replicated.daemon() as context:
        transport = through(relay.port, relay.directory)
        fault = replicated.lab.faults.add(Fault("import", pool="dr", stall=True, stall_at=3 * MiB))
        run = start(replicated, context, transport)
        await fault.stalled.wait()
        run.cancel()
        fault.release()
        await asyncio.wait({run}, timeout=patience())
        assert run.cancelled()

        assert await replicated.left_over() == []
        record = await replicated.run(context, transport=transport)

    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []
