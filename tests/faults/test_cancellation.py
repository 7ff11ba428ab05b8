"""Runs that are cancelled, or run out of time: they end at once and leave both pools clean."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence

import pytest

from tests.lab import hands
from tests.lab.world import World, new_run
from tests.patience import patience
from xorepd.config.models import PoolSettings
from xorepd.replication.deciding.selection import ExcludedVm
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd.xapi.pool import Pool
from xorepd_lab.faults.faults import Fault

MiB = 1 << 20
PROMPT_S = patience(5.0)
"""A run cleans up before it ends; on an idle lab that takes half a second."""


def start(two_pools: World, context: Context, **changes: object) -> asyncio.Task[list[RunRecord]]:
    work = run_job(two_pools.job(**changes), new_run(), context)
    return asyncio.get_running_loop().create_task(work, name="run")


async def ended(run: asyncio.Task[list[RunRecord]]) -> float:
    """Wait for the end of a cancelled run; return how long that took."""
    began = time.monotonic()
    await asyncio.wait([run])
    assert run.cancelled()
    return time.monotonic() - began


async def write(two_pools: World, seed: int) -> None:
    """Change both disks, so that whichever stream a fault meets is long enough for it."""
    for disk in (0, 1):
        where = (20 * MiB, 4 * MiB)
        await two_pools.lab.guest_write("web01", disk, sequential=where, seed=seed * 2 + disk)


CALLS = {
    "before-the-snapshot": Fault("rpc", "VM.add_to_blocked_operations", "prod", stall=True),
    "as-the-snapshot-is-asked-for": Fault("rpc", "VM.snapshot", "prod", stall=True),
    "in-the-snapshot": Fault("inner", "VDI.snapshot", "prod", skip=1, stall=True),
    "as-a-mark-is-written": Fault("rpc", "VDI.set_other_config", "prod", stall=True),
    "in-a-clone": Fault("rpc", "VDI.clone", "dr", stall=True),
    "as-a-request-begins": Fault("rpc", "task.create", "prod", stall=True),
    "in-the-swap-of-disks": Fault("rpc", "VBD.create", "dr", skip=1, stall=True),
    "in-the-restore-point": Fault("inner", "VDI.snapshot", "dr", skip=1, stall=True),
    "after-the-restore-point": Fault("rpc", "VM.set_other_config", "dr", skip=2, stall=True),
    "in-the-pruning": Fault("rpc", "VDI.destroy", "prod", stall=True),
}


async def test_a_run_cancelled_in_any_call_leaves_both_pools_clean(replicated: World) -> None:
    first = (await replicated.points())[0]["self"]
    before = await replicated.hashes("dr", first)
    async with replicated.daemon() as context:
        for seed, (moment, fault) in enumerate(CALLS.items()):
            await write(replicated, seed)
            replicated.lab.faults.add(fault)

            run = start(replicated, context, keep=9)
            await fault.stalled.wait()
            run.cancel()
            await asyncio.sleep(0)
            fault.release()  # XAPI comes to its end; until then nobody can know what it did
            assert await ended(run) < PROMPT_S, moment

            assert await replicated.left_over() == [], moment
            assert context.board.records() == []
        assert await replicated.hashes("dr", first) == before
        record = await replicated.run(context, keep=9)

    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_a_cancelled_run_waits_for_the_call_that_is_on_its_way(two_pools: World) -> None:
    held = two_pools.lab.faults.add(Fault("rpc", "VM.create", "dr", stall=True))

    async with two_pools.daemon() as context:
        run = start(two_pools, context)
        await held.stalled.wait()
        run.cancel()
        # Cleaning up now would miss the VM that is created a moment later.
        done, _ = await asyncio.wait([run], timeout=0.5)
        assert not done
        held.release()
        assert await ended(run) < PROMPT_S

        assert await two_pools.left_over() == []
        assert await two_pools.ask("dr", hands.replicas_of) == []
        assert (await two_pools.run(context)).outcome is Outcome.FULL
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


@pytest.mark.debug
async def test_a_run_cancelled_in_a_stream_leaves_both_pools_clean_at_once(
    replicated: World,
) -> None:
    stalls = [
        *(Fault("export", stall=True, stall_at=at) for at in (0, 700, 3 * MiB)),
        *(Fault("import", stall=True, stall_at=at) for at in (0, 700, 3 * MiB)),
    ]
    async with replicated.daemon() as context:
        for seed, fault in enumerate(stalls):
            await write(replicated, seed)
            replicated.lab.faults.add(fault)

            run = start(replicated, context)
            await fault.stalled.wait()
            run.cancel()
            await asyncio.sleep(0)
            run.cancel()  # twice in quick succession, which must not strike the cleaning up
            if fault.where == "import":  # XAPI reads what had been sent before it sees the end
                fault.release()
            assert await ended(run) < PROMPT_S
            fault.release()

            assert await replicated.left_over() == [], fault
        record = await replicated.run(context)

    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_a_run_past_its_deadline_says_so_and_leaves_both_pools_clean(
    replicated: World,
) -> None:
    await write(replicated, 1)
    replicated.lab.faults.add(Fault("export", stall=True, stall_at=3 * MiB))

    async with replicated.daemon() as context:
        late = await replicated.run(context, deadline="1s")
        assert await replicated.left_over() == []
        replicated.lab.faults.clear()
        record = await replicated.run(context)

    assert late.outcome is Outcome.FAILED
    assert "VM web01: not done after 1.0 s, the deadline of job web (in step" in (late.error or "")
    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_a_cancelled_run_lets_the_source_go_even_when_the_target_is_dark(
    replicated: World,
) -> None:
    await write(replicated, 1)
    fault = replicated.lab.faults.add(Fault("import", stall=True, stall_at=3 * MiB))

    async with replicated.daemon() as context:
        run = start(replicated, context)
        await fault.stalled.wait()
        dark = replicated.lab.faults.add(Fault("rpc", pool="dr", times=None, reset=True))
        run.cancel()
        await ended(run)
        replicated.lab.faults.clear()

        assert dark.fired
        assert [line for line in await replicated.left_over() if "migration block" in line] == []
        record = await replicated.run(context)

    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


class Told:
    """What a run tells (`replication.jobs.Report`)."""

    def __init__(self) -> None:
        self.expected: list[RunRecord] = []
        self.records: list[RunRecord] = []
        self.first = asyncio.Event()

    def expects(self, records: Sequence[RunRecord], replicas: Sequence[ExcludedVm]) -> None:
        self.expected = list(records)

    def ended(self, record: RunRecord) -> None:
        self.records.append(record)
        self.first.set()


async def test_each_vm_is_told_of_when_it_ends_also_when_its_run_is_cancelled(
    two_pools: World,
) -> None:
    held = two_pools.lab.faults.add(Fault("export", host="prod-h1", stall=True))
    told = Told()

    async with two_pools.daemon() as context:
        job = two_pools.job(vms=("web01", "d*"), max_vms=2)
        run = asyncio.get_running_loop().create_task(
            run_job(job, new_run(), context, told), name="run"
        )
        await told.first.wait()
        await held.stalled.wait()
        assert [(r.vm_name, r.outcome) for r in told.records] == [("db01", Outcome.FULL)]
        assert told.records[0].finished_at is not None
        assert [record.vm_name for record in context.board.records()] == ["web01"]
        assert [r.vm_name for r in told.expected] == ["web01", "db01"]
        assert told.expected[1].vm_uuid == told.records[0].vm_uuid
        run.cancel()
        await ended(run)

        assert [(r.vm_name, r.outcome, r.step) for r in told.records[1:]] == [
            ("web01", Outcome.CANCELLED, "transfer")
        ]
        assert context.board.records() == []
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_vms_whose_turn_had_not_come_are_told_of_as_cancelled(two_pools: World) -> None:
    held = two_pools.lab.faults.add(Fault("rpc", "VM.snapshot", "prod", stall=True))
    told, at_once = Told(), Told()

    async with two_pools.daemon() as context:
        job = two_pools.job(vms=("web01", "db01"), max_vms=1)
        loop = asyncio.get_running_loop()
        run = loop.create_task(run_job(job, new_run(), context, told), name="run")
        await held.stalled.wait()
        run.cancel()
        held.release()
        await ended(run)

        again = loop.create_task(run_job(job, new_run(), context, at_once), name="run")
        await asyncio.sleep(0)  # its tasks are there, and have nothing to clean up
        again.cancel()
        await ended(again)

    steps = {(r.vm_name, r.outcome, r.step) for r in told.records}
    assert steps == {
        ("web01", Outcome.CANCELLED, "snapshot"),
        ("db01", Outcome.CANCELLED, "waiting"),
    }
    assert {(r.vm_name, r.outcome) for r in at_once.records} == {
        ("web01", Outcome.CANCELLED),
        ("db01", Outcome.CANCELLED),
    }
    assert await two_pools.left_over() == []


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_stopping_does_not_wait_for_a_server_that_never_answers(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        settings = PoolSettings.model_validate(
            {
                "name": "mute",
                "url": f"{scheme}://127.0.0.1:{silent.getsockname()[1]}",
                "password": "irrelevant",
                "plaintext": True,
            }
        )
        async with asyncio.timeout(PROMPT_S):
            async with Pool(settings, lambda: "irrelevant") as pool:
                # Each thread of the pool hangs in a login, or waits for its turn to.
                calls = [
                    asyncio.get_running_loop().create_task(pool.call("pool.get_all"), name="call")
                    for _ in range(3)
                ]
                connection, _ = await asyncio.get_running_loop().sock_accept(silent)
                with connection:
                    connection.setblocking(False)
                    assert await asyncio.get_running_loop().sock_recv(connection, 1)
                    began = time.monotonic()
                    await pool.session.end()
                    assert time.monotonic() - began < patience(1.0)
            results = await asyncio.gather(*calls, return_exceptions=True)

    assert all("pool mute: no answer from" in str(result) for result in results), results


async def test_a_daemon_that_ends_leaves_no_session_behind(two_pools: World) -> None:
    def sessions() -> list[str]:
        return [
            f"{name} {ref}"
            for name, pool in two_pools.lab.pools.items()
            for ref in pool.db.select("session", originator="xorepd")
        ]

    async with two_pools.daemon() as context:
        await context.pools[two_pools.job().source].refresh()
        await context.pools[two_pools.job().targets[0].pool].refresh()
        assert len(sessions()) == 2

    assert sessions() == []
