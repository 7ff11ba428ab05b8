"""Toolstacks that restart, masters that change, connections and events that get lost.

The daemon goes on with what it has: sessions are renewed, tasks that vanished count as failed, and
the next run is a delta.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from tests.lab import hands
from tests.lab.labclient import until
from tests.lab.test_ownership import doubts
from tests.lab.world import TIME_SCALE, World, new_run
from xorepd.ids import PoolName
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.lab import Lab
from xorepd_lab.pools import Pool
from xorepd_lab.topology import SMALL

MiB = 1 << 20


def start(two_pools: World, context: Context) -> asyncio.Task[list[RunRecord]]:
    work = run_job(two_pools.job(), new_run(), context)
    return asyncio.get_running_loop().create_task(work, name="run")


async def write(two_pools: World, seed: int) -> None:
    """Change both disks, so that whichever stream a fault meets is long enough for it."""
    for disk in (0, 1):
        where = (20 * MiB, 4 * MiB)
        await two_pools.lab.guest_write("web01", disk, sequential=where, seed=seed * 2 + disk)


def both_are_written(two_pools: World) -> bool:
    """Whether the target writes both staging disks, and each has its content id by now."""
    vdis = two_pools.lab.pools["dr"].db.select("VDI")
    rows = [two_pools.lab.pools["dr"].db.row("VDI", ref).fields for ref in vdis]
    staging = [row for row in rows if row["name_label"].startswith("[Importing]")]
    return [row["other_config"].get("content_id", "")[:6] for row in staging] == ["xorepd"] * 2


async def goes_on(two_pools: World, context: Context) -> None:
    """Check that the next run of the same daemon is a delta that leaves nothing behind."""
    record = await two_pools.run(context)
    assert record.outcome is Outcome.DELTA, record.error
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_a_toolstack_restart_costs_the_transfer_that_it_meets_and_nothing_else(
    replicated: World,
) -> None:
    async with replicated.daemon() as context:
        for fault in (
            Fault("export", pool="prod", stall=True, stall_at=3 * MiB),
            Fault("import", pool="dr", times=2, stall=True, stall_at=3 * MiB),
        ):
            assert fault.pool is not None
            await write(replicated, len(fault.where))
            last = (await replicated.points())[0]["self"]
            replicated.lab.faults.add(fault)

            run = start(replicated, context)
            await fault.stalled.wait()
            await until(lambda: both_are_written(replicated))
            await replicated.lab.happen(Incident("toolstack-restart", pool=fault.pool))
            fault.release()
            [record] = await run

            assert record.outcome is Outcome.FAILED
            assert record.remedy in ("retry", "reconnect"), record.error
            assert (await replicated.points())[0]["self"] == last
            # What the toolstack left attached, the next run detaches.
            await goes_on(replicated, context)

        for pool in replicated.lab.pools.values():  # and once more, with nothing under way
            pool.restart_toolstack()
        await goes_on(replicated, context)


async def test_sessions_and_events_that_are_lost_for_a_while_cost_only_time(
    replicated: World,
) -> None:
    async with replicated.daemon() as context:
        await write(replicated, 1)
        # The requests that belong to these tasks, one for each disk, are about to go out with the
        # session that dies: no other call may find that out before them.
        fault = replicated.lab.faults.add(Fault("rpc", "task.create", "dr", times=2, stall=True))
        before = len(replicated.lab.calls)
        run = start(replicated, context)
        await until(lambda: fault.fired == 2)
        for pool in replicated.lab.pools.values():
            pool.db.forget("session")
        fault.release()
        [record] = await run
        assert record.outcome is Outcome.DELTA, record.error
        assert "401" in {call.outcome for call in replicated.lab.calls[before:]}

        await write(replicated, 2)
        held = replicated.lab.faults.add(Fault("rpc", "VM.snapshot", "prod", stall=True))
        run = start(replicated, context)
        await held.stalled.wait()
        lost = [
            replicated.lab.faults.add(Fault("rpc", "event.from", pool, times=2, reset=True))
            for pool in ("prod", "dr")
        ]
        held.release()
        [record] = await run
        assert record.outcome is Outcome.DELTA, record.error
        assert [fault.fired for fault in lost] == [2, 2]

        await goes_on(replicated, context)


async def test_a_member_that_is_asked_names_the_master_and_a_new_master_is_followed(
    two_pools: World,
) -> None:
    prod = two_pools.lab.pools["prod"]
    first, second = prod.host("prod-h1"), prod.host("prod-h2")
    member = f"https://{prod.address(second)}:{prod.https_port}"

    async with two_pools.daemon({"prod": two_pools.settings("prod", url=member)}) as context:
        record = await two_pools.run(context)
        assert record.outcome is Outcome.FULL, record.error
        assert context.pools[PoolName("prod")].session.url == prod.url

        make_master(prod, second)
        assert prod.url == member
        await write(two_pools, 1)
        await goes_on(two_pools, context)
        assert context.pools[PoolName("prod")].session.url == member

        # In the middle of a run, too; its export goes on, and who made its task is gone.
        await write(two_pools, 2)
        fault = two_pools.lab.faults.add(Fault("export", pool="prod", stall=True, stall_at=700))
        run = start(two_pools, context)
        await fault.stalled.wait()
        make_master(prod, first)
        fault.release()
        [record] = await run
        assert record.outcome is Outcome.FAILED
        assert await two_pools.left_over() == []
        await goes_on(two_pools, context)


def make_master(pool: Pool, host: str) -> None:
    """Let a pool have another master, which knows no session and no task."""
    pool.db.set("pool", next(pool.db.select("pool")), master=host)
    pool.restart_toolstack()


async def test_a_redirect_to_the_host_that_has_the_sr_is_followed_both_ways(
    replicated: World,
) -> None:
    prod = replicated.lab.pools["prod"]
    sr = prod.srs["prod-local"].ref
    # The daemon learns that the master has the SR, and nobody tells it that this has ended.
    pbd = prod.db.create("PBD", host=prod.master, SR=sr, currently_attached=True)
    local = {"pool": "prod", "sr": "prod-local"}

    async with replicated.daemon() as context:
        await context.pools[PoolName("prod")].refresh()
        prod.db.row("PBD", pbd).fields["currently_attached"] = False
        before = len(replicated.lab.calls)
        copied = await replicated.run(context, target=local)
        exported = await replicated.run(context, vms=("db01",))

    assert copied.outcome is Outcome.FULL, copied.error
    assert exported.outcome is Outcome.FULL, exported.error
    streams = {
        (call.kind, call.host, call.outcome)
        for call in replicated.lab.calls[before:]
        if call.kind in ("export", "import") and call.pool == "prod"
    }
    assert streams >= {
        ("import", "prod-h1", "302"),
        ("import", "prod-h2", "ok"),
        ("export", "prod-h1", "302"),
        ("export", "prod-h2", "ok"),
    }
    await replicated.newest_equals_its_source("prod")
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_what_pools_that_die_in_a_snapshot_leave_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon lives on; the pools stop in the middle of VM.snapshot and start again."""
    monkeypatch.setattr("xorepd.xapi.pool.TASK_LOOK_S", 0.2)  # how long it waits for news

    def lab() -> AbstractAsyncContextManager[Lab]:
        return Lab.start(tmp_path / "lab", SMALL, seed=1, time_scale=TIME_SCALE)

    async with AsyncExitStack() as labs:
        two_pools = World(await labs.enter_async_context(lab()))
        async with two_pools.daemon() as context:
            assert (await two_pools.run(context)).outcome is Outcome.FULL
            for seed, pool in enumerate(("prod", "dr")):
                await write(two_pools, seed)
                # The first disk has been taken, the second has not.
                unfinished = Fault("inner", "VDI.snapshot", pool, skip=1, stall=True)
                two_pools.lab.faults.add(unfinished)
                run = start(two_pools, context)
                await unfinished.stalled.wait()
                await labs.aclose()
                [record] = await run
                assert record.outcome is Outcome.FAILED
                assert record.remedy == "reconnect", record.error

                two_pools.lab = await labs.enter_async_context(lab())
                assert any("belongs to nothing" in line for line in await two_pools.left_over())
                record = await two_pools.run(context)
                assert record.outcome is Outcome.DELTA, record.error
                await two_pools.newest_equals_its_source()
                # Nothing tells them from a person's own snapshots: they are listed, and stay.
                doubtful = {doubt.uuid for doubt in await doubts(two_pools, pool)}
                assert doubtful
                assert await two_pools.left_over(but=doubtful) == []
                await two_pools.ask(pool, hands.destroy_disks(doubtful))


@pytest.mark.parametrize("pool", ["prod", "dr"])
async def test_a_snapshot_that_outlives_its_daemon_is_waited_for_by_the_next(
    replicated: World, pool: str
) -> None:
    faults = replicated.lab.faults
    await write(replicated, 1)
    slow = faults.add(Fault("inner", "VDI.snapshot", pool, skip=1, stall=True))
    async with replicated.daemon() as context:
        run = start(replicated, context)
        await slow.stalled.wait()
        dark = faults.add(Fault("rpc", times=None, reset=True))
        run.cancel()
        await asyncio.wait([run])
    dark.times = 0  # spent; the snapshot is still being taken

    asked = faults.add(Fault("rpc", "task.cancel", pool, stall=True))
    async with replicated.daemon() as context:
        run = start(replicated, context)
        await asked.stalled.wait()
        asked.release()
        slow.release()  # with its last disk, so that XAPI notices no cancellation any more
        [record] = await run

    assert record.outcome is Outcome.DELTA, record.error
    # What was taken on the source without a mark is gone; a restore point is finished.
    assert len(await replicated.points()) == (2 if pool == "prod" else 3)
    assert len(await replicated.bases()) == 1
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []
