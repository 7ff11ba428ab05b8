"""One source VM and several targets: one snapshot for all, and each with a fate of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hands import destroy_with_disks, vm_of
from tests.lab.whole import left_by
from tests.lab.world import World, new_run, serve_nbd, world
from xorepd.data.memory_budget import MemoryBudget
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault
from xorepd_lab.topology import SMALL, PoolSpec, SrSpec

FAR = PoolSpec("far", ("far-h1",), (SrSpec("far-storage", "ext", ("far-h1",)),), ("lan",))
THREE_POOLS = replace(SMALL, name="three", pools=(*SMALL.pools, FAR))

DR = {"pool": "dr", "sr": "dr-storage"}
ELSEWHERE = {"pool": "far", "sr": "far-storage"}
BOTH: dict[str, Any] = {"targets": [DR, ELSEWHERE], "verify": "off"}


@pytest.fixture
async def three_pools(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with world(tmp_path / "lab", THREE_POOLS, leaves=left_by(request)) as made:
        yield made


async def run(three_pools: World, context: Context, **changes: Any) -> list[RunRecord]:
    return await run_job(three_pools.job(**BOTH | changes), new_run(), context)


async def replicate(three_pools: World, **changes: Any) -> list[RunRecord]:
    """Run the job once with a new daemon; all its targets must succeed."""
    async with three_pools.daemon() as context:
        records = await run(three_pools, context, **changes)
    assert [record.error for record in records] == [None] * len(records)
    return records


@pytest.fixture
async def served(three_pools: World) -> World:
    """The three pools, with a restore point of web01 on both targets."""
    await replicate(three_pools)
    return three_pools


async def write(three_pools: World, seed: int) -> None:
    await three_pools.lab.guest_write("web01", 1, random=2, seed=seed, within=(0, 2 << 20))


async def uses(three_pools: World) -> list[dict[str, str]]:
    """Return for whom each of our snapshots of the source stands, newest first: SR → use."""
    names = {
        sr.uuid: name for pool in three_pools.lab.pools.values() for name, sr in pool.srs.items()
    }

    def read(xenapi: Any) -> list[dict[str, str]]:
        found = []
        for vm in xenapi.VM.get_all_records().values():
            if vm["is_a_snapshot"] and "xorepd:mark" in vm["other_config"]:
                keys = vm["other_config"].items()
                marks = {k.split(":")[2]: v for k, v in keys if k.startswith("xorepd:for:")}
                of_srs = {names[sr]: use for sr, use in marks.items()}
                found.append((json.loads(vm["other_config"]["xorepd:mark"])["order"], of_srs))
        return [of_srs for _, of_srs in sorted(found, key=lambda each: each[0], reverse=True)]

    known: list[dict[str, str]] = await three_pools.ask("prod", read)
    return known


def snapshots_taken(three_pools: World) -> int:
    return sum(
        call.pool == "prod" and call.name == "Async.VM.snapshot" for call in three_pools.lab.calls
    )


async def assert_equal_everywhere(three_pools: World) -> None:
    for pool in ("dr", "far"):
        await three_pools.newest_equals_its_source(pool)
    assert await three_pools.left_over() == []


async def test_all_targets_get_the_same_point_in_time_from_one_snapshot(
    three_pools: World,
) -> None:
    records = await replicate(three_pools)

    assert [(record.target, record.outcome) for record in records] == [
        ("dr", Outcome.FULL),
        ("far", Outcome.FULL),
    ]
    assert snapshots_taken(three_pools) == 1
    assert await uses(three_pools) == [{"dr-storage": "held", "far-storage": "held"}]
    await assert_equal_everywhere(three_pools)


async def test_all_targets_get_deltas_and_one_base_stays(served: World) -> None:
    for seed in range(2):
        await write(served, seed)

        records = await replicate(served)

        assert [record.outcome for record in records] == [Outcome.DELTA] * 2
    assert await uses(served) == [{"dr-storage": "held", "far-storage": "held"}]
    await assert_equal_everywhere(served)


def exports_of(three_pools: World, since: int) -> int:
    calls = three_pools.lab.calls[since:]
    return sum(call.kind == "export" and call.pool == "prod" for call in calls)


async def test_what_all_targets_need_is_read_once(three_pools: World) -> None:
    for seed in range(2):
        await write(three_pools, seed)
        since = len(three_pools.lab.calls)

        records = await replicate(three_pools)

        assert exports_of(three_pools, since) == 2
        for record in records:
            assert [disk.shared_bytes for disk in record.disks] == [
                disk.read_bytes for disk in record.disks
            ]
    await assert_equal_everywhere(three_pools)


async def test_targets_with_bases_of_their_own_read_for_themselves(served: World) -> None:
    await write(served, 1)
    await replicate(served, targets=[DR])
    since = len(served.lab.calls)

    records = await replicate(served)

    assert exports_of(served, since) == 4
    assert {disk.shared_bytes for record in records for disk in record.disks} == {0}
    await assert_equal_everywhere(served)


async def test_changed_blocks_are_read_once_and_told_for_every_base(three_pools: World) -> None:
    await serve_nbd(three_pools, "prod")
    cbt = {"changed_blocks": "enable"}
    await replicate(three_pools, **cbt)
    shared = []
    for seed, targets in enumerate(([DR, ELSEWHERE], [DR], [DR, ELSEWHERE])):
        await write(three_pools, seed)

        records = await replicate(three_pools, **cbt, targets=targets)

        changed = [disk for record in records for disk in record.disks if disk.changed_bytes]
        assert {disk.reader for disk in changed} == {"nbd-changes"}
        shared.append({disk.shared_bytes == disk.read_bytes for disk in changed})
    assert shared == [{True}, {False}, {False}]
    await assert_equal_everywhere(three_pools)


@pytest.mark.parametrize("stuck", ["dr", "far"])
async def test_a_target_that_stops_in_a_shared_read_goes_on_alone(
    three_pools: World, stuck: str
) -> None:
    # More than the sockets and a queue take before anybody notices: with so little memory the queue
    # cannot grow.
    budget = MemoryBudget(16 << 20)
    await three_pools.lab.guest_write("web01", 1, sequential=(4 << 20, 24 << 20), seed=1)
    fault = three_pools.lab.faults.add(
        Fault("import", pool=stuck, object="[Importing] web01-data", stall=True, stall_at=65_536)
    )
    async with three_pools.daemon() as context:
        running = run(three_pools, replace(context, budget=budget))
        both = asyncio.get_running_loop().create_task(running, name="run")
        version = 0
        while not any(record.restore_point for record in three_pools.board.records()):
            version = await three_pools.board.changed(version)
        fault.release()
        records = await both

    assert [record.outcome for record in records] == [Outcome.FULL] * 2
    data = {record.target: record.disks[1] for record in records}
    assert 0 < data[stuck].shared_bytes < data[stuck].read_bytes
    [other] = data.keys() - {stuck}
    assert data[other].shared_bytes == data[other].read_bytes
    await assert_equal_everywhere(three_pools)


@pytest.mark.parametrize("failing", ["dr", "far"])
async def test_a_target_that_fails_in_a_shared_read_does_not_end_it(
    three_pools: World, failing: str
) -> None:
    fault = three_pools.lab.faults.add(
        Fault("import", pool=failing, times=None, error=("INTERNAL_ERROR", "no"))
    )

    async with three_pools.daemon() as context:
        records = await run(three_pools, context)

    assert fault.fired
    outcomes = {record.target: record for record in records}
    assert outcomes.pop(failing).outcome is Outcome.FAILED
    [(_, other)] = outcomes.items()
    assert other.outcome is Outcome.FULL
    shared = [disk for disk in other.disks if disk.shared_bytes]
    assert shared  # all of them, unless a target fails so early that it joins only one read
    assert all(disk.shared_bytes == disk.read_bytes for disk in shared)
    three_pools.lab.faults.clear()
    await replicate(three_pools)
    await assert_equal_everywhere(three_pools)


async def test_each_target_has_a_retention_of_its_own(served: World) -> None:
    for seed in range(2):
        await write(served, seed)
        await replicate(served, targets=[DR | {"keep": 1}, ELSEWHERE | {"keep": 2}])

    assert len(await served.points("dr")) == 1
    assert len(await served.points("far")) == 2
    await assert_equal_everywhere(served)


async def test_a_target_that_was_off_for_ten_runs_gets_one_delta(served: World) -> None:
    off = served.lab.faults.add(Fault("any", pool="far", times=None, reset=True))
    for seed in range(10):
        await write(served, seed)
        async with served.daemon() as context:
            to_dr, to_far = await run(served, context)
        assert (to_dr.outcome, to_far.outcome) == (Outcome.DELTA, Outcome.FAILED)
        assert to_far.step == "connect"
    assert await uses(served) == [{"dr-storage": "held"}, {"far-storage": "held"}]

    served.lab.faults.clear()
    assert off.fired
    records = await replicate(served)

    assert [record.outcome for record in records] == [Outcome.DELTA] * 2
    assert await uses(served) == [{"dr-storage": "held", "far-storage": "held"}]
    await assert_equal_everywhere(served)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("rpc", "event.inject", "far", error=("INTERNAL_ERROR", "no")),
        Fault("rpc", "VDI.clone", "far", error=("INTERNAL_ERROR", "no")),
        Fault("import", pool="far", error=("INTERNAL_ERROR", "no")),
        Fault("rpc", "VBD.create", "far", error=("INTERNAL_ERROR", "no")),
        Fault("rpc", "VM.snapshot", "far", error=("INTERNAL_ERROR", "no")),
    ],
    ids=["connect", "stage", "transfer", "swap", "commit"],
)
async def test_a_target_that_fails_costs_the_other_nothing(served: World, fault: Fault) -> None:
    await write(served, 1)
    last = (await served.points("far"))[0]["self"]
    before = await served.hashes("far", last)
    served.lab.faults.add(fault)

    async with served.daemon() as context:
        to_dr, to_far = await run(served, context)

    assert (to_dr.outcome, to_far.outcome) == (Outcome.DELTA, Outcome.FAILED)
    assert fault.fired
    assert await served.newest_equals_its_source("dr") == to_dr.restore_point
    assert await served.hashes("far", last) == before
    assert await uses(served) == [{"dr-storage": "held"}, {"far-storage": "held"}]
    assert await served.left_over() == []
    records = await replicate(served)
    assert [record.outcome for record in records] == [Outcome.DELTA] * 2
    await assert_equal_everywhere(served)


async def test_a_target_that_hangs_is_not_waited_for_and_gets_the_same_snapshot(
    served: World,
) -> None:
    await write(served, 1)
    hang = served.lab.faults.add(Fault("rpc", "event.inject", "far", stall=True))
    async with served.daemon() as context:
        both = asyncio.get_running_loop().create_task(
            run(served, replace(context, join_s=0.2)), name="run"
        )
        await hang.stalled.wait()
        version = 0
        while not any(record.restore_point for record in served.board.records()):
            version = await served.board.changed(version)
        taken = snapshots_taken(served)
        hang.release()
        records = await both

    assert [record.outcome for record in records] == [Outcome.DELTA] * 2
    assert snapshots_taken(served) == taken
    assert len({record.point_in_time for record in records}) == 1
    await assert_equal_everywhere(served)


async def test_a_source_that_fails_fails_all_and_leaves_nothing(served: World) -> None:
    served.lab.faults.add(
        Fault("rpc", "VM.snapshot", "prod", times=None, error=("SR_BACKEND_FAILURE_44", "", "", ""))
    )

    async with served.daemon() as context:
        records = await run(served, context)

    assert {record.outcome for record in records} == {Outcome.FAILED}
    served.lab.faults.clear()
    assert await served.left_over() == []
    assert [r.outcome for r in await replicate(served)] == [Outcome.DELTA] * 2


@pytest.mark.leaves("session")
async def test_a_daemon_killed_in_the_middle_of_two_targets_is_followed_by_two_deltas(
    served: World,
) -> None:
    loop = asyncio.get_running_loop()
    for seed, moment in enumerate(
        [
            Fault("rpc", "VM.set_other_config", "prod", stall=True),
            Fault("import", pool="far", stall=True),
            Fault("rpc", "VM.snapshot", "dr", stall=True, error=("INTERNAL_ERROR", "killed")),
            Fault("rpc", "VM.add_to_other_config", "prod", skip=3, stall=True),
        ]
    ):
        await write(served, seed)
        served.lab.faults.add(moment)
        async with served.daemon() as context:
            both = loop.create_task(run(served, context), name="run")
            await moment.stalled.wait()
            for where in ("rpc", "export", "import"):
                served.lab.faults.add(Fault(where, times=None, reset=True))
            both.cancel()
            moment.release()
            await asyncio.wait({both})
        served.lab.faults.clear()

        records = await replicate(served)

        assert [record.outcome for record in records] == [Outcome.DELTA] * 2, moment
        assert await uses(served) == [{"dr-storage": "held", "far-storage": "held"}]
        await assert_equal_everywhere(served)


async def test_targets_in_the_source_pool_and_on_the_sources_own_sr_work(
    three_pools: World,
) -> None:
    here = [{"pool": "prod", "sr": "prod-shared"}, {"pool": "prod", "sr": "prod-local"}, DR]
    for outcome in (Outcome.FULL, Outcome.DELTA):
        await write(three_pools, len(outcome))

        records = await replicate(three_pools, targets=here)

        assert [record.outcome for record in records] == [outcome] * 3
    assert await three_pools.left_over() == []
    points = await three_pools.points("prod")
    assert len(points) == 4
    for point in points[:2]:
        ours = await three_pools.hashes("prod", point["self"])
        assert ours == await three_pools.hashes("prod", point["snapshot"])


async def test_one_sr_named_twice_is_refused_once(three_pools: World) -> None:
    uuid = three_pools.lab.pools["dr"].srs["dr-storage"].uuid

    async with three_pools.daemon() as context:
        records = await run(three_pools, context, targets=[DR, {"pool": "dr", "sr": uuid}])

    assert sorted(record.outcome for record in records) == [Outcome.FAILED, Outcome.FULL]
    [error] = [record.error for record in records if record.error]
    assert "by its UUID and by its name" in error
    assert await three_pools.left_over() == []


async def test_two_jobs_on_one_vm_share_nothing_but_the_source(three_pools: World) -> None:
    async with three_pools.daemon() as context:
        for outcome in (Outcome.FULL, Outcome.DELTA):
            runs = [
                run(three_pools, context, name=name, targets=[to])
                for name, to in (("near", DR), ("far", ELSEWHERE))
            ]
            for [record] in await asyncio.gather(*runs):
                assert (record.outcome, record.error) == (outcome, None)
    known = await uses(three_pools)
    assert sorted(known, key=str) == [{"dr-storage": "held"}, {"far-storage": "held"}]
    await assert_equal_everywhere(three_pools)


async def test_a_base_is_given_up_for_a_target_that_does_not_come(served: World) -> None:
    for seed in range(2):
        await write(served, seed)
        async with served.daemon() as context:
            [record] = await run(served, context, targets=[DR], hold_bases="1s")
        assert record.outcome is Outcome.DELTA
        await asyncio.sleep(1.1)  # XAPI dates snapshots in whole seconds

    assert await uses(served) == [{"dr-storage": "held"}]


async def test_a_run_beside_a_slow_target_serves_the_other_and_keeps_the_vm_in_its_place(
    served: World,
) -> None:
    def blocked(xenapi: Any) -> dict[str, str]:
        operations: dict[str, str] = xenapi.VM.get_blocked_operations(vm_of(xenapi, "web01"))
        return operations

    await write(served, 1)
    stuck = served.lab.faults.add(Fault("import", pool="far", stall=True))
    async with served.daemon() as context:
        first = asyncio.get_running_loop().create_task(run(served, context), name="first")
        await stuck.stalled.wait()
        version = 0
        while not any(record.restore_point for record in served.board.records()):
            version = await served.board.changed(version)

        await write(served, 2)
        [second] = await run(served, context, targets=[DR])

        assert (second.outcome, second.error) == (Outcome.DELTA, None)
        assert set(await served.ask("prod", blocked)) == {"pool_migrate", "migrate_send"}
        stuck.release()
        assert [record.outcome for record in await first] == [Outcome.DELTA] * 2
    assert await served.ask("prod", blocked) == {}
    assert await uses(served) == [{"dr-storage": "held"}, {"far-storage": "held"}]
    await assert_equal_everywhere(served)


async def test_a_reverted_vm_gets_a_delta(served: World) -> None:
    def snapshot(xenapi: Any) -> str:
        return str(xenapi.VM.snapshot(vm_of(xenapi, "web01"), "before the update"))

    def revert(xenapi: Any) -> None:
        xenapi.VM.revert(mine)

    def forget(xenapi: Any) -> None:
        destroy_with_disks(xenapi, mine)

    mine = await served.ask("prod", snapshot)
    await write(served, 1)
    await replicate(served)
    await served.ask("prod", revert)

    records = await replicate(served)

    assert [record.outcome for record in records] == [Outcome.DELTA] * 2
    await assert_equal_everywhere(served)
    await served.ask("prod", forget)
