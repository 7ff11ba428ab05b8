"""Source VMs at rest for their snapshot: hooks, clean shutdowns, and the way back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.faults.killing import DEAD, killed_at
from tests.lab import hands
from tests.lab.world import World, new_run
from tests.patience import patience
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault

pytestmark = pytest.mark.lab


async def run(world: World, **changes: Any) -> RunRecord:
    async with world.daemon() as context:
        return await world.run(context, **changes)


async def state_of_source(world: World) -> tuple[str, bool]:
    """Return the power state of web01, and whether it still says that it is to be started."""

    def ask(xenapi: Any) -> tuple[str, bool]:
        record = xenapi.VM.get_record(hands.vm_of(xenapi, "web01"))
        return record["power_state"], "xorepd:restart" in record["other_config"]

    found: tuple[str, bool] = await world.ask("prod", ask)
    return found


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def is_alive(pid_file: Path) -> bool:
    """Whether the process of that number runs; one that nobody has buried yet does not."""
    command = Path(f"/proc/{pid_file.read_text().strip()}/cmdline")
    return command.exists() and command.read_bytes() != b""


async def test_an_offline_snapshot_is_taken_of_a_vm_that_was_shut_down_cleanly(
    two_pools: World,
) -> None:
    record = await run(two_pools, snapshot="offline")

    assert record.error is None
    assert await state_of_source(two_pools) == ("Running", False)
    point = (await two_pools.points())[0]
    taken = await two_pools.ask(
        "prod", lambda x: x.VM.get_record(x.VM.get_by_uuid(point["snapshot"]))
    )
    assert "xorepd:restart" not in taken["other_config"]
    assert taken["snapshot_info"]["power-state-at-snapshot"] == "Halted"
    await two_pools.newest_equals_its_source()


async def test_a_vm_that_was_down_stays_down(two_pools: World) -> None:
    await two_pools.ask("prod", lambda x: x.VM.hard_shutdown(hands.vm_of(x, "web01")))

    assert (await run(two_pools, snapshot="offline")).error is None

    assert await state_of_source(two_pools) == ("Halted", False)


async def test_a_guest_that_does_not_shut_down_fails_the_run_and_goes_on_running(
    two_pools: World,
) -> None:
    two_pools.lab.faults.add(
        Fault("rpc", "VM.clean_shutdown", error=("VM_SHUTDOWN_TIMEOUT", "", "1"))
    )

    record = await run(two_pools, snapshot="offline")

    assert "did not shut down for its snapshot" in (record.error or "")
    assert await state_of_source(two_pools) == ("Running", False)
    assert await two_pools.bases() == []


async def test_a_snapshot_that_fails_leaves_the_vm_running(two_pools: World) -> None:
    two_pools.lab.faults.add(
        Fault("rpc", "VM.snapshot", error=("SR_BACKEND_FAILURE_44", "", "full"))
    )

    assert (await run(two_pools, snapshot="offline")).outcome is Outcome.FAILED

    assert await state_of_source(two_pools) == ("Running", False)


async def test_a_run_cancelled_while_the_vm_is_down_starts_it_again(two_pools: World) -> None:
    held = two_pools.lab.faults.add(Fault("rpc", "VM.snapshot", stall=True))
    async with two_pools.daemon() as context:
        work = asyncio.get_running_loop().create_task(
            run_job(two_pools.job(snapshot="offline"), new_run(), context)
        )
        await held.stalled.wait()
        assert (await state_of_source(two_pools))[0] == "Halted"
        work.cancel()
        held.release()
        with pytest.raises(asyncio.CancelledError):
            await work

    assert await state_of_source(two_pools) == ("Running", False)
    assert await two_pools.left_over() == []


@pytest.mark.leaves(*DEAD)
async def test_a_vm_that_a_dead_daemon_shut_down_is_started_by_the_next_run(
    replicated: World,
) -> None:
    assert await killed_at(replicated, ("prod", "VM.snapshot", 0), snapshot="offline")
    assert await state_of_source(replicated) == ("Halted", True)

    assert (await run(replicated)).outcome is Outcome.DELTA

    assert await state_of_source(replicated) == ("Running", False)


@pytest.mark.leaves(*DEAD)
@pytest.mark.parametrize("deed", ["started and shut down", "reverted"])
async def test_a_vm_that_a_person_has_had_since_a_daemon_shut_it_down_is_left_alone(
    replicated: World, deed: str
) -> None:
    def do(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        if deed == "reverted":
            xenapi.VM.revert(sorted(xenapi.VM.get_snapshots(vm))[0])
        else:
            metrics = xenapi.VM.get_metrics(vm)
            before = xenapi.VM_metrics.get_start_time(metrics)
            while xenapi.VM_metrics.get_start_time(metrics) == before:  # it counts seconds
                xenapi.VM.start(vm, False, False)
                xenapi.VM.hard_shutdown(vm)

    assert await killed_at(replicated, ("prod", "VM.snapshot", 0), snapshot="offline")
    await replicated.ask("prod", do)

    assert (await run(replicated)).error is None

    assert await state_of_source(replicated) == ("Halted", False)


async def test_a_vm_that_a_person_reverts_while_a_run_has_it_down_stays_suspended(
    two_pools: World,
) -> None:
    """Its memory is that of the person's checkpoint; to resume the VM would use it up."""

    def take(xenapi: Any) -> str:
        return str(xenapi.VM.checkpoint(hands.vm_of(xenapi, "web01"), "by a person"))

    checkpoint = await two_pools.ask("prod", take)
    held = two_pools.lab.faults.add(Fault("rpc", "VM.snapshot", "prod", stall=True))

    async with (
        two_pools.daemon() as context,
        asyncio.timeout(patience()),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(two_pools.run(context, snapshot="offline"))
        await held.stalled.wait()
        await two_pools.ask("prod", lambda xenapi: xenapi.VM.revert(checkpoint))
        held.release()

    assert await state_of_source(two_pools) == ("Suspended", False)


async def test_hooks_run_before_and_after_and_are_told_what_for(
    two_pools: World, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    hook = script(tmp_path / "hook", f'echo "$1 $XOREPD_JOB $XOREPD_VM_NAME" >> {told}')

    record = await run(two_pools, hooks={"before": [hook, "before"], "after": [hook, "after"]})

    assert record.error is None
    assert told.read_text().splitlines() == ["before web web01", "after web web01"]


async def test_a_hook_that_fails_before_leaves_no_snapshot_and_is_followed_by_the_other(
    two_pools: World, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    before = script(tmp_path / "before", "echo database is down; exit 3")
    after = script(tmp_path / "after", f"echo thawed > {told}")

    record = await run(two_pools, hooks={"before": [before], "after": [after]})

    assert "before failed: it ended with status 3: database is down" in (record.error or "")
    assert told.read_text() == "thawed\n"
    assert await two_pools.bases() == []
    assert await two_pools.left_over() == []


async def test_a_hook_that_hangs_is_killed_with_what_it_started(
    two_pools: World, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    before = script(tmp_path / "before", f"sleep 1000 & echo $! > {child}; wait")

    record = await run(two_pools, hooks={"before": [before], "timeout": "1s"})

    assert "it did not end within 1 s" in (record.error or "")
    assert not is_alive(child)


async def test_a_hook_that_fails_after_is_said_and_costs_nothing(
    two_pools: World, tmp_path: Path
) -> None:
    after = script(tmp_path / "after", "exit 1")

    with capture_logs() as logs:
        record = await run(two_pools, hooks={"after": [after]})

    assert record.error is None
    assert [entry for entry in logs if entry["event"] == "hook.failed"]


async def test_a_hook_that_is_not_there_is_named(two_pools: World) -> None:
    record = await run(two_pools, hooks={"before": ["/no/such/program"]})

    assert "hook /no/such/program failed: it could not be started" in (record.error or "")
