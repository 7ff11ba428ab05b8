"""More disks than memory: they take turns, and the run goes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.whole import left_by
from tests.lab.world import World, new_run, serve_nbd, world
from xorepd.data.memory_budget import CARRYING, COMPARING, READING, MemoryBudget
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.records import RunRecord
from xorepd.units import MiB
from xorepd_lab.topology import SMALL, DiskSpec, PoolSpec, SrSpec, VmSpec

DISKS = 4
WEB = VmSpec(
    "web01",
    tuple(DiskSpec(f"web01-{number}", "prod-storage", 8 * MiB) for number in range(DISKS)),
    "lan",
    "02:16:3e:00:00:01",
    running_on="prod-h1",
    cd_drive=False,
)
PROD = PoolSpec(
    "prod",
    ("prod-h1",),
    (SrSpec("prod-storage", "ext", ("prod-h1",)),),
    ("lan",),
    (WEB,),
)
FAR = PoolSpec("far", ("far-h1",), (SrSpec("far-storage", "ext", ("far-h1",)),), ("lan",))
MANY_DISKS = replace(SMALL, name="many", pools=(PROD, SMALL.pools[1], FAR))

DR = {"pool": "dr", "sr": "dr-storage"}
ELSEWHERE = {"pool": "far", "sr": "far-storage"}


@pytest.fixture
async def many_disks(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with world(tmp_path / "lab", MANY_DISKS, leaves=left_by(request)) as made:
        for disk in range(DISKS):
            await made.lab.guest_write("web01", disk, sequential=(0, 3 * MiB), seed=disk)
        yield made


class Seen:
    """What the board showed while a run was under way."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.waiting = 0
        """Disks that waited for memory at once, at most."""
        self.held = 0
        """Bytes that were taken at once, at most."""

    async def watch(self, context: Context) -> None:
        version = 0
        while True:
            version = await context.board.changed(version)
            records = context.board.records()
            disks = [disk for record in records for disk in record.disks]
            self.waiting = max(self.waiting, sum(disk.waiting_for == "memory" for disk in disks))
            self.held = max(self.held, self.budget.held)


async def run(
    many_disks: World, size: int, *, crowd: int = 0, **changes: Any
) -> tuple[list[RunRecord], Seen]:
    """Run the job once with a budget of that size; all its targets must succeed.

    Args:
        crowd: how many have to wait before the first of them gets anything.
    """
    seen = Seen(MemoryBudget(size))
    async with many_disks.daemon() as context, asyncio.TaskGroup() as group:
        context = replace(context, budget=seen.budget, join_s=60.0)
        watching = group.create_task(seen.watch(context))
        with all_taken(seen.budget) if crowd else nullcontext():
            running = group.create_task(run_job(many_disks.job(**changes), new_run(), context))
            await waiting(seen.budget, context, crowd)
        records = await running
        watching.cancel()
    assert [record.error for record in records] == [None] * len(records)
    assert (seen.budget.held, seen.budget.waiting) == (0, 0)
    assert seen.held <= size
    return records, seen


@pytest.mark.parametrize("nbd", [True, False])
async def test_disks_wait_until_there_is_memory_for_them(many_disks: World, nbd: bool) -> None:
    if nbd:
        await serve_nbd(many_disks, "prod")
        await serve_nbd(many_disks, "dr")

    [record], seen = await run(many_disks, 2 * CARRYING, crowd=DISKS)

    assert len(record.disks) == seen.waiting == DISKS
    assert {disk.waiting_for for disk in record.disks} == {""}
    await many_disks.newest_equals_its_source()


async def test_nobody_waits_where_there_is_memory_for_all(many_disks: World) -> None:
    _, seen = await run(many_disks, DISKS * CARRYING)

    assert seen.waiting == 0


async def test_disks_that_are_read_for_two_targets_take_their_memory_together(
    many_disks: World,
) -> None:
    size, crowd = READING + 2 * CARRYING, 3 * DISKS
    records, seen = await run(many_disks, size, crowd=crowd, targets=[DR, ELSEWHERE])

    assert seen.waiting == 2 * DISKS
    for record in records:
        assert all(disk.shared_bytes == disk.read_bytes > 0 for disk in record.disks)
    for pool in ("dr", "far"):
        await many_disks.newest_equals_its_source(pool)


async def test_targets_read_alone_where_there_is_no_memory_for_reading_together(
    many_disks: World,
) -> None:
    records, _ = await run(many_disks, 2 * CARRYING, targets=[DR, ELSEWHERE])

    assert {disk.shared_bytes for record in records for disk in record.disks} == {0}
    for pool in ("dr", "far"):
        await many_disks.newest_equals_its_source(pool)


async def test_disks_that_are_compared_wait_for_their_memory_too(many_disks: World) -> None:
    await run(many_disks, 64 * MiB)
    await many_disks.ask("prod", forget_bases)

    [record], seen = await run(many_disks, COMPARING, crowd=DISKS)

    assert {disk.mode for disk in record.disks} == {"resync"}
    assert seen.waiting == DISKS
    await many_disks.newest_equals_its_source()


def forget_bases(xenapi: Any) -> None:
    """Destroy all snapshots of the source, as somebody might who needs room."""
    for ref, vm in xenapi.VM.get_all_records().items():
        if vm["is_a_snapshot"]:
            for vbd in vm["VBDs"]:
                xenapi.VDI.destroy(xenapi.VBD.get_VDI(vbd))
            xenapi.VM.destroy(ref)


@contextmanager
def all_taken(budget: MemoryBudget) -> Iterator[None]:
    """Let somebody else have all the memory while a block lasts."""
    with budget.allocate() as other:
        taking = other.take(budget.size)
        with suppress(StopIteration):  # there is nothing to wait for
            taking.send(None)
        yield


async def waiting(budget: MemoryBudget, context: Context, crowd: int) -> None:
    """Return when so many wait."""
    version = 0
    while budget.waiting < crowd:
        version = await context.board.changed(version)


async def test_run_that_is_cancelled_while_its_disks_wait_leaves_nothing(
    many_disks: World,
) -> None:
    budget = MemoryBudget(64 * MiB)
    async with many_disks.daemon() as context, asyncio.TaskGroup() as group:
        context = replace(context, budget=budget)
        with all_taken(budget):
            running = group.create_task(run_job(many_disks.job(), new_run(), context))
            await waiting(budget, context, DISKS)
            running.cancel()
            await asyncio.wait({running})
            assert budget.waiting == 0

    assert budget.held == 0
    assert await many_disks.left_over() == []


async def test_disks_that_wait_go_on_when_the_budget_grows(many_disks: World) -> None:
    budget = MemoryBudget(16 * MiB)
    async with many_disks.daemon() as context, asyncio.TaskGroup() as group:
        context = replace(context, budget=budget)
        with all_taken(budget):
            running = group.create_task(run_job(many_disks.job(), new_run(), context))
            await waiting(budget, context, DISKS)
            budget.size = 64 * MiB
            [record] = await running

    assert record.error is None
    await many_disks.newest_equals_its_source()
