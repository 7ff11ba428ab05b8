"""What a pool refuses is told by the names of its objects and with the remedy of that error."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.lab import hands
from tests.lab.world import World, new_run
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome
from xorepd_lab.faults.faults import Fault, Where

AUDIT = "frozen for the audit, ask Jane"


@pytest.fixture(autouse=True)
def no_reference_is_logged() -> Iterator[None]:
    """Fail a test in which a reference reaches the log, before anything takes it out there."""
    with capture_logs() as logs:
        yield
    assert [line for line in logs if "OpaqueRef" in str(line)] == []


async def failed(two_pools: World, **changes: Any) -> str:
    """Run the job, which must fail; return its error, in which no reference is."""
    async with two_pools.daemon() as context:
        record = await two_pools.run(context, **changes)
    assert record.outcome is Outcome.FAILED, record
    assert "OpaqueRef" not in str(record.to_json())
    return record.error or ""


async def uuid_of(two_pools: World, name: str = "web01", pool: str = "prod") -> str:
    uuid: str = await two_pools.ask(
        pool, lambda xenapi: xenapi.VM.get_uuid(hands.vm_of(xenapi, name))
    )
    return uuid


async def test_what_an_administrator_blocked_is_told_in_the_administrators_words(
    two_pools: World,
) -> None:
    def block(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.add_to_blocked_operations(vm, "snapshot", AUDIT)

    await two_pools.ask("prod", block)

    error = await failed(two_pools)

    assert f"pool prod: VM web01 ({await uuid_of(two_pools)}) is blocked" in error
    assert f'"{AUDIT}"' in error
    assert "role" not in error


async def test_usb_devices_are_named_and_not_the_role(two_pools: World) -> None:
    prod = two_pools.lab.pools["prod"]
    web01 = next(prod.db.select("VM", name_label="web01"))
    prod.db.set("VM", web01, VUSBs=["OpaqueRef:4f9f6c3a-0000-4000-8000-000000000001"])

    error = await failed(two_pools)

    prod.db.set("VM", web01, VUSBs=[])
    assert f"VM web01 ({await uuid_of(two_pools)}) has USB devices attached" in error
    assert "vusb-destroy" in error
    assert "role" not in error


@pytest.mark.parametrize(
    ("where", "method", "code", "more", "says"),
    [
        ("rpc", "VM.snapshot", "VM_IS_TEMPLATE", ("snapshot",), "is-a-template=false"),
        ("rpc", "VM.snapshot", "VM_BAD_POWER_STATE", ("halted", "running"), "leave it so"),
        ("rpc", "VM.snapshot", "VM_LACKS_FEATURE", (), "guest tools"),
        ("rpc", "VM.snapshot", "VM_IS_PROTECTED", (), "ha-restart-priority"),
        ("rpc", "VM.snapshot", "OPERATION_BLOCKED", (AUDIT,), AUDIT),
        ("rpc", "VM.snapshot", "INTERNAL_ERROR", (), "xensource.log"),
        ("rpc", "VM.snapshot", "A_CODE_OF_TOMORROW", (), "xensource.log"),
    ],
)
async def test_a_vm_is_told_by_name_and_with_the_remedy_of_the_error(
    two_pools: World, where: Where, method: str, code: str, more: tuple[str, ...], says: str
) -> None:
    vm = next(two_pools.lab.pools["prod"].db.select("VM", name_label="web01"))
    two_pools.lab.faults.add(Fault(where, method, "prod", times=None, error=(code, vm, *more)))

    error = await failed(two_pools)

    assert f"web01 ({await uuid_of(two_pools)})" in error
    assert code in error
    assert says in error
    assert "check the role" not in error


async def test_an_sr_is_told_by_name_and_with_the_remedy_of_the_error(two_pools: World) -> None:
    prod, dr = two_pools.lab.pools["prod"], two_pools.lab.pools["dr"]
    for pool, sr, method, code, says in (
        (prod, "prod-shared", "VM.snapshot", "SR_OPERATION_NOT_SUPPORTED", "another type"),
        (dr, "dr-storage", "VDI.create", "SR_HAS_NO_PBDS", "pbd-plug"),
        (dr, "dr-storage", "VDI.create", "SR_NOT_ATTACHED", "pbd-plug"),
    ):
        known = pool.srs[sr]
        two_pools.lab.faults.add(
            Fault("rpc", method, pool.name, times=None, error=(code, known.ref))
        )

        error = await failed(two_pools)

        two_pools.lab.faults.clear()
        assert f"SR {sr} ({known.uuid})" in error
        assert says in error


async def test_a_snapshot_of_ours_that_is_destroyed_meanwhile_is_named(two_pools: World) -> None:
    """Somebody clears up by hand while it is being read."""
    held = two_pools.lab.faults.add(Fault("export", "vhd", "prod", stall=True, stall_at=1 << 20))
    run_id = new_run()

    def destroy(xenapi: Any) -> str:
        [snapshot] = [ref for ref, vm in xenapi.VM.get_all_records().items() if vm["is_a_snapshot"]]
        uuid: str = xenapi.VM.get_uuid(snapshot)
        xenapi.VM.destroy(snapshot)
        return uuid

    async with two_pools.daemon() as context, asyncio.TaskGroup() as group:
        run = group.create_task(run_job(two_pools.job(), run_id, context))
        await held.stalled.wait()
        uuid = await two_pools.ask("prod", destroy)
        held.release()
        [record] = await run

    assert record.outcome is Outcome.FAILED
    # By which of its two names depends on whether the news of the second came before that it went.
    assert re.search(rf"snapshot \S.* \({uuid}\) no longer exists", record.error or "")
    assert "it was removed meanwhile" in (record.error or "")
    assert await two_pools.left_over() == []
    await two_pools.replicate()
