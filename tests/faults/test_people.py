"""What administrators do between runs and during them: nothing of theirs is lost or touched.

After each deed the replica goes on: the next point equals its source, what we made and nobody needs
any more is gone, and what somebody else made, or uses, is as they left it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.faults.killing import DEAD
from tests.lab import hands
from tests.lab.test_ownership import doubts
from tests.lab.world import World, new_run
from tests.patience import patience
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault


async def next_run(two_pools: World, seed: int, **changes: Any) -> RunRecord:
    """Let the guest write a little, and replicate."""
    await two_pools.lab.guest_write("web01", 1, random=2, seed=seed)
    return await two_pools.replicate(**changes)


async def sound(two_pools: World, *, but: Collection[str] = ()) -> None:
    """Check what every run promises; `but` are UUIDs of what the test itself put there."""
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over(but=but) == []


def records_of(vms: list[str], vdis: list[str]) -> hands.Deed:
    """Return what must not change about VMs and disks; XAPI's own bookkeeping is left out."""
    bookkeeping = {
        "allowed_operations",
        "current_operations",
        "sm_config",
        "physical_utilisation",
        "parent",
        "children",
    }

    def read(xenapi: Any) -> list[dict[str, Any]]:
        found = [xenapi.VM.get_record(vm) for vm in vms]
        found += [xenapi.VDI.get_record(vdi) for vdi in vdis]
        return [{k: v for k, v in record.items() if k not in bookkeeping} for record in found]

    return read


async def test_snapshots_and_clones_made_by_hand_survive_ten_retention_cycles(
    replicated: World,
) -> None:
    def copy(xenapi: Any) -> tuple[list[str], list[str], list[str]]:
        replica = hands.replica_of(xenapi)
        [point] = xenapi.VM.get_snapshots(replica)
        live, kept = hands.disks_of(xenapi, replica), hands.disks_of(xenapi, point)
        vms = [
            xenapi.VM.snapshot(replica, "before I touch anything"),
            xenapi.VM.clone(replica, "test failover"),
            xenapi.VM.clone(point, "web01 of this morning"),
        ]
        lone = [
            xenapi.VDI.clone(live["0"]),
            xenapi.VDI.clone(kept["1"]),
            xenapi.VDI.snapshot(live["1"]),
            xenapi.VDI.snapshot(kept["0"]),
        ]
        vdis = lone + [vdi for vm in vms for vdi in hands.disks_of(xenapi, vm).values()]
        return vms, vdis, [xenapi.VDI.get_uuid(vdi) for vdi in lone]

    def snapshot_source(xenapi: Any) -> tuple[list[str], list[str]]:
        snapshot = xenapi.VM.snapshot(hands.vm_of(xenapi, "web01"), "before the upgrade")
        return [snapshot], list(hands.disks_of(xenapi, snapshot).values())

    vms, vdis, lone = await replicated.ask("dr", copy)
    source_vms, source_vdis = await replicated.ask("prod", snapshot_source)
    theirs = records_of(vms, vdis), records_of(source_vms, source_vdis)
    before = [await replicated.ask(p, r) for p, r in zip(("dr", "prod"), theirs, strict=True)]
    uuids = [record["uuid"] for record in before[0][: len(vms)]]
    content = [await replicated.hashes("dr", uuid) for uuid in uuids]

    async with replicated.daemon() as context:
        for seed in range(10):
            await replicated.lab.guest_write("web01", seed % 2, random=2, seed=seed)
            record = await replicated.run(context, keep=2, verify="off")
            assert record.outcome is Outcome.DELTA, record.error

    after = [await replicated.ask(p, r) for p, r in zip(("dr", "prod"), theirs, strict=True)]
    assert after == before
    assert [await replicated.hashes("dr", uuid) for uuid in uuids] == content
    assert len(await replicated.points()) == 2
    assert len(await replicated.bases()) == 1
    await sound(replicated, but=lone)


async def test_a_clone_made_while_we_clone_the_same_disk_is_never_taken_for_ours(
    replicated: World,
) -> None:
    held = replicated.lab.faults.add(Fault("rpc", "VDI.clone", "dr", stall=True))
    await replicated.lab.guest_write("web01", 1, random=2, seed=1)

    def clone_point(xenapi: Any) -> str:
        [point] = xenapi.VM.get_snapshots(hands.replica_of(xenapi))
        return str(xenapi.VM.clone(point, "web01 of this morning"))

    async with replicated.daemon() as context, asyncio.TaskGroup() as group:
        run = group.create_task(run_job(replicated.job(), new_run(), context))
        await held.stalled.wait()
        clone = await replicated.ask("dr", clone_point)
        held.release()
        [record] = await run
    assert record.outcome is Outcome.DELTA, record.error
    await next_run(replicated, 2)

    # Out of its VM it still carries what it inherited.
    disk = await replicated.ask("dr", lambda xenapi: hands.detach(xenapi, clone, "0"))
    await next_run(replicated, 3, keep=1)

    uuid = await replicated.ask("dr", lambda xenapi: xenapi.VDI.get_uuid(disk))
    await sound(replicated, but=[uuid])


async def test_a_snapshot_by_hand_in_the_moment_of_our_own_is_not_taken_for_it(
    replicated: World,
) -> None:
    held = replicated.lab.faults.add(Fault("rpc", "VM.snapshot", "dr", stall=True))
    await replicated.lab.guest_write("web01", 1, random=2, seed=1)

    def snapshot(xenapi: Any) -> str:
        return str(xenapi.VM.snapshot(hands.replica_of(xenapi), "manual"))

    async with replicated.daemon() as context, asyncio.TaskGroup() as group:
        run = group.create_task(run_job(replicated.job(), new_run(), context))
        await held.stalled.wait()  # everything is swapped, the point is about to be taken
        manual = await replicated.ask("dr", snapshot)
        disks = list((await replicated.ask("dr", lambda x: hands.disks_of(x, manual))).values())
        before = await replicated.ask("dr", records_of([manual], disks))
        held.release()
        [record] = await run
    assert record.outcome is Outcome.DELTA, record.error
    for seed in range(2):
        await next_run(replicated, seed, keep=1)

    assert await replicated.ask("dr", records_of([manual], disks)) == before
    assert len(await replicated.points()) == 1
    await sound(replicated)


async def test_disks_of_ours_in_somebody_elses_vm_stay_until_they_let_them_go(
    replicated: World,
) -> None:
    def borrow(xenapi: Any) -> tuple[str, list[str]]:
        replica = hands.replica_of(xenapi)
        [point] = xenapi.VM.get_snapshots(replica)
        rescue = hands.create_vm(xenapi, "rescue")
        taken = [
            hands.disks_of(xenapi, replica)["0"],
            hands.disks_of(xenapi, point)["1"],
        ]
        for device, vdi in enumerate(taken):
            hands.attach(xenapi, rescue, vdi, str(device))
        return rescue, [xenapi.VDI.get_uuid(vdi) for vdi in taken]

    def borrow_base(xenapi: Any) -> tuple[str, str]:
        snapshots = xenapi.VM.get_snapshots(hands.vm_of(xenapi, "web01"))
        vdi = hands.disks_of(xenapi, snapshots[0])["1"]
        rescue = hands.create_vm(xenapi, "rescue")
        hands.attach(xenapi, rescue, vdi, "0")
        return rescue, xenapi.VDI.get_uuid(vdi)

    rescue, borrowed = await replicated.ask("dr", borrow)
    rescue_at_source, base = await replicated.ask("prod", borrow_base)
    before = await replicated.hashes("dr", await uuid_of(replicated, "dr", rescue))

    for seed in range(2):
        assert (await next_run(replicated, seed, keep=1)).outcome is Outcome.DELTA

    assert await replicated.hashes("dr", await uuid_of(replicated, "dr", rescue)) == before
    assert base in await vdi_uuids(replicated, "prod")
    assert await replicated.left_over() == []

    await replicated.ask("dr", lambda xenapi: xenapi.VM.destroy(rescue))
    await replicated.ask("prod", lambda xenapi: xenapi.VM.destroy(rescue_at_source))
    await next_run(replicated, 9, keep=1)

    assert not set(borrowed) & await vdi_uuids(replicated, "dr")
    assert base not in await vdi_uuids(replicated, "prod")
    await sound(replicated)


async def uuid_of(two_pools: World, pool: str, vm: str) -> str:
    return str(await two_pools.ask(pool, lambda xenapi: xenapi.VM.get_uuid(vm)))


async def vdi_uuids(two_pools: World, pool: str) -> set[str]:
    found = await two_pools.ask(pool, lambda xenapi: xenapi.VDI.get_all_records().values())
    return {vdi["uuid"] for vdi in found}


@asynccontextmanager
async def held_amid_import(world: World, held: Fault) -> AsyncIterator[asyncio.Task[object]]:
    """Give a run that a fault holds amid an import, its disks with their content ids again."""
    async with world.daemon() as context:
        run = asyncio.get_running_loop().create_task(
            run_job(world.job(), new_run(), context), name="run"
        )
        await held.stalled.wait()
        await world.ask("dr", hands.wait_for(staging_disks_have_content_ids))
        yield run


def staging_disks_have_content_ids(xenapi: Any) -> bool:
    """Return whether no disk would count as written to by others if the run ended now."""
    return all(
        "content_id" in vdi["other_config"]
        for vdi in xenapi.VDI.get_all_records().values()
        if vdi["name_label"].startswith("[Importing]")
    )


def control_domains_have_no_disk(xenapi: Any) -> bool:
    vbds = xenapi.VBD.get_all_records().values()
    return not any(xenapi.VM.get_is_control_domain(vbd["VM"]) for vbd in vbds)


async def test_a_staging_disk_that_somebody_attached_is_not_destroyed_with_the_failed_run(
    replicated: World,
) -> None:
    for disk in (0, 1):  # whichever the stall meets
        where = (8 * hands.MiB, 4 * hands.MiB)
        await replicated.lab.guest_write("web01", disk, sequential=where, seed=disk)
    held = replicated.lab.faults.add(Fault("import", stall=True, stall_at=hands.MiB))

    def take(xenapi: Any) -> tuple[str, set[str]]:
        vm = hands.create_vm(xenapi, "curious")
        taken = set[str]()
        for ref, vdi in xenapi.VDI.get_all_records().items():
            if vdi["name_label"].startswith("[Importing]"):
                hands.attach(xenapi, vm, ref, str(len(taken)))
                taken.add(vdi["uuid"])
        return vm, taken

    async with held_amid_import(replicated, held) as run:
        vm, taken = await replicated.ask("dr", take)
        run.cancel()
        await asyncio.wait([run])
        held.release()

    assert taken
    assert taken <= await vdi_uuids(replicated, "dr")
    async with asyncio.timeout(patience()):
        while await replicated.left_over():  # noqa: ASYNC110 -- the host lets go of its streams
            await asyncio.sleep(0.05)
    await next_run(replicated, 2)
    assert taken <= await vdi_uuids(replicated, "dr")

    await replicated.ask("dr", lambda xenapi: xenapi.VM.destroy(vm))
    assert (await next_run(replicated, 3)).outcome is Outcome.DELTA
    assert not taken & await vdi_uuids(replicated, "dr")
    await sound(replicated)


async def test_drives_that_somebody_gave_the_replica_stay_and_are_in_no_restore_point(
    replicated: World,
) -> None:
    def give(xenapi: Any) -> str:
        replica = hands.replica_of(xenapi)
        vdi = hands.create_disk(xenapi, "dr-storage", "scratch of the admin")
        hands.attach(xenapi, replica, vdi, "7")
        hands.attach(xenapi, replica, None, "3", kind="CD", mode="RO")
        return vdi

    scratch = await replicated.ask("dr", give)
    before = await replicated.ask("dr", records_of([], [scratch]))
    for seed in range(2):
        assert (await next_run(replicated, seed, keep=1)).outcome is Outcome.DELTA

    def look(xenapi: Any) -> tuple[list[str], list[str]]:
        replica = hands.replica_of(xenapi)
        devices = [xenapi.VBD.get_userdevice(vbd) for vbd in xenapi.VM.get_VBDs(replica)]
        point = xenapi.VM.get_by_uuid(newest)
        return sorted(devices), sorted(hands.disks_of(xenapi, point))

    newest = (await replicated.points())[0]["self"]
    assert await replicated.ask("dr", look) == (["0", "1", "3", "7"], ["0", "1"])
    assert await replicated.ask("dr", records_of([], [scratch])) == before

    # The source gets disks in the same places: there they make room when the job says so.
    def add(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.hard_shutdown(vm)  # a CD drive leaves no running VM
        hands.detach(xenapi, vm, "3")
        for device in ("3", "7"):
            vdi = hands.create_disk(xenapi, "prod-shared", f"new {device}")
            hands.attach(xenapi, vm, vdi, device)
        xenapi.VM.start(vm, False, False)

    await replicated.ask("prod", add)
    async with replicated.daemon() as context:
        refused = await replicated.run(context)
    assert "disk scratch of the admin is at device 7, where a run puts" in str(refused.error)
    assert await replicated.ask("dr", look) == (["0", "1", "3", "7"], ["0", "1"])

    await next_run(replicated, 5, diverged="replace")

    newest = (await replicated.points())[0]["self"]
    assert await replicated.ask("dr", look) == (["0", "1", "3", "7"], ["0", "1", "3", "7"])
    uuid = await replicated.ask("dr", lambda xenapi: xenapi.VDI.get_uuid(scratch))
    await sound(replicated, but=[uuid])


async def test_hosts_that_cannot_leave_a_disk_out_of_a_snapshot_leave_nothing_behind(
    replicated: World,
) -> None:
    def give(xenapi: Any) -> str:
        vdi = hands.create_disk(xenapi, "dr-storage", "scratch of the admin")
        hands.attach(xenapi, hands.replica_of(xenapi), vdi, "7")
        return vdi

    scratch = await replicated.ask("dr", give)
    old = ("MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3")
    replicated.lab.faults.add(Fault("rpc", "VM.snapshot", "dr", error=old))
    assert (await next_run(replicated, 1, keep=1)).outcome is Outcome.DELTA

    # That restore point has a snapshot of the admin's disk as well, which goes with it.
    assert (await next_run(replicated, 2, keep=1)).outcome is Outcome.DELTA
    snapshots = await replicated.ask("dr", lambda xenapi: xenapi.VDI.get_snapshots(scratch))
    assert snapshots == []
    await sound(replicated)


async def test_disks_of_the_source_are_added_removed_and_replaced(replicated: World) -> None:
    def replace(xenapi: Any) -> str:
        vm = hands.vm_of(xenapi, "web01")
        gone = hands.detach(xenapi, vm, "5")
        hands.attach(xenapi, vm, hands.create_disk(xenapi, "prod-shared", "other archive"), "5")
        return str(xenapi.VDI.get_uuid(gone))

    def detach_data(xenapi: Any) -> str:
        vm = hands.vm_of(xenapi, "web01")
        vdi = hands.detach(xenapi, vm, "1")
        hands.attach(xenapi, vm, hands.create_disk(xenapi, "prod-shared", "archive"), "5")
        return str(xenapi.VDI.get_uuid(vdi))

    data = await replicated.ask("prod", detach_data)
    record = await replicated.replicate(keep=1)

    assert {d.device: d.reason for d in record.disks} == {"0": "", "5": "new-disk"}
    await sound(replicated, but=[data])

    archive = await replicated.ask("prod", replace)
    record = await replicated.replicate(keep=1)

    assert {d.device: d.reason for d in record.disks} == {"0": "", "5": "disk-moved"}
    await replicated.newest_equals_its_source()
    assert (await replicated.replicate(keep=1)).outcome is Outcome.DELTA
    await sound(replicated, but=[data, archive])


async def test_restore_points_deleted_by_hand_cost_no_more_than_they_held(
    replicated: World,
) -> None:
    await next_run(replicated, 1)
    points = [mark["self"] for mark in await replicated.points()]

    def delete(uuid: str) -> hands.Deed:
        return lambda xenapi: hands.destroy_with_disks(xenapi, xenapi.VM.get_by_uuid(uuid))

    await replicated.ask("dr", delete(points[-1]))
    assert (await next_run(replicated, 7)).outcome is Outcome.DELTA

    newest = (await replicated.points())[0]["self"]
    await replicated.ask("dr", delete(newest))
    record = await next_run(replicated, 8)

    # The only base on the source was the one that this point held.
    assert {disk.reason for disk in record.disks} == {"base-gone-on-source"}
    assert (await next_run(replicated, 9)).outcome is Outcome.DELTA
    assert await replicated.left_over() == []

    # Only the record of the newest: its disks are found, and belong to nothing any more.
    newest = (await replicated.points())[0]["self"]
    await replicated.ask("dr", lambda x: x.VM.destroy(x.VM.get_by_uuid(newest)))
    await next_run(replicated, 10)
    await sound(replicated)


async def test_a_replica_destroyed_by_hand_is_made_anew_from_its_points(replicated: World) -> None:
    await next_run(replicated, 1)
    await replicated.ask("dr", lambda x: x.VM.destroy(hands.replica_of(x)))

    # We die on the way, with a new replica that has nothing yet and is still a template.
    held = replicated.lab.faults.add(
        Fault("rpc", "VM.set_is_a_template", "dr", stall=True, error=("INTERNAL_ERROR", "killed"))
    )
    async with replicated.daemon() as context:
        run = asyncio.get_running_loop().create_task(
            run_job(replicated.job(), new_run(), context), name="run"
        )
        await held.stalled.wait()
        dead = replicated.lab.faults.add(Fault("rpc", pool="dr", times=None, reset=True))
        run.cancel()
        held.release()
        await asyncio.wait([run])
    assert dead.fired
    replicated.lab.faults.clear()

    assert (await next_run(replicated, 2)).outcome is Outcome.DELTA

    replica = await replicated.ask("dr", lambda x: x.VM.get_record(hands.replica_of(x)))
    assert not replica["is_a_template"]
    assert len(replica["blocked_operations"]) == 5
    assert len(await replicated.points()) == 3
    await sound(replicated)


async def test_disks_taken_from_the_replica_by_hand_come_back(replicated: World) -> None:
    def take(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        hands.detach(xenapi, replica, "0")
        xenapi.VDI.destroy(hands.detach(xenapi, replica, "1"))

    await replicated.ask("dr", take)

    assert (await next_run(replicated, 1)).outcome is Outcome.DELTA
    disks = await replicated.ask("dr", lambda x: hands.disks_of(x, hands.replica_of(x)))
    assert sorted(disks) == ["0", "1"]

    # And when we die in the commit of a replica that somebody stripped, it is still that replica.
    await replicated.ask("dr", take)
    kept = await replicated.ask("dr", lambda x: x.VM.get_uuid(hands.replica_of(x)))
    replicated.lab.faults.add(
        Fault("rpc", "VM.snapshot", "dr", error=("SR_BACKEND_FAILURE_202", "", "general", ""))
    )
    async with replicated.daemon() as context:
        assert (await replicated.run(context)).outcome is Outcome.FAILED
    assert await replicated.ask("dr", lambda x: x.VM.get_uuid(hands.replica_of(x))) == kept
    assert (await next_run(replicated, 2)).outcome is Outcome.DELTA
    await sound(replicated)


async def test_what_somebody_changed_on_the_replica_stays_until_the_source_changes_it(
    replicated: World,
) -> None:
    def change(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        xenapi.VM.add_tags(replica, "gold")
        xenapi.VM.add_to_other_config(replica, "ticket", "4711")
        xenapi.VM.set_memory_limits(replica, *(str(512 * hands.MiB) for _ in range(4)))
        [vif] = xenapi.VM.get_VIFs(replica)
        network = xenapi.network.get_by_name_label("dr-isolated")[0]
        xenapi.VIF.move(vif, network)
        for operation in ("start", "resume"):
            xenapi.VM.remove_from_blocked_operations(replica, operation)

    def look(xenapi: Any) -> dict[str, Any]:
        replica = hands.replica_of(xenapi)
        record = xenapi.VM.get_record(replica)
        [vif] = record["VIFs"]
        return {
            "tags": sorted(record["tags"]),
            "ticket": record["other_config"].get("ticket"),
            "memory": record["memory_dynamic_max"],
            "network": xenapi.network.get_name_label(xenapi.VIF.get_network(vif)),
            "mac": xenapi.VIF.get_MAC(vif),
            "blocked": len(record["blocked_operations"]),
        }

    await replicated.ask("dr", change)
    before = await replicated.ask("dr", look)
    for seed in range(2):
        await next_run(replicated, seed)

    assert before["blocked"] == 3
    assert await replicated.ask("dr", look) == before | {"blocked": 5}

    def change_source(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.add_tags(vm, "moved")
        xenapi.VM.hard_shutdown(vm)
        xenapi.VM.set_memory_limits(vm, *(str(1024 * hands.MiB) for _ in range(4)))
        [vif] = xenapi.VM.get_VIFs(vm)
        record = xenapi.VIF.get_record(vif)
        xenapi.VIF.destroy(vif)
        xenapi.VIF.create(record | {"MAC": "02:16:3e:00:00:99"})
        xenapi.VM.start(vm, False, False)

    await replicated.ask("prod", change_source)
    await next_run(replicated, 7)

    assert await replicated.ask("dr", look) == {
        "tags": ["Continuous Replication", "gold", "moved"],
        "ticket": "4711",
        "memory": str(1024 * hands.MiB),
        "network": "lan",
        "mac": "02:16:3e:00:00:99",
        "blocked": 5,
    }
    await sound(replicated)


async def test_two_jobs_for_one_vm_and_sr_continue_each_other(replicated: World) -> None:
    await replicated.lab.guest_write("web01", 1, random=2, seed=1)

    # Both at once: they take turns.
    async with replicated.daemon() as context, asyncio.TaskGroup() as group:
        runs = [
            group.create_task(run_job(replicated.job(name=name), new_run(), context))
            for name in ("web", "hourly")
        ]
    records = [record for run in runs for record in run.result()]

    assert {record.outcome for record in records} == {Outcome.DELTA}, records
    assert len(await replicated.points()) == 3
    assert len(await replicated.bases()) == 1
    await sound(replicated)


async def test_one_vm_goes_to_three_srs_two_of_them_its_own_pools(replicated: World) -> None:
    elsewhere = [
        {"pool": "prod", "sr": "prod-local"},
        {"pool": "prod", "sr": "prod-shared"},
    ]
    for round_ in range(2):
        await replicated.lab.guest_write("web01", 1, random=2, seed=round_)
        for number, target in enumerate(elsewhere):
            record = await replicated.replicate(name=f"local{number}", target=target, keep=1)
            assert record.outcome is (Outcome.DELTA if round_ else Outcome.FULL)
    await replicated.newest_equals_its_source("prod")
    assert (await replicated.replicate(keep=1)).outcome is Outcome.DELTA

    await replicated.newest_equals_its_source()
    assert len(await replicated.points("prod")) == 2
    assert len(await replicated.points()) == 1
    assert len(await replicated.bases()) == 3
    await sound(replicated)


async def test_a_replica_started_during_a_transfer_is_left_alone_and_nothing_is_lost(
    replicated: World,
) -> None:
    await replicated.lab.guest_write("web01", 1, random=2, seed=1)
    last = (await replicated.points())[0]["self"]
    held = replicated.lab.faults.add(Fault("import", stall=True))

    def force_start(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        xenapi.VM.set_blocked_operations(replica, {})
        xenapi.VM.start(replica, False, False)

    async with replicated.daemon() as context, asyncio.TaskGroup() as group:
        run = group.create_task(run_job(replicated.job(), new_run(), context))
        await held.stalled.wait()
        await replicated.ask("dr", force_start)
        held.release()
        [record] = await run

    assert record.outcome is Outcome.FAILED
    assert [mark["self"] for mark in await replicated.points()] == [last]
    state = await replicated.ask("dr", lambda x: x.VM.get_power_state(hands.replica_of(x)))
    assert state == "Running"
    assert await replicated.left_over() == []
    await replicated.ask("dr", lambda x: x.VM.hard_shutdown(hands.replica_of(x)))
    async with replicated.daemon() as context:
        assert "has changed since" in ((await replicated.run(context)).error or "")
    assert (await next_run(replicated, 2, diverged="replace")).outcome is Outcome.DELTA
    changed = {doubt.uuid for doubt in await doubts(replicated, "dr")}
    assert len(changed) == 2
    await sound(replicated, but=changed)


async def test_a_restore_points_disk_that_is_written_to_before_it_is_cloned_is_no_base(
    replicated: World,
) -> None:
    last = (await replicated.points())[0]["self"]
    await replicated.lab.guest_write("web01", 1, random=2, seed=1)
    held = replicated.lab.faults.add(Fault("rpc", "VDI.set_other_config", "prod", stall=True))

    def write(xenapi: Any) -> None:
        point = xenapi.VM.get_by_uuid(last)
        rescue = hands.create_vm(xenapi, "rescue")
        hands.attach(xenapi, rescue, hands.disks_of(xenapi, point)["1"], "0")
        xenapi.VM.start(rescue, False, False)
        xenapi.VM.hard_shutdown(rescue)
        xenapi.VM.destroy(rescue)

    async with replicated.daemon() as context, asyncio.TaskGroup() as group:
        job = replicated.job(verify="off")
        run = group.create_task(run_job(job, new_run(), context))
        await held.stalled.wait()
        await replicated.ask("dr", write)
        held.release()
        [record] = await run

    assert "of a restore point" in (record.error or "")
    assert "was written to while the run used it" in (record.error or "")
    assert [mark["self"] for mark in await replicated.points()] == [last]
    assert (await next_run(replicated, 2, verify="off")).outcome is Outcome.DELTA
    await sound(replicated, but=[doubt.uuid for doubt in await doubts(replicated, "dr")])


async def test_a_replica_that_is_worked_on_in_the_moment_of_the_commit_is_no_restore_point(
    replicated: World,
) -> None:
    last = (await replicated.points())[0]["self"]
    await replicated.lab.guest_write("web01", 1, random=2, seed=1)
    held = replicated.lab.faults.add(Fault("rpc", "VM.snapshot", "dr", stall=True))

    def exchange(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        first, second = (hands.detach(xenapi, replica, device) for device in "01")
        hands.attach(xenapi, replica, second, "0")
        hands.attach(xenapi, replica, first, "1")

    async with replicated.daemon() as context, asyncio.TaskGroup() as group:
        run = group.create_task(run_job(replicated.job(), new_run(), context))
        await held.stalled.wait()
        await replicated.ask("dr", exchange)
        held.release()
        [record] = await run

    assert "was written to while the run used it" in (record.error or "")
    assert [mark["self"] for mark in await replicated.points()] == [last]
    assert (await next_run(replicated, 2)).outcome is Outcome.DELTA
    [doubt] = await doubts(replicated, "dr")
    assert "which did not sign it: the replica had been worked on" in doubt.why
    await replicated.newest_equals_its_source()


async def test_a_vm_that_is_being_migrated_is_waited_for(replicated: World) -> None:
    db = replicated.lab.pools["prod"].db
    vm = await replicated.ask("prod", lambda x: hands.vm_of(x, "web01"))
    db.put("VM", vm, "current_operations", "task", "pool_migrate")
    snapshots = len(await replicated.bases())
    async with replicated.daemon() as context, asyncio.TaskGroup() as group:
        run = group.create_task(run_job(replicated.job(), new_run(), context))
        while not any(record.step == "preflight" for record in replicated.board.records()):
            await replicated.board.changed(-1)
            await asyncio.sleep(0)
        assert len(await replicated.bases()) == snapshots
        db.drop("VM", vm, "current_operations", "task")
        [record] = await run

    assert record.outcome is Outcome.DELTA, record.error
    await sound(replicated)


@pytest.mark.leaves(*DEAD)
async def test_a_staging_disk_that_a_person_wrote_to_after_a_daemon_had_died_stays(
    replicated: World,
) -> None:
    """The task of the dead daemon's import is still there, and proves nothing any more."""
    await replicated.lab.guest_write("web01", 1, sequential=(0, 8 * hands.MiB), seed=1)
    held = replicated.lab.faults.add(
        Fault("import", object="[Importing] web01-data", stall=True, stall_at=3 * hands.MiB)
    )
    async with held_amid_import(replicated, held) as run:
        for where in ("rpc", "export", "import"):
            replicated.lab.faults.add(Fault(where, times=None, reset=True))
        run.cancel()
        held.release()
        await asyncio.wait({run})
    replicated.lab.faults.clear()
    await replicated.ask("dr", hands.wait_for(control_domains_have_no_disk))

    def work(xenapi: Any) -> str:
        [ref] = xenapi.VDI.get_by_name_label("[Importing] web01-data")
        vm = hands.create_vm(xenapi, "rescue")
        hands.attach(xenapi, vm, ref, "0")
        xenapi.VM.start(vm, False, False)
        xenapi.VM.hard_shutdown(vm)
        hands.detach(xenapi, vm, "0")
        return str(xenapi.VDI.get_uuid(ref))

    worked_on = await replicated.ask("dr", work)
    assert (await next_run(replicated, 2)).outcome is Outcome.DELTA

    assert worked_on in await vdi_uuids(replicated, "dr")
    assert worked_on in {doubt.uuid for doubt in await doubts(replicated, "dr")}
    await replicated.ask("dr", hands.destroy_disks([worked_on]))
    await sound(replicated)
