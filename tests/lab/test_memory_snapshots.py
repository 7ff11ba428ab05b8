"""Snapshots with memory: a suspended VM beside each restore point, which can be resumed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab import hands
from tests.lab.test_forget import AGREED, daemon, ours_on
from tests.lab.test_ownership import doubts
from tests.lab.world import World, new_run, serve_nbd, world
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd.xapi.records import parse_time
from xorepd_lab.demo import judge
from xorepd_lab.faults.faults import Fault
from xorepd_lab.topology import SMALL, AccountSpec

pytestmark = pytest.mark.lab

MiB = 1 << 20
BLOCKED = {"start", "start_on", "resume", "resume_on", "unpause"}
NOTHING = "OpaqueRef:NULL"


async def run(world: World, **changes: Any) -> RunRecord:
    """Replicate web01 with its memory, as a daemon that has just started."""
    async with world.daemon() as context:
        return await world.run(context, **{"snapshot": "memory"} | changes)


def memory_of(record: RunRecord) -> DiskRecord:
    [memory] = [disk for disk in record.disks if disk.mode == "memory"]
    return memory


def suspended(xenapi: Any) -> list[dict[str, Any]]:
    """Return the records of the VMs with memory of ours, the oldest first."""
    found = []
    for ref, vm in xenapi.VM.get_all_records().items():
        mark = json.loads(vm["other_config"].get("xorepd:mark", "{}"))
        if mark.get("role") == "memory" and mark["self"] == vm["uuid"]:
            found.append(vm | {"ref": ref, "mark": mark})
    return sorted(found, key=lambda vm: int(vm["mark"]["order"]))


def unblock(xenapi: Any) -> str:
    """Free the newest suspended VM, as someone does on a bad day; return its reference."""
    vm = str(suspended(xenapi)[-1]["ref"])
    xenapi.VM.set_blocked_operations(vm, {})
    return vm


def resume(xenapi: Any) -> str:
    vm = unblock(xenapi)
    xenapi.VM.resume(vm, False, False)
    return vm


def kinds_of_disks(xenapi: Any) -> list[str]:
    return [vdi["type"] for vdi in xenapi.VDI.get_all_records().values() if vdi["managed"]]


def state_of_source(xenapi: Any) -> tuple[str, bool]:
    record = xenapi.VM.get_record(hands.vm_of(xenapi, "web01"))
    return record["power_state"], "xorepd:restart" in record["other_config"]


async def times_of_points(world: World) -> list[str]:
    return sorted(point["order"] for point in await world.points())


# -- what there is afterwards -------------------------------------------------------------------


async def test_each_restore_point_has_a_suspended_vm_beside_it(two_pools: World) -> None:
    record = await run(two_pools)

    assert record.error is None
    assert record.outcome is Outcome.FULL
    assert memory_of(record).reason == ""
    assert memory_of(record).sent_bytes > 60 * 4096
    [vm] = await two_pools.ask("dr", suspended)
    assert vm["power_state"] == "Suspended"
    assert vm["blocked_operations"].keys() >= BLOCKED
    assert not vm["is_a_template"]
    assert "Continuous Replication" in vm["tags"]
    assert [vm["mark"]["order"]] == await times_of_points(two_pools)
    assert await two_pools.ask("prod", state_of_source) == ("Running", False)
    assert await two_pools.left_over() == []


async def test_the_memory_and_the_disks_are_those_of_the_snapshot(two_pools: World) -> None:
    prod = two_pools.lab.pools["prod"]
    [web01] = prod.db.select("VM", name_label="web01", is_a_template=False)
    prod.db.set("VM", web01, memory_static_max=16 * MiB)  # libvhdi reads every byte of the image
    held = two_pools.lab.faults.add(Fault("rpc", "VM.create", "dr", skip=1, stall=True))

    def images(xenapi: Any) -> list[str]:
        vdis = xenapi.VDI.get_all_records().values()
        return [vdi["uuid"] for vdi in vdis if vdi["type"] == "suspend"]

    async with two_pools.daemon() as context:
        job = two_pools.job(snapshot="memory")
        work = asyncio.get_running_loop().create_task(run_job(job, new_run(), context))
        await held.stalled.wait()  # all is there but for the VM itself
        await two_pools.lab.settled()
        hashes = []
        for pool, sr in (("prod", "prod-shared"), ("dr", "dr-storage")):
            [image] = await two_pools.ask(pool, images)
            known = {each.name: each for each in two_pools.lab.pools[pool].srs.values()}
            hashes.append(await asyncio.to_thread(judge.sha256, known[sr].directory, image))
        held.release()
        [record] = await work

    assert record.error is None
    assert memory_of(record).reason == ""
    assert hashes[0] == hashes[1]
    [vm] = await two_pools.ask("dr", suspended)
    [point] = await two_pools.points()
    assert await two_pools.hashes("dr", vm["uuid"]) == await two_pools.hashes("dr", point["self"])
    await two_pools.newest_equals_its_source()


async def test_the_suspended_vm_can_be_resumed_with_its_disks_and_network(
    two_pools: World,
) -> None:
    assert (await run(two_pools)).error is None

    def is_blocked(xenapi: Any) -> str:
        try:
            xenapi.VM.resume(suspended(xenapi)[0]["ref"], False, False)
        except Exception as error:
            return str(error)
        return "it was resumed"

    assert "OPERATION_BLOCKED" in await two_pools.ask("dr", is_blocked)

    def look(xenapi: Any) -> dict[str, Any]:
        vm = resume(xenapi)
        record = xenapi.VM.get_record(vm)
        vbds = [xenapi.VBD.get_record(vbd) for vbd in record["VBDs"]]
        vifs = [xenapi.VIF.get_record(vif) for vif in record["VIFs"]]
        return {
            "state": record["power_state"],
            "drives": {(v["userdevice"], v["type"], v["currently_attached"]) for v in vbds},
            "interfaces": {(v["MAC"], v["currently_attached"]) for v in vifs},
            "images": kinds_of_disks(xenapi).count("suspend"),
        }

    found = await two_pools.ask("dr", look)

    assert found == {
        "state": "Running",
        "drives": {("0", "Disk", True), ("1", "Disk", True), ("3", "CD", True)},
        "interfaces": {("02:16:3e:5e:6c:01", True)},
        "images": 0,
    }


# -- from run to run ----------------------------------------------------------------------------


async def test_the_next_runs_are_deltas_and_retention_removes_point_and_memory_together(
    two_pools: World,
) -> None:
    assert (await run(two_pools, keep=2)).outcome is Outcome.FULL
    for seed in (1, 2):
        await two_pools.lab.guest_write("web01", 1, random=2, seed=seed)
        record = await run(two_pools, keep=2, full="never")
        assert (record.outcome, memory_of(record).reason) == (Outcome.DELTA, "")

    vms = await two_pools.ask("dr", suspended)
    assert [vm["mark"]["order"] for vm in vms] == await times_of_points(two_pools)
    assert len(vms) == 2
    # Two restore points and two suspended VMs, each with two disks, the replica's two, two images.
    assert sorted(await two_pools.ask("dr", kinds_of_disks)) == ["suspend"] * 2 + ["user"] * 10
    assert "suspend" not in await two_pools.ask("prod", kinds_of_disks)
    [base] = await two_pools.bases()
    taken = await two_pools.ask(
        "prod", lambda x: x.VM.get_suspend_VDI(x.VM.get_by_uuid(base["snapshot"]))
    )
    assert taken == NOTHING
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_each_target_has_the_memory_and_the_last_one_frees_the_source_of_it(
    two_pools: World,
) -> None:
    places = [{"pool": "dr", "sr": "dr-storage"}, {"pool": "prod", "sr": "prod-local"}]
    async with two_pools.daemon() as context:
        records = await run_job(
            two_pools.job(snapshot="memory", targets=places), new_run(), context
        )

    assert [(record.error, memory_of(record).reason) for record in records] == [(None, "")] * 2
    assert len(await two_pools.ask("dr", suspended)) == 1
    assert len(await two_pools.ask("prod", suspended)) == 1
    assert (await two_pools.ask("prod", kinds_of_disks)).count("suspend") == 1  # the target's own
    assert await two_pools.left_over() == []


async def test_a_vm_that_does_not_run_is_taken_without_memory(two_pools: World) -> None:
    await two_pools.ask("prod", lambda x: x.VM.hard_shutdown(hands.vm_of(x, "web01")))

    record = await run(two_pools)

    assert (record.error, record.outcome) == (None, Outcome.FULL)
    assert memory_of(record).reason == "the VM was not running"
    assert await two_pools.ask("dr", suspended) == []
    assert await two_pools.ask("prod", state_of_source) == ("Halted", False)


async def test_the_memory_of_a_vm_that_is_suspended_comes_too(two_pools: World) -> None:
    await two_pools.ask("prod", lambda x: x.VM.suspend(hands.vm_of(x, "web01")))

    record = await run(two_pools)

    assert (record.error, memory_of(record).reason) == (None, "")
    assert await two_pools.ask("prod", state_of_source) == ("Suspended", False)
    await two_pools.ask("prod", lambda x: x.VM.resume(hands.vm_of(x, "web01"), False, False))
    await two_pools.ask("dr", resume)


async def test_changed_blocks_are_asked_for_as_ever(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod")
    await run(two_pools, changed_blocks="enable")
    await run(two_pools, changed_blocks="enable")  # now both snapshots are tracked
    await two_pools.lab.guest_write("web01", 1, random=2, seed=1)

    record = await run(two_pools, changed_blocks="enable", base_data="destroy")

    assert [disk.reader for disk in record.disks] == ["unchanged", "nbd-changes", "nbd-allocated"]
    assert memory_of(record).reason == ""
    await two_pools.lab.settled()
    assert set(await two_pools.ask("prod", kinds_of_disks)) == {"user", "cbt_metadata"}
    assert await two_pools.left_over() != []  # what is left of the base is a disk in no VM
    assert (await run(two_pools, changed_blocks="enable")).outcome is Outcome.DELTA


async def test_no_more_is_needed_than_the_role_vm_power_admin(tmp_path: Path) -> None:
    account = AccountSpec("replicator", "vm-power-admin")
    pools = tuple(replace(pool, accounts=(account,)) for pool in SMALL.pools)
    # The lab keeps its roles where its fsck does not look.
    async with world(tmp_path / "lab", replace(SMALL, pools=pools), ("reference",)) as on:
        settings = {
            name: on.settings(name, username=account.name, password=pool.accounts[account.name])
            for name, pool in on.lab.pools.items()
        }
        async with on.daemon(settings) as context:
            for outcome in (Outcome.FULL, Outcome.DELTA):
                record = await on.run(context, snapshot="memory", verify="off", keep=1)
                assert (record.error, record.outcome) == (None, outcome)
                assert memory_of(record).reason == ""
        assert len(await on.ask("dr", suspended)) == 1
        assert await on.left_over() == []


# -- what cannot be ----------------------------------------------------------------------------


async def test_a_vm_whose_disks_do_not_all_travel_is_refused_with_memory(two_pools: World) -> None:
    record = await run(two_pools, exclude_disks={"web01": ["1"]})

    assert record.step == "preflight"
    assert "disk web01-data stays behind" in (record.error or "")
    assert 'set snapshot = "plain" in job web' in (record.error or "")


async def test_a_vm_with_a_tpm_is_refused_with_memory(two_pools: World) -> None:
    def give_tpm(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.hard_shutdown(vm)
        xenapi.VTPM.create(vm, False)
        xenapi.VM.start(vm, False, False)

    await two_pools.ask("prod", give_tpm)

    record = await run(two_pools)

    assert record.step == "preflight"
    assert "it has a virtual TPM" in (record.error or "")


async def test_a_guest_that_cannot_be_suspended_is_refused_and_goes_on_running(
    two_pools: World,
) -> None:
    two_pools.lab.faults.add(Fault("rpc", "VM.checkpoint", error=("VM_LACKS_FEATURE", "web01")))

    record = await run(two_pools)

    assert "could not be snapshotted with its memory" in (record.error or "")
    assert "VM_LACKS_FEATURE" in (record.error or "")
    assert await two_pools.ask("prod", state_of_source) == ("Running", False)
    assert await two_pools.bases() == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("rpc", "VDI.create", "dr", skip=2, error=("SR_BACKEND_FAILURE_44", "", "full")),
        Fault("import", "*", "dr", skip=2, times=None, cut_at=100_000),
        Fault("rpc", "VM.create", "dr", skip=1, error=("INTERNAL_ERROR", "no")),
        Fault("rpc", "VIF.create", "dr", skip=1, error=("INTERNAL_ERROR", "no")),
    ],
    ids=["no-room", "cut", "no-vm", "no-interface"],
)
async def test_a_failure_of_the_memory_costs_no_restore_point(
    two_pools: World, fault: Fault
) -> None:
    two_pools.lab.faults.add(fault)

    record = await run(two_pools)

    assert (record.error, record.outcome) == (None, Outcome.FULL)
    assert memory_of(record).reason != ""
    assert await two_pools.ask("dr", suspended) == []
    await two_pools.newest_equals_its_source()
    two_pools.lab.faults.clear()
    assert memory_of(await run(two_pools)).reason == ""
    assert len(await two_pools.ask("dr", suspended)) == 1
    assert await two_pools.left_over() == []


async def test_one_that_cannot_be_destroyed_goes_with_the_next_run(two_pools: World) -> None:
    await run(two_pools, keep=1)
    two_pools.lab.faults.add(Fault("rpc", "VM.destroy", "dr", error=("INTERNAL_ERROR", "no")))

    assert (await run(two_pools, keep=1)).error is None
    assert len(await two_pools.ask("dr", suspended)) == 2

    assert (await run(two_pools, keep=1)).error is None
    assert len(await two_pools.ask("dr", suspended)) == 1
    assert await two_pools.left_over() == []


# -- in the hands of others ---------------------------------------------------------------------


async def test_its_protection_is_repaired_by_the_next_run(two_pools: World) -> None:
    await run(two_pools)
    await two_pools.ask("dr", unblock)

    await run(two_pools)

    for vm in await two_pools.ask("dr", suspended):
        assert vm["blocked_operations"].keys() >= BLOCKED


async def test_one_that_was_resumed_is_let_go_with_all_its_disks(two_pools: World) -> None:
    await run(two_pools, keep=1)

    def work_on_it(xenapi: Any) -> tuple[str, str]:
        vm = resume(xenapi)
        xenapi.VM.hard_shutdown(vm)
        return vm, hands.detach(xenapi, vm, "1")

    vm, detached = await two_pools.ask("dr", work_on_it)

    for _ in range(2):
        assert (await run(two_pools, keep=1)).error is None

    def look(xenapi: Any) -> tuple[str, int, int]:
        record = xenapi.VM.get_record(vm)
        mine = [key for key in record["other_config"] if key.startswith("xorepd")]
        return record["power_state"], len(mine), len(hands.disks_of(xenapi, vm))

    assert await two_pools.ask("dr", look) == ("Halted", 0, 1)
    assert await two_pools.ask("dr", lambda x: x.VDI.get_managed(detached))
    assert len(await two_pools.ask("dr", suspended)) == 1


async def test_one_that_was_suspended_again_keeps_its_new_memory(two_pools: World) -> None:
    await run(two_pools, keep=1)

    def work_on_it(xenapi: Any) -> tuple[str, str]:
        vm = resume(xenapi)
        xenapi.VM.hard_shutdown(vm)
        return vm, hands.create_disk(xenapi, "dr-storage", "its memory")

    vm, image = await two_pools.ask("dr", work_on_it)
    # The guest of a VM that was made by hand reports no tools, so that nobody can suspend it.
    two_pools.lab.pools["dr"].db.set("VM", vm, power_state="Suspended", suspend_VDI=image)

    for _ in range(2):
        assert (await run(two_pools, keep=1)).error is None

    record = await two_pools.ask("dr", lambda x: x.VM.get_record(vm))
    assert (record["power_state"], record["suspend_VDI"]) == ("Suspended", image)
    assert record["blocked_operations"] == {}
    await two_pools.ask("dr", lambda x: x.VM.hard_shutdown(vm))


async def test_no_job_takes_one_for_a_source(two_pools: World) -> None:
    await run(two_pools)
    [vm] = await two_pools.ask("dr", suspended)

    async with two_pools.daemon() as context:
        back = {"source": "dr", "targets": [{"pool": "prod", "sr": "prod-local"}]}
        found = await run_job(two_pools.job(vms=("*web01*",), **back), new_run(), context)
        named = await run_job(two_pools.job(vms=(vm["uuid"],), **back), new_run(), context)

    assert [record.outcome for record in found] == [Outcome.NO_VMS]
    assert "is itself a replica" in (named[0].error or "")


async def test_a_vm_left_suspended_by_a_dead_toolstack_is_resumed_by_the_next_run(
    two_pools: World,
) -> None:
    def die_in_between(xenapi: Any) -> str:
        vm = hands.vm_of(xenapi, "web01")
        metrics = xenapi.VM_metrics.get_record(xenapi.VM.get_metrics(vm))
        disks = hands.disks_of(xenapi, vm).values()
        left = {
            "run": "a run that is no more",
            "self": xenapi.VM.get_uuid(vm),
            "disks": sorted(xenapi.VDI.get_uuid(vdi) for vdi in disks),
            "started_at": parse_time(metrics["start_time"]).isoformat(),
        }
        xenapi.VM.add_to_other_config(vm, "xorepd:restart", json.dumps(left))
        xenapi.VM.suspend(vm)
        unfinished = xenapi.VDI.snapshot(xenapi.VM.get_suspend_VDI(vm))  # of a snapshot never made
        return str(xenapi.VDI.get_uuid(unfinished))

    unfinished = await two_pools.ask("prod", die_in_between)

    record = await run(two_pools)

    assert (record.error, memory_of(record).reason) == (None, "")
    assert await two_pools.ask("prod", state_of_source) == ("Running", False)
    assert [doubt.uuid for doubt in await doubts(two_pools, "prod")] == [unfinished]
    await two_pools.ask("prod", lambda x: x.VDI.destroy(x.VDI.get_by_uuid(unfinished)))


async def test_a_vm_that_people_shut_down_after_a_run_had_resumed_it_is_not_started(
    two_pools: World,
) -> None:
    # The run was killed before it could say that the VM runs again.
    struck = ("INTERNAL_ERROR", "struck")
    two_pools.lab.faults.add(
        Fault("rpc", "VM.remove_from_other_config", "prod", times=None, error=struck)
    )
    async with two_pools.daemon() as context:
        await two_pools.run(context, snapshot="memory")
    two_pools.lab.faults.clear()
    assert await two_pools.ask("prod", state_of_source) == ("Running", True)
    await two_pools.ask("prod", lambda x: x.VM.clean_shutdown(hands.vm_of(x, "web01")))

    record = await run(two_pools)

    assert record.error is None
    assert await two_pools.ask("prod", state_of_source) == ("Halted", False)


async def test_a_run_cancelled_while_the_vm_stands_still_lets_it_go_on(two_pools: World) -> None:
    held = two_pools.lab.faults.add(Fault("inner", "VDI.snapshot", "prod", stall=True))
    async with two_pools.daemon() as context:
        job = two_pools.job(snapshot="memory")
        work = asyncio.get_running_loop().create_task(run_job(job, new_run(), context))
        await held.stalled.wait()
        assert await two_pools.ask("prod", state_of_source) == ("Suspended", True)
        work.cancel()
        held.release()
        with pytest.raises(asyncio.CancelledError):
            await work

    state, _ = await two_pools.ask("prod", state_of_source)
    assert state == "Running"
    assert await two_pools.bases() == []
    assert "suspend" not in await two_pools.ask("prod", kinds_of_disks)
    assert await two_pools.left_over() == []
    # The key has stayed if XAPI resumed the VM before the run looked: a call might have been on
    # its way. The next run takes it off.
    await run(two_pools)
    assert await two_pools.ask("prod", state_of_source) == ("Running", False)


async def test_forgetting_a_stream_takes_the_suspended_vms_along(two_pools: World) -> None:
    await run(two_pools)
    await run(two_pools)

    async with daemon(two_pools) as on:
        await on.forget(AGREED)

    assert sum(told.startswith("suspended VM") for told in on.told) == 2
    assert await ours_on(two_pools, "dr") == []
    assert await two_pools.left_over() == []
