"""Disks without a base: both sides are read, and what differs is sent."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab import hands
from tests.lab.world import World, serve_nbd
from xorepd.replication.transfer import disks as transfer
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd_lab.faults.faults import Fault

KiB, MiB = 1 << 10, 1 << 20
UNIT = 64 * KiB


@pytest.fixture(params=["export", "nbd"])
async def filled(replicated: World, request: pytest.FixtureRequest) -> World:
    """A restore point of a data disk that is full of data; both pools serve NBD, or none does."""
    if request.param == "nbd":
        for pool in ("prod", "dr"):
            await serve_nbd(replicated, pool)
    await replicated.lab.guest_write("web01", 1, sequential=(0, 30 * MiB), seed=1)
    await replicated.replicate(verify="off")
    return replicated


def disk_of(record: RunRecord, device: str = "1") -> DiskRecord:
    [disk] = [disk for disk in record.disks if disk.device == device]
    return disk


def units(touched: list[tuple[int, int]]) -> int:
    """Return the size of the units of 64 KiB that some writes touch."""
    places = {
        unit for at, size in touched for unit in range(at // UNIT, (at + size - 1) // UNIT + 1)
    }
    return len(places) * UNIT


async def test_a_base_deleted_by_hand_costs_what_differs(filled: World) -> None:
    touched = await filled.lab.guest_write("web01", 1, random=5, seed=2)
    touched += await filled.lab.guest_write("web01", 1, trim=(8 * MiB, 2 * MiB))
    await filled.ask("prod", hands.delete_snapshots)

    record = await filled.replicate()

    assert record.outcome is Outcome.DELTA
    disk = disk_of(record)
    assert (disk.mode, disk.reason) == ("resync", "base-gone-on-source")
    assert disk.sent_bytes == disk.changed_bytes == units(touched)
    assert (disk.compared_bytes or 0) >= 28 * MiB
    assert (disk_of(record, "0").mode, disk_of(record, "0").sent_bytes) == ("resync", 0)
    await filled.newest_equals_its_source()
    assert await filled.left_over() == []


async def move_disk(world: World, device: str, sr: str) -> None:
    """Move a disk of web01 to another SR: a copy takes its place, as with the VM switched off."""

    def move(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.hard_shutdown(vm)
        drive = hands.drive_of(xenapi, vm, device)
        old = xenapi.VBD.get_VDI(drive)
        new = xenapi.VDI.copy(old, xenapi.SR.get_by_name_label(sr)[0])
        xenapi.VBD.destroy(drive)
        hands.attach(xenapi, vm, new, device)
        for snapshot in xenapi.VDI.get_snapshots(old):
            assert xenapi.VDI.get_is_a_snapshot(snapshot)
        xenapi.VDI.destroy(old)
        xenapi.VM.start(vm, False, False)

    await world.ask("prod", move)


async def test_a_disk_moved_to_another_sr_costs_what_was_written_since(filled: World) -> None:
    await move_disk(filled, "1", "prod-local")
    touched = await filled.lab.guest_write("web01", 1, random=4, seed=3)

    record = await filled.replicate()

    disk = disk_of(record)
    assert (disk.mode, disk.reason) == ("resync", "disk-moved")
    assert disk.sent_bytes == units(touched) <= 0.01 * 30 * MiB
    assert record.outcome is Outcome.DELTA
    await filled.newest_equals_its_source()
    assert await filled.left_over() == []

    await filled.lab.guest_write("web01", 1, random=1, seed=4)
    following = disk_of(await filled.replicate())
    assert (following.mode, following.reason) == ("delta", "")


async def test_a_job_that_wants_no_resync_sends_the_disk_whole(replicated: World) -> None:
    await replicated.ask("prod", hands.delete_snapshots)

    record = await replicated.replicate(resync=False)

    assert record.outcome is Outcome.FULL
    assert {disk.reason for disk in record.disks} == {"base-gone-on-source"}
    assert len(await replicated.points()) == 2
    await replicated.newest_equals_its_source()


async def test_the_newest_point_deleted_by_hand_costs_what_differs_from_the_one_before(
    filled: World,
) -> None:
    touched = await filled.lab.guest_write("web01", 1, random=3, seed=5)
    await filled.replicate(verify="off")

    def delete_newest(xenapi: Any) -> None:
        [replica] = hands.replicas_of(xenapi)
        newest = max(
            xenapi.VM.get_snapshots(replica), key=lambda ref: str(xenapi.VM.get_snapshot_time(ref))
        )
        disks = hands.disks_of(xenapi, newest).values()
        xenapi.VM.destroy(newest)
        for vdi in disks:
            xenapi.VDI.destroy(vdi)

    await filled.ask("dr", delete_newest)

    record = await filled.replicate()

    disk = disk_of(record)
    assert (disk.mode, disk.reason) == ("resync", "base-gone-on-source")
    assert disk.sent_bytes == units(touched)
    await filled.newest_equals_its_source()


async def test_a_disk_that_grew_without_a_base_is_compared_up_to_its_old_end(
    filled: World,
) -> None:
    def grow(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.hard_shutdown(vm)
        xenapi.VDI.resize(hands.disks_of(xenapi, vm)["1"], str(40 * MiB))
        xenapi.VM.start(vm, False, False)

    await filled.ask("prod", grow)
    await filled.ask("prod", hands.delete_snapshots)
    touched = await filled.lab.guest_write("web01", 1, sequential=(36 * MiB, 1 * MiB), seed=6)

    disk = disk_of(await filled.replicate())

    assert disk.mode == "resync"
    assert disk.sent_bytes == units(touched)
    point = (await filled.points())[0]  # libvhdi reads no child that is larger than its parent
    theirs = await filled.exported_hashes("prod", point["snapshot"])
    assert await filled.exported_hashes("dr", point["self"]) == theirs


@pytest.mark.parametrize("pool", ["prod", "dr"])
async def test_a_comparison_that_is_cut_is_begun_again(
    replicated: World, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
    await replicated.lab.guest_write("web01", 1, sequential=(0, 8 * MiB), seed=1)
    await replicated.replicate(verify="off")
    await replicated.ask("prod", hands.delete_snapshots)
    fault = replicated.lab.faults.add(Fault("export", pool=pool, cut_at=3 * MiB))

    record = await replicated.replicate(resume="1d")

    assert fault.fired == 1
    assert sum(disk.reconnects for disk in record.disks) == 1
    assert sum(disk.sent_bytes for disk in record.disks) == 0
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []
