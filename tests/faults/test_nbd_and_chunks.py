"""Reads over NBD and chunked segments that break at each of their points.

Whatever happens, the last restore point stays as it was, nothing is left over, and the next run is
a delta. Where another reader or another connection can save the run, it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.lab import hands
from tests.lab.beginnings import Beginning
from tests.lab.labclient import until
from tests.lab.nbdclient import connected
from tests.lab.test_ownership import doubts
from tests.lab.world import World, new_run, serve_nbd
from tests.patience import patience
from xorepd.data.http import chunked, endpoint, imports
from xorepd.data.nbd import protocol as nbd
from xorepd.data.nbd import reader as nbd_reader
from xorepd.replication.run.jobs import run_job
from xorepd.replication.transfer import readers
from xorepd.state.records import Outcome, RunRecord
from xorepd.xapi import vdis
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.front.certificates import nbd_context

KiB, MiB = 1 << 10, 1 << 20

FAILURE = ("SR_BACKEND_FAILURE_46", "", "not detached cleanly", "")
RAW = "raw"
"""What the lab calls a chunked import."""

Make = Callable[[], Fault]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a second where the daemon waits for minutes, and end segments after 256 KiB."""
    for module in (endpoint, readers):
        monkeypatch.setattr(module, "STALL_S", 1.0)
    monkeypatch.setattr(imports, "OUTCOME_S", 3.0)
    monkeypatch.setattr(nbd, "DETACH_S", 0.5)
    monkeypatch.setattr(nbd_reader, "PAUSE_S", 0.01)
    monkeypatch.setattr(nbd_reader, "TRIES", 3)
    monkeypatch.setattr(vdis, "BUSY_PAUSE_S", 0.05)
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 256 * KiB)


@pytest.fixture
def beginning() -> Beginning:
    return prepare


@pytest.fixture
def tracked(two_pools: World) -> Iterator[World]:
    """One restore point, tracked disks, NBD on the source, and then changes on both disks."""
    yield two_pools
    two_pools.lab.faults.clear()


async def prepare(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod")
    await two_pools.replicate(changed_blocks="enable", verify="off")
    await write(two_pools, 1)


async def write(two_pools: World, seed: int) -> None:
    """Change both disks, enough for several segments of each, in several reads."""
    for disk in (0, 1):
        where = (20 * MiB + 4 * KiB, 2 * MiB)
        await two_pools.lab.guest_write("web01", disk, sequential=where, seed=seed * 2 + disk)
        await two_pools.lab.guest_write(
            "web01", disk, random=4, within=(10 * MiB, 20 * MiB), seed=seed * 2 + disk
        )


async def run(two_pools: World, **changes: Any) -> RunRecord:
    async with two_pools.daemon() as context:
        return await two_pools.run(context, changed_blocks="enable", **changes)


async def converges(two_pools: World) -> None:
    """Check that the next run is a delta that leaves nothing behind."""
    two_pools.lab.faults.clear()
    record = await run(two_pools)
    assert record.outcome is Outcome.DELTA, record.error
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def fails(two_pools: World, fault: Fault, said: str, *, tidy: bool = True) -> None:
    """Run into a fault; the run must fail with these words and cost nothing else.

    Args:
        tidy: whether the run itself can leave both pools clean.
    """
    last = (await two_pools.points())[0]["self"]
    before = await two_pools.hashes("dr", last)
    two_pools.lab.faults.add(fault)

    record = await run(two_pools)

    two_pools.lab.faults.clear()
    assert fault.fired >= 1
    assert record.outcome is Outcome.FAILED, record.disks
    assert said in (record.error or ""), record.error
    assert "web01" in (record.error or "")
    assert "OpaqueRef" not in (record.error or "").replace("OpaqueRef:NULL", "")
    await serving(two_pools)
    assert [mark["self"] for mark in await two_pools.points()] == [last]
    assert await two_pools.hashes("dr", last) == before
    if tidy:
        assert await two_pools.left_over() == []
    await converges(two_pools)


async def serving(two_pools: World) -> None:
    """Wait until both pools answer, as they do some time after a restart."""
    for pool in two_pools.lab.pools.values():
        await until(pool.life.serves)


# -- connecting over NBD ------------------------------------------------------------------------

CONNECT: dict[str, Make] = {
    "reset": lambda: Fault("nbd", "connect", times=None, reset=True),
    "dropped-after-the-attach": lambda: Fault("nbd", "connect", times=None, drop_response=True),
    "silent": lambda: Fault("nbd", "connect", times=None, stall=True),
    "attach-fails": lambda: Fault("nbd", "connect", times=None, error=FAILURE),
}


@pytest.mark.parametrize("name", CONNECT)
async def test_nbd_that_cannot_be_entered_gives_way_to_the_export(
    tracked: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "ATTACH_S", patience(2.0))
    fault = tracked.lab.faults.add(CONNECT[name]())

    record = await run(tracked)

    assert fault.fired >= 1
    assert record.outcome is Outcome.DELTA, record.error
    closed = [disk for disk in record.disks if disk.reader == "export-changes"]
    assert closed
    assert all("NBD" in disk.reader_reason for disk in closed)
    assert not any("OpaqueRef" in disk.reader_reason for disk in record.disks)
    tracked.lab.faults.clear()
    await tracked.newest_equals_its_source()
    await eventually_clean(tracked)
    await write(tracked, 2)
    await converges(tracked)


async def test_a_session_that_dies_before_nbd_connects_costs_at_most_the_road(
    tracked: World,
) -> None:
    fault = Fault(
        "rpc",
        "VDI.get_nbd_info",
        skip=3,  # once for each disk to learn whether, once to connect
        moment="after",
        incident=Incident("session-loss"),
    )
    tracked.lab.faults.add(fault)

    record = await run(tracked)

    assert fault.fired == 1
    assert record.outcome is Outcome.DELTA, record.error
    assert "export-changes" in {disk.reader for disk in record.disks}
    assert not any("OpaqueRef" in disk.reader_reason for disk in record.disks)
    await tracked.newest_equals_its_source()
    assert await tracked.left_over() == []


async def eventually_clean(two_pools: World) -> None:
    """Check that nothing is left over, once servers that hung have let go of their clients."""
    async with asyncio.timeout(patience()):
        while True:
            if not await two_pools.left_over():
                return
            await asyncio.sleep(0.05)


async def test_a_server_with_another_certificate_is_left_for_the_export(tracked: World) -> None:
    prod, dr = tracked.lab.pools["prod"], tracked.lab.pools["dr"]
    foreign = nbd_context(dr.certificates[dr.master])
    for frontage in prod.frontages.values():
        frontage.nbd.context = foreign

    record = await run(tracked)

    assert {disk.reader for disk in record.disks} == {"export-changes"}
    assert all("not the one that the pool gave" in disk.reader_reason for disk in record.disks)
    await tracked.newest_equals_its_source()
    assert await tracked.left_over() == []


async def test_hosts_whose_connections_are_all_taken_are_left_for_the_export(
    tracked: World,
) -> None:
    prod = tracked.lab.pools["prod"]
    async with AsyncExitStack() as stack:
        for host in prod.frontages:
            info = {"address": prod.address(host), "port": prod.nbd_port}
            for _ in range(16):
                await (await stack.enter_async_context(connected(info))).take(18)

        record = await run(tracked)

    assert {disk.reader for disk in record.disks} == {"export-changes"}
    assert all("16 connections are taken" in disk.reader_reason for disk in record.disks)
    await tracked.newest_equals_its_source()
    assert await tracked.left_over() == []


# -- reading over NBD ---------------------------------------------------------------------------

READ_ONCE: dict[str, Make] = {
    "reset": lambda: Fault("nbd", "read", skip=1, reset=True),
    "dropped-after-the-reply": lambda: Fault("nbd", "read", drop_response=True),
    "cut-at-the-first-byte": lambda: Fault("nbd", "read", cut_at=0),
    "cut-in-the-data": lambda: Fault("nbd", "read", skip=2, cut_at=10_000),
    "ended-in-the-data": lambda: Fault("nbd", "read", end_at=60_001),
    "silent-before-the-reply": lambda: Fault("nbd", "read", skip=1, stall=True),
    "silent-in-the-data": lambda: Fault("nbd", "read", stall=True, stall_at=5000),
    "fails": lambda: Fault("nbd", "read", skip=1, error=FAILURE),
    "session-lost": lambda: Fault("nbd", "read", skip=1, incident=Incident("session-loss")),
    "session-lost-and-cut": lambda: Fault(
        "nbd", "read", incident=Incident("session-loss"), cut_at=700
    ),
    "member-crashes": lambda: Fault(
        "nbd", "read", incident=Incident("host-crash", host="prod-h2"), cut_at=700
    ),
}


@pytest.mark.parametrize("name", READ_ONCE)
async def test_a_read_that_breaks_once_is_read_again(tracked: World, name: str) -> None:
    fault = tracked.lab.faults.add(READ_ONCE[name]())

    record = await run(tracked)

    assert fault.fired == 1
    assert record.outcome is Outcome.DELTA, record.error
    readers = {disk.reader for disk in record.disks}
    if name.startswith("session-lost"):  # the other disk may have been about to connect
        readers.discard("export-changes")
    assert readers == {"nbd-changes"}
    tracked.lab.faults.clear()
    await tracked.newest_equals_its_source()
    await eventually_clean(tracked)
    await write(tracked, 2)
    await converges(tracked)


READ_ALWAYS: dict[str, tuple[Make, str]] = {
    "reset": (lambda: Fault("nbd", "read", times=None, reset=True), "ended after 0 of"),
    "cut": (lambda: Fault("nbd", "read", times=None, cut_at=1000), "ended after 1000 of"),
    "short": (lambda: Fault("nbd", "read", times=None, end_at=512), "ended after 512 of"),
    "silent": (lambda: Fault("nbd", "read", times=None, stall=True), "no byte moved for 1 s"),
    "fails": (lambda: Fault("nbd", "read", times=None, error=FAILURE), "ended after"),
}


@pytest.mark.parametrize("name", READ_ALWAYS)
async def test_reads_that_break_for_ever_cost_one_run(tracked: World, name: str) -> None:
    make, said = READ_ALWAYS[name]

    # A server that hangs holds the disk that it serves: the next run destroys it.
    await fails(tracked, make(), said, tidy=name != "silent")


@pytest.mark.parametrize("moment", ["connect", "read"])
async def test_a_toolstack_that_restarts_during_an_nbd_read_costs_at_most_one_run(
    tracked: World, moment: str
) -> None:
    last = (await tracked.points())[0]["self"]
    before = await tracked.hashes("dr", last)
    fault = Fault("nbd", moment, pool="prod", incident=Incident("toolstack-restart"))
    tracked.lab.faults.add(fault)

    record = await run(tracked)

    assert fault.fired == 1
    assert record.outcome in (Outcome.DELTA, Outcome.FAILED)
    await serving(tracked)
    assert await tracked.hashes("dr", last) == before
    await write(tracked, 2)
    await converges(tracked)


async def test_a_flipped_byte_of_a_read_back_is_found(tracked: World) -> None:
    await serve_nbd(tracked, "dr")

    await fails(tracked, Fault("nbd", "read", "dr", flip_at=777), "differs from what was sent")


# -- chunked segments ---------------------------------------------------------------------------

SEGMENT: dict[str, tuple[Make, str]] = {
    "first-reset": (lambda: Fault("import", RAW, reset=True), "connection broke"),
    "later-reset": (lambda: Fault("import", RAW, skip=3, reset=True), "connection broke"),
    "later-not-served": (lambda: Fault("import", RAW, skip=3, http_status=404), "status 404"),
    "refused-500": (lambda: Fault("import", RAW, skip=3, http_status=500), "failed with"),
    "cut-at-a-chunk": (lambda: Fault("import", RAW, skip=3, cut_at=12), "VDI_IO_ERROR"),
    "cut-in-a-chunk": (lambda: Fault("import", RAW, skip=3, cut_at=100_001), "VDI_IO_ERROR"),
    "cut-in-a-header": (lambda: Fault("import", RAW, skip=3, cut_at=5), "VDI_IO_ERROR"),
    "error-at-once": (lambda: Fault("import", RAW, skip=3, error=FAILURE), FAILURE[0]),
    "error-afterwards": (
        lambda: Fault("import", RAW, skip=3, error=FAILURE, moment="after"),
        FAILURE[0],
    ),
    "silent-at-once": (lambda: Fault("import", RAW, skip=3, stall=True), "is unknown"),
    "silent-in-a-chunk": (lambda: Fault("import", RAW, skip=3, stall=True, stall_at=9999), "is un"),
    "task-never-ends": (lambda: Fault("import", RAW, skip=3, task_never_ends=True), "is unknown"),
    "sr-full": (
        lambda: Fault(
            "import", RAW, skip=3, incident=Incident("sr-full", sr="dr-storage"), incident_at=5000
        ),
        "VDI_IO_ERROR",
    ),
}


@pytest.mark.leaves("task")
@pytest.mark.parametrize("name", SEGMENT)
async def test_a_segment_that_breaks_costs_one_run(tracked: World, name: str) -> None:
    make, said = SEGMENT[name]
    fault = make()
    last = (await tracked.points())[0]["self"]
    before = await tracked.hashes("dr", last)
    tracked.lab.faults.add(fault)

    record = await run(tracked)

    tracked.lab.faults.clear()
    assert fault.fired == 1
    assert record.outcome is Outcome.FAILED, record.disks
    assert said in (record.error or ""), record.error
    assert "OpaqueRef" not in (record.error or "").replace("OpaqueRef:NULL", "")
    assert [mark["self"] for mark in await tracked.points()] == [last]
    assert await tracked.hashes("dr", last) == before
    if fault.incident:
        await tracked.lab.happen(Incident("sr-free", pool="dr"))
    if "silent" not in name:  # what hangs holds its disk until the next run
        await eventually_clean(tracked)
    await converges(tracked)


@pytest.mark.parametrize("kind", ["toolstack-restart", "host-crash"])
async def test_a_target_that_goes_down_in_a_segment_costs_one_run(
    tracked: World, kind: str
) -> None:
    last = (await tracked.points())[0]["self"]
    before = await tracked.hashes("dr", last)
    fault = Fault("import", RAW, skip=3, incident=Incident(kind), incident_at=5000)
    tracked.lab.faults.add(fault)

    async with tracked.daemon() as context, asyncio.TaskGroup() as group:
        running = group.create_task(tracked.run(context, changed_blocks="enable"))
        await until(lambda: fault.fired)
        if kind == "host-crash":
            await asyncio.sleep(0.5)
            dr = tracked.lab.pools["dr"]
            await dr.restart_host(dr.master)
        record = await running

    assert record.outcome is Outcome.FAILED, record.disks
    await serving(tracked)
    assert [mark["self"] for mark in await tracked.points()] == [last]
    assert await tracked.hashes("dr", last) == before
    await tracked.ask("dr", hands.free_the_control_domains)
    # A segment that had only just begun leaves a disk of which nothing tells who wrote to it last.
    doubtful = {doubt.uuid for doubt in await doubts(tracked, "dr")}
    await tracked.ask("dr", hands.destroy_disks(doubtful))
    await converges(tracked)


# -- kills --------------------------------------------------------------------------------------

KILLED: dict[str, Make] = {
    "as-nbd-connects": lambda: Fault("nbd", "connect", stall=True),
    "as-a-second-connection-is-made": lambda: Fault("nbd", "connect", skip=1, stall=True),
    "in-a-read": lambda: Fault("nbd", "read", skip=1, stall=True, stall_at=5000),
    "as-a-segment-begins": lambda: Fault("import", RAW, skip=3, stall=True),
    "in-a-segment": lambda: Fault("import", RAW, skip=3, stall=True, stall_at=50_000),
    "as-a-segment-is-confirmed": lambda: Fault("rpc", "task.destroy", "dr", skip=2, stall=True),
}


@pytest.mark.parametrize("graceful", [True, False], ids=["cancelled", "killed"])
@pytest.mark.parametrize("name", KILLED)
async def test_a_daemon_that_goes_away_costs_one_run(
    tracked: World, name: str, graceful: bool
) -> None:
    last = (await tracked.points())[0]["self"]
    before = await tracked.hashes("dr", last)
    fault = tracked.lab.faults.add(KILLED[name]())
    loop = asyncio.get_running_loop()

    async with tracked.daemon() as context:
        job = tracked.job(changed_blocks="enable")
        running = loop.create_task(run_job(job, new_run(), context))
        reached = loop.create_task(fault.stalled.wait())
        await asyncio.wait(
            {running, reached}, return_when=asyncio.FIRST_COMPLETED, timeout=patience()
        )
        assert reached.done(), running
        if not graceful:  # nothing that the dying daemon still tries reaches a pool
            for where in ("rpc", "nbd", "import", "export"):
                tracked.lab.faults.add(Fault(where, times=None, reset=True))
        running.cancel()
        fault.release()
        await asyncio.wait({running})
        assert running.cancelled()
    tracked.lab.faults.clear()

    assert [mark["self"] for mark in await tracked.points()] == [last]
    assert await tracked.hashes("dr", last) == before
    if graceful:
        await eventually_clean(tracked)
    await converges(tracked)
