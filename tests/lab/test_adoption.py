"""Copies that others made spare the first full, and stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.lab import carried, hands
from tests.lab.world import World, serve_nbd
from xorepd.data.http import chunked
from xorepd.replication.transfer import disks as transfer
from xorepd.state.records import Outcome
from xorepd.units import MiB
from xorepd_lab.faults.faults import Fault

pytestmark = pytest.mark.lab


async def bring(world: World, era: str) -> str:
    """Let Xen Orchestra of an era have replicated web01; return its replica's reference."""
    taken = await carried.snapshot(world)
    vm = await carried.carry(world, taken)
    contents = await carried.label_source(world, taken, era=era)
    await carried.label_copy(world, vm, taken, contents, era=era)
    return vm


def state_of(vm: str) -> Any:
    """Return a question about everything of a VM and its snapshots that must not change."""

    def question(xenapi: Any) -> list[Any]:
        found = []
        for ref in (vm, *sorted(xenapi.VM.get_snapshots(vm))):
            record = xenapi.VM.get_record(ref)
            found.append({key: record[key] for key in ("uuid", "name_label", "other_config")})
            for vbd in sorted(record["VBDs"]):
                vdi = xenapi.VDI.get_record(xenapi.VBD.get_VDI(vbd))
                found.append({key: vdi[key] for key in ("uuid", "name_label", "other_config")})
        return found

    return question


@pytest.mark.parametrize("era", ["6.2", "6.3", "6.5"])
async def test_a_replica_that_xen_orchestra_made_spares_the_full(
    two_pools: World, era: str
) -> None:
    vm = await bring(two_pools, era)
    before = await two_pools.ask("dr", state_of(vm))
    await two_pools.lab.guest_write("web01", 1, random=2, seed=1)

    record = await two_pools.replicate()

    assert record.outcome is Outcome.DELTA
    assert sum(disk.read_bytes for disk in record.disks) <= 8 * MiB
    await two_pools.newest_equals_its_source()
    assert await two_pools.ask("dr", state_of(vm)) == before
    await two_pools.lab.guest_write("web01", 1, random=2, seed=2)
    assert (await two_pools.replicate()).outcome is Outcome.DELTA
    await two_pools.newest_equals_its_source()
    assert await two_pools.ask("dr", state_of(vm)) == before


async def test_a_copy_that_holds_something_else_costs_the_full_and_is_named(
    two_pools: World,
) -> None:
    for pool in ("prod", "dr"):
        await serve_nbd(two_pools, pool)
    taken = await carried.snapshot(two_pools, "older")
    vm = await carried.carry(two_pools, taken)
    await two_pools.lab.guest_write("web01", 1, sequential=(0, 4 * MiB), seed=9)
    newer = await carried.snapshot(two_pools)
    contents = await carried.label_source(two_pools, newer, era="6.3")
    await carried.label_copy(two_pools, vm, newer, contents, era="6.3")

    with capture_logs() as logs:
        record = await two_pools.replicate(verify="sample")

    assert record.outcome is Outcome.FULL
    assert {disk.device: disk.mode for disk in record.disks} == {"0": "delta", "1": "full"}
    [said] = [entry for entry in logs if entry["event"] == "base.not_adopted"]
    assert "holds other content" in said["reason"]
    await two_pools.newest_equals_its_source()


@pytest.mark.parametrize("era", ["6.2", "6.3", "6.5"])
async def test_a_replica_of_xen_orchestra_whose_snapshot_is_gone_costs_what_differs(
    two_pools: World, era: str
) -> None:
    vm = await bring(two_pools, era)
    before = await two_pools.ask("dr", state_of(vm))
    touched = await two_pools.lab.guest_write("web01", 1, sequential=(MiB, 2 * MiB), seed=1)
    await two_pools.ask("prod", hands.delete_snapshots)

    record = await two_pools.replicate()

    assert record.outcome is Outcome.DELTA
    assert {(disk.mode, disk.reason) for disk in record.disks} == {("resync", "copy-of-others")}
    assert sum(disk.sent_bytes for disk in record.disks) == sum(size for _, size in touched)
    await two_pools.newest_equals_its_source()
    assert await two_pools.ask("dr", state_of(vm)) == before
    await two_pools.lab.guest_write("web01", 1, random=2, seed=2)
    assert {disk.mode for disk in (await two_pools.replicate()).disks} == {"delta"}
    await two_pools.newest_equals_its_source()


async def test_a_job_that_wants_no_resync_takes_no_copy_without_its_snapshot(
    two_pools: World,
) -> None:
    await bring(two_pools, "6.5")
    await two_pools.ask("prod", hands.delete_snapshots)

    record = await two_pools.replicate(resync=False)

    assert {(disk.mode, disk.reason) for disk in record.disks} == {("full", "first-run")}


@pytest.mark.parametrize("base", ["stands", "is gone"])
async def test_a_first_run_onto_a_copy_of_others_goes_on_where_it_was_cut(
    two_pools: World, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 4 * MiB)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
    vm = await bring(two_pools, "6.5")
    before = await two_pools.ask("dr", state_of(vm))
    await two_pools.lab.guest_write("web01", 1, sequential=(0, 30 * MiB), seed=1)
    if base == "is gone":
        await two_pools.ask("prod", hands.delete_snapshots)
    cut = Fault("import", "raw", object="[Importing] web01-data", skip=4, times=None, cut_at=MiB)
    two_pools.lab.faults.add(cut)
    async with two_pools.daemon() as context:
        first = await two_pools.run(context, resume="1d", verify="sample")
    two_pools.lab.faults.clear()

    second = await two_pools.replicate(resume="1d", verify="sample")

    assert (first.outcome, first.resumable) == (Outcome.FAILED, True)
    [disk] = [disk for disk in second.disks if disk.device == "1"]
    assert disk.mode == ("delta" if base == "stands" else "resync")
    assert (disk.resumed_from, disk.sent_bytes) == (16 * MiB, 14 * MiB)
    await two_pools.newest_equals_its_source()
    assert await two_pools.ask("dr", state_of(vm)) == before


@pytest.mark.parametrize("era", ["6.2", "6.3", "6.5"])
@pytest.mark.parametrize("verify", ["sample", "full"])
async def test_a_clone_that_was_worked_on_is_never_taken_for_the_copy(
    two_pools: World, era: str, verify: str
) -> None:
    """Snapshots of the clone say that they are copies of the same snapshot, as the copy does."""
    vm = await bring(two_pools, era)

    def clone(xenapi: Any) -> tuple[str, str]:
        origin = next(iter(sorted(xenapi.VM.get_snapshots(vm))), vm)
        made = xenapi.VM.clone(origin, "a drill")
        xenapi.VM.set_is_a_template(made, False)
        return made, xenapi.VDI.get_uuid(hands.disks_of(xenapi, made)["1"])

    made, disk = await two_pools.ask("dr", clone)
    await carried.overwrite(two_pools, "dr", disk, 8 * MiB, b"work of a person" * 4096)
    await two_pools.ask("dr", lambda xenapi: xenapi.VM.snapshot(made, "before the next try"))

    for seed in range(2):
        record = await two_pools.replicate(verify=verify)
        assert record.outcome is Outcome.DELTA
        await two_pools.newest_equals_its_source()
        await two_pools.lab.guest_write("web01", 1, random=2, seed=seed)


async def test_what_tracking_kept_of_a_base_of_others_is_a_base(two_pools: World) -> None:
    """Xen Orchestra purged the data of its snapshot; changed-block tracking still tells."""

    def track(xenapi: Any) -> None:
        for vdi in hands.disks_of(xenapi, hands.vm_of(xenapi, "web01")).values():
            xenapi.VDI.enable_cbt(vdi)

    def purge(xenapi: Any) -> None:
        [snapshot] = xenapi.VM.get_snapshots(hands.vm_of(xenapi, "web01"))
        disks = hands.disks_of(xenapi, snapshot).values()
        xenapi.VM.destroy(snapshot)
        for vdi in disks:
            xenapi.VDI.data_destroy(vdi)

    await serve_nbd(two_pools, "prod")
    await two_pools.ask("prod", track)
    await bring(two_pools, "6.5")
    await two_pools.ask("prod", purge)
    touched = await two_pools.lab.guest_write("web01", 1, sequential=(MiB, 2 * MiB), seed=1)

    record = await two_pools.replicate(verify="sample")

    assert {disk.mode for disk in record.disks} == {"delta"}
    assert sum(disk.sent_bytes for disk in record.disks) == sum(size for _, size in touched)
    assert all(disk.compared_bytes is None for disk in record.disks)
    await two_pools.newest_equals_its_source()


async def test_a_copy_whose_transfer_never_ended_is_no_base(two_pools: World) -> None:
    vm = await bring(two_pools, "6.2")

    def interrupt(xenapi: Any) -> None:
        xenapi.VM.remove_from_other_config(vm, "xo:backup:datetime")
        xenapi.VM.add_to_other_config(vm, "xo:backup:datetime", "19700101T000000Z")

    await two_pools.ask("dr", interrupt)

    assert (await two_pools.replicate()).outcome is Outcome.FULL


async def test_nothing_of_ours_hangs_on_keys_that_xen_orchestra_takes_away(
    replicated: World,
) -> None:
    for pool in ("prod", "dr"):
        await replicated.ask(pool, hands.strip_keys_of_xen_orchestra)
    await replicated.lab.guest_write("web01", 1, random=2, seed=3)

    assert (await replicated.replicate()).outcome is Outcome.DELTA
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []
