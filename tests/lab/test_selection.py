"""Which VMs and disks a run takes, and what it says of those that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.lab import hands
from tests.lab.world import World, new_run
from xorepd.replication.deciding.selection import ExcludedVm
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault


class Told:
    """What a run tells (`replication.jobs.Report`)."""

    def __init__(self) -> None:
        self.replicas: list[ExcludedVm] = []

    def expects(self, records: Sequence[RunRecord], replicas: Sequence[ExcludedVm]) -> None:
        self.replicas = list(replicas)

    def ended(self, record: RunRecord) -> None:
        pass


async def run(two_pools: World, told: Told | None = None, **changes: Any) -> dict[str, RunRecord]:
    """Run the job with a new daemon; the records by the names of their VMs."""
    async with two_pools.daemon() as context:
        job = two_pools.job(verify="off", **changes)
        records = await run_job(job, new_run(), context, told)
    by_name = {record.vm_name: record for record in records}
    assert len(by_name) == len(records)
    return by_name


def tag_vm(name: str, tag: str) -> hands.Deed:
    return lambda xenapi: xenapi.VM.add_tags(hands.vm_of(xenapi, name), tag)


async def test_patterns_and_tags_find_vms_and_what_is_named_twice_runs_once(
    two_pools: World,
) -> None:
    await two_pools.ask("prod", tag_vm("db01", "gold"))

    records = await run(two_pools, vms=("web01", "w*"), tags=("gold",))

    assert {name: record.outcome for name, record in records.items()} == {
        "web01": Outcome.FULL,
        "db01": Outcome.FULL,
    }
    assert await two_pools.left_over() == []


EVERYTHING: dict[str, Any] = {
    "vms": ("*",),
    "exclude": ("web*",),
    "target": {"pool": "prod", "sr": "prod-shared"},
}
"""Of a pool whose replicas are in that pool."""


async def test_everything_of_a_pool_leaves_out_its_replicas_and_names_them(
    two_pools: World,
) -> None:
    told = Told()
    assert set(await run(two_pools, **EVERYTHING)) == {"db01"}

    records = await run(two_pools, told, **EVERYTHING)

    assert {name: record.outcome for name, record in records.items()} == {"db01": Outcome.DELTA}
    [left] = told.replicas
    assert (left.vm.name_label, left.reason) == ("[XO Backup web] db01", "it is a replica")


@pytest.mark.parametrize("of", ["replica", "restore point"])
async def test_vm_that_a_failover_made_is_found_like_others_and_its_replica_is_whole(
    two_pools: World, of: str
) -> None:
    def fail_over(xenapi: Any) -> str:
        replica = hands.replica_of(xenapi)
        origin = replica if of == "replica" else xenapi.VM.get_snapshots(replica)[0]
        vm = xenapi.VM.clone(origin, "shop")
        if of == "restore point":
            xenapi.VM.set_is_a_template(vm, False)
        xenapi.VM.start(vm, False, False)
        other, tags = xenapi.VM.get_other_config(vm), xenapi.VM.get_tags(vm)
        assert "xorepd:mark" in other
        assert "Continuous Replication" in tags
        uuid: str = xenapi.VM.get_uuid(vm)
        return uuid

    await two_pools.replicate(verify="off")
    uuid = await two_pools.ask("dr", fail_over)

    back: dict[str, Any] = {
        "source": "dr",
        "vms": ("*",),
        "target": {"pool": "prod", "sr": "prod-shared"},
    }
    for outcome in (Outcome.FULL, Outcome.DELTA):
        told = Told()
        records = await run(two_pools, told, **back)
        assert {(r.vm_uuid, r.outcome) for r in records.values()} == {(uuid, outcome)}
        assert [left.vm.name_label for left in told.replicas] == ["[XO Backup web] web01"]

    def points(xenapi: Any) -> list[str]:
        vms = xenapi.VM.get_all_records().values()
        return [
            vm["uuid"]
            for vm in vms
            if vm["is_a_snapshot"] and '"role":"point"' in vm["other_config"].get("xorepd:mark", "")
        ]

    newest = (await two_pools.ask("prod", points))[-1]
    snapshots = await two_pools.ask("dr", lambda x: x.VM.get_snapshots(x.VM.get_by_uuid(uuid)))
    taken = await two_pools.ask("dr", lambda x: x.VM.get_uuid(snapshots[-1]))
    assert await two_pools.hashes("prod", newest) == await two_pools.hashes("dr", taken)


async def test_replica_that_was_started_by_force_is_left_out_and_says_what_to_do(
    replicated: World,
) -> None:
    def start(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        xenapi.VM.set_blocked_operations(replica, {})
        xenapi.VM.start(replica, False, False)

    await replicated.ask("dr", start)
    told = Told()

    back = {"source": "dr", "vms": ("*",), "target": {"pool": "prod", "sr": "prod-shared"}}
    records = await run(replicated, told, **back)

    assert {record.outcome for record in records.values()} == {Outcome.NO_VMS}
    [left] = told.replicas
    assert "though it is running; `xorepctl forget --keep-replica`" in left.reason
    assert "1 left out: it is a replica" in (records["*"].error or "")


@pytest.mark.parametrize(("empty", "outcome"), [("warn", Outcome.NO_VMS), ("fail", Outcome.FAILED)])
async def test_run_that_finds_nothing_says_what_was_left_out(
    two_pools: World, empty: str, outcome: Outcome
) -> None:
    records = await run(two_pools, vms=("db*",), power_states=("running",), empty=empty)

    assert {name: record.outcome for name, record in records.items()} == {"db*": outcome}
    assert records["db*"].error == "pool prod: no VM matches db* (1 left out: it is halted)"


@pytest.mark.leaves("session")  # of a login that the daemon's end cut
async def test_pool_that_cannot_be_asked_fails_what_is_named_and_what_would_be_found(
    two_pools: World,
) -> None:
    job = two_pools.job(vms=("web01", "db*"))
    closed = two_pools.settings("prod", url="https://127.0.0.1:1")

    async with two_pools.daemon({"prod": closed}) as context:
        records = await run_job(job, new_run(), context)

    assert {record.vm_name: record.outcome for record in records} == {
        "web01": Outcome.FAILED,
        "db*": Outcome.FAILED,
    }


async def test_vm_that_is_gone_keeps_its_replica_and_is_missed_until_it_is_excluded(
    two_pools: World,
) -> None:
    found: dict[str, Any] = {"vms": ("*",), "exclude": ("web*",)}
    await run(two_pools, **found)
    gone = await two_pools.ask("prod", lambda x: x.VM.get_uuid(hands.vm_of(x, "db01")))

    await two_pools.ask("prod", lambda x: hands.destroy_with_disks(x, hands.vm_of(x, "db01")))
    points, bases = await two_pools.points(), await two_pools.bases()

    missed = await run(two_pools, **found)
    excluded = await run(two_pools, vms=("*",), exclude=("web*", gone))

    assert missed["db01"].outcome is Outcome.FAILED
    assert missed["db01"].vm_uuid == gone
    assert (missed["db01"].error or "").startswith(
        "pool prod: VM db01 is gone; its replica on pool dr stays as it is, "
        "and so does our snapshot of it. "
    )
    assert set(excluded) == {"*"}
    assert (await two_pools.points(), await two_pools.bases()) == (points, bases)
    assert gone in {base["stream"]["vm"] for base in bases}


def name_disk(device: str, name: str) -> hands.Deed:
    def rename(xenapi: Any) -> None:
        disk = hands.disks_of(xenapi, hands.vm_of(xenapi, "web01"))[device]
        xenapi.VDI.set_name_label(disk, name)

    return rename


async def test_disk_that_stays_behind_is_in_no_snapshot_and_is_named_with_the_reason(
    two_pools: World,
) -> None:
    await two_pools.ask("prod", name_disk("1", "scratch [NOBAK]"))

    record = await two_pools.replicate()

    assert [(disk.device, disk.mode, disk.reason) for disk in record.disks] == [
        ("0", "full", "first-run"),
        ("1", "excluded", "[NOBAK] in its name"),
    ]
    assert (record.outcome, record.disks[1].read_bytes) == (Outcome.FULL, 0)

    def devices(xenapi: Any) -> list[str]:
        [snapshot] = xenapi.VM.get_snapshots(hands.vm_of(xenapi, "web01"))
        return list(hands.disks_of(xenapi, snapshot))

    assert await two_pools.ask("prod", devices) == ["0"]
    replica = await two_pools.ask("dr", lambda x: list(hands.disks_of(x, hands.replica_of(x))))
    assert replica == ["0"]
    assert await two_pools.left_over() == []


async def test_disk_leaves_the_replica_and_comes_back_whole(replicated: World) -> None:
    without = await replicated.replicate(exclude_disks={"web*": ("1",)})
    again = await replicated.replicate()

    assert without.outcome is Outcome.DELTA
    assert {disk.device: disk.mode for disk in without.disks} == {"0": "delta", "1": "excluded"}
    assert {disk.device: disk.mode for disk in again.disks}["0"] == "delta"
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_host_that_cannot_leave_a_disk_out_of_a_snapshot_does_not_bring_it_along(
    two_pools: World,
) -> None:
    old = ("MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3")
    for _ in range(2):
        two_pools.lab.faults.add(Fault("rpc", "VM.snapshot", "prod", error=old))
        record = await two_pools.replicate(exclude_disks={"web01": ("1",)}, keep=1)

        assert {disk.device: disk.mode for disk in record.disks}["1"] == "excluded"

    assert record.outcome is Outcome.DELTA
    assert len(await two_pools.bases()) == 1
    disk = await two_pools.ask("prod", lambda x: hands.disks_of(x, hands.vm_of(x, "web01"))["1"])
    snapshots = await two_pools.ask("prod", lambda x: x.VDI.get_snapshots(disk))
    assert len(snapshots) == 1  # with the base, and gone with it
    assert await two_pools.left_over() == []


async def test_disk_that_keeps_its_vm_from_being_snapshotted_is_refused_though_it_stays_behind(
    two_pools: World,
) -> None:
    def reset_at_boot(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.hard_shutdown(vm)
        xenapi.VDI.set_on_boot(hands.disks_of(xenapi, vm)["1"], "reset")

    await two_pools.ask("prod", reset_at_boot)

    async with two_pools.daemon() as context:
        refused = await two_pools.run(context, exclude_disks={"*": ("1",)})

    assert refused.step == "preflight"
    assert "disk web01-data of VM web01 is reset at each boot" in (refused.error or "")
