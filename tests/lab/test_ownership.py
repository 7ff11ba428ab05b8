"""People touch what we made, at every moment: nothing of theirs is lost, and no copy is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.killing import DEAD, killed_at
from tests.lab import carried, hands
from tests.lab.world import World
from xorepd.errors import ContentChanged
from xorepd.ids import PoolName, Ref
from xorepd.replication.format.doubts import Unresolved, find_unresolved
from xorepd.state.records import Outcome, RunRecord
from xorepd.xapi.vdis import destroy_disk

pytestmark = pytest.mark.lab

MiB = 1 << 20
WORK = b"work of a person" * 4096


async def run(world: World, **changes: Any) -> RunRecord:
    async with world.daemon() as context:
        return await world.run(context, **changes)


async def doubts(world: World, pool: str) -> list[Unresolved]:
    """Return what `xorepctl orphans` lists as doubtful on a pool."""
    async with world.daemon() as context:
        there = context.pools[PoolName(pool)]
        await there.refresh()
        return find_unresolved(pool, there.cache)


def everything(xenapi: Any) -> dict[str, str]:
    """Return all VMs and disks of a pool: UUID → name."""
    found = {vm["uuid"]: vm["name_label"] for vm in xenapi.VM.get_all_records().values()}
    return found | {v["uuid"]: v["name_label"] for v in xenapi.VDI.get_all_records().values()}


async def newest_disks(world: World) -> dict[str, str]:
    """Return the disks of the newest restore point: device → UUID."""
    point = (await world.points())[0]["self"]

    def look(xenapi: Any) -> dict[str, str]:
        disks = hands.disks_of(xenapi, xenapi.VM.get_by_uuid(point))
        return {device: xenapi.VDI.get_uuid(vdi) for device, vdi in disks.items()}

    found: dict[str, str] = await world.ask("dr", look)
    return found


async def work_on(world: World, name: str) -> dict[str, str]:
    """Unblock a VM on `dr`, start it, let its guest write, shut it down; return its disks."""

    def start(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, name)
        xenapi.VM.set_blocked_operations(vm, {})
        xenapi.VM.start(vm, False, False)

    def stop(xenapi: Any) -> dict[str, str]:
        vm = hands.vm_of(xenapi, name)
        xenapi.VM.hard_shutdown(vm)
        return {d: xenapi.VDI.get_uuid(v) for d, v in hands.disks_of(xenapi, vm).items()}

    await world.ask("dr", start)
    await world.lab.guest_write(name, 1, sequential=(8 * MiB, MiB), seed=77)
    found: dict[str, str] = await world.ask("dr", stop)
    return found


# -- a commit that was never finished, and a replica that was used ----------------------------


@pytest.mark.leaves(*DEAD)
@pytest.mark.parametrize("which", ["first", "later"])
async def test_work_on_a_replica_whose_commit_was_cut_is_refused_and_kept(
    two_pools: World, which: str
) -> None:
    if which == "later":
        await two_pools.replicate(verify="off")
        await two_pools.lab.guest_write("web01", 1, random=2, seed=1)
    assert await killed_at(two_pools, ("dr", "VM.snapshot", 0))
    used = await work_on(two_pools, "[XO Backup web] web01")
    before = await two_pools.ask("dr", everything)
    image = await two_pools.exported_hashes("dr", await uuid_of(two_pools, "[XO Backup web] web01"))

    for _ in range(2):
        record = await run(two_pools)

        assert record.outcome is Outcome.FAILED
        assert "replica [XO Backup web] web01 has changed since its last run" in str(record.error)
        assert "disk web01-data was written to" in str(record.error)
        assert (await two_pools.ask("dr", everything)).items() >= before.items()
        uuid = await uuid_of(two_pools, "[XO Backup web] web01")
        assert await two_pools.exported_hashes("dr", uuid) == image

    record = await run(two_pools, diverged="replace")

    assert record.error is None
    await two_pools.newest_equals_its_source()
    assert (await two_pools.ask("dr", everything)).keys() >= set(used.values())
    assert set(used.values()) <= {doubt.uuid for doubt in await doubts(two_pools, "dr")}


async def uuid_of(world: World, name: str) -> str:
    return str(await world.ask("dr", lambda x: x.VM.get_uuid(hands.vm_of(x, name))))


# -- restore points that were written to ------------------------------------------------------


async def test_a_restore_point_that_was_written_to_is_no_base_and_is_named(
    replicated: World,
) -> None:
    disks = await newest_disks(replicated)
    await carried.overwrite(replicated, "dr", disks["1"], 8 * MiB, WORK)
    await replicated.lab.guest_write("web01", 1, random=2, seed=5)

    record = await run(replicated)

    assert record.outcome is Outcome.DELTA, record.error
    modes = {disk.device: (disk.mode, disk.reason) for disk in record.disks}
    assert modes == {"0": ("delta", ""), "1": ("resync", "point-changed")}
    assert any("was written to since it was taken" in text for text in record.remarks)
    await replicated.newest_equals_its_source()
    assert [doubt.kind for doubt in await doubts(replicated, "dr")] == ["VM"]


async def test_a_restore_point_that_was_written_to_outlives_its_retention(
    replicated: World,
) -> None:
    disks = await newest_disks(replicated)
    await carried.overwrite(replicated, "dr", disks["1"], 8 * MiB, WORK)
    for seed in range(3):
        await replicated.lab.guest_write("web01", 1, random=2, seed=seed)
        assert (await run(replicated, keep=1)).error is None

    assert (await replicated.ask("dr", everything)).keys() >= set(disks.values())
    await replicated.newest_equals_its_source()


async def test_a_changed_point_whose_replica_is_gone_is_compared(replicated: World) -> None:
    disks = await newest_disks(replicated)
    await carried.overwrite(replicated, "dr", disks["1"], 8 * MiB, WORK)
    await replicated.ask("dr", lambda x: hands.destroy_with_disks(x, hands.replica_of(x)))

    record = await run(replicated)

    assert record.error is None
    assert {disk.device: disk.mode for disk in record.disks} == {"0": "delta", "1": "resync"}
    await replicated.newest_equals_its_source()


async def test_a_base_that_was_written_to_on_the_source_is_no_base(replicated: World) -> None:
    base = (await replicated.bases())[0]["self"]

    def disk(xenapi: Any) -> str:
        disks = hands.disks_of(xenapi, xenapi.VM.get_by_uuid(base))
        return str(xenapi.VDI.get_uuid(disks["1"]))

    changed = await replicated.ask("prod", disk)
    await carried.overwrite(replicated, "prod", changed, 8 * MiB, WORK)

    record = await run(replicated)

    assert record.error is None
    modes = {disk.device: (disk.mode, disk.reason) for disk in record.disks}
    assert modes == {"0": ("delta", ""), "1": ("resync", "base-changed")}
    await replicated.newest_equals_its_source()
    assert changed in await replicated.ask("prod", everything)


# -- what people make while we make it --------------------------------------------------------


def clone_newest(world: World) -> Callable[[Any], list[str]]:
    """Return a deed that clones every disk which carries the mark of a restore point."""

    def deed(xenapi: Any) -> list[str]:
        made = []
        for ref, vdi in xenapi.VDI.get_all_records().items():
            if vdi["is_a_snapshot"] and '"role":"point"' in vdi["other_config"].get(
                "xorepd:mark", ""
            ):
                made.append(str(xenapi.VDI.get_uuid(xenapi.VDI.clone(ref))))
        return made

    return deed


@pytest.mark.leaves(*DEAD)
@pytest.mark.parametrize("method", ["VDI.clone", "VDI.set_other_config", "VDI.set_name_label"])
async def test_clones_that_people_made_around_a_crash_stay(replicated: World, method: str) -> None:
    await replicated.lab.guest_write("web01", 1, random=2, seed=1)
    before = await replicated.ask("dr", clone_newest(replicated))
    await killed_at(replicated, ("dr", method, 0))
    after = await replicated.ask("dr", clone_newest(replicated))

    record = await run(replicated)

    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()
    assert (await replicated.ask("dr", everything)).keys() >= {*before, *after}
    assert {doubt.uuid for doubt in await doubts(replicated, "dr")} == {*before, *after}


@pytest.mark.leaves(*DEAD)
@pytest.mark.parametrize("made", ["cloned", "created"])
async def test_work_on_a_disk_that_was_never_signed_stays_and_is_listed(
    two_pools: World, made: str
) -> None:
    if made == "cloned":
        await two_pools.replicate(verify="off")
        await two_pools.lab.guest_write("web01", 1, random=2, seed=1)
    before = await two_pools.ask("dr", contents)
    await killed_at(two_pools, ("dr", "VDI.set_other_config", 0))
    unsigned = (await two_pools.ask("dr", contents)).keys() - before.keys()
    assert unsigned
    for vdi in unsigned:
        await carried.overwrite(two_pools, "dr", vdi, 8 * MiB, WORK)
    worked = await two_pools.ask("dr", contents)

    record = await run(two_pools)

    assert record.error is None
    await two_pools.newest_equals_its_source()
    now = await two_pools.ask("dr", contents)
    assert {vdi: now.get(vdi) for vdi in unsigned} == {vdi: worked[vdi] for vdi in unsigned}
    assert {doubt.uuid for doubt in await doubts(two_pools, "dr")} == unsigned


@pytest.mark.leaves(*DEAD)
@pytest.mark.parametrize("kind", ["plain", "offline", "memory"])
async def test_a_snapshot_that_was_never_signed_goes(replicated: World, kind: str) -> None:
    assert await killed_at(replicated, ("prod", "VDI.set_other_config", 0), snapshot=kind)
    unsigned = await replicated.ask("prod", disks_of_unsigned)
    assert unsigned

    record = await run(replicated, snapshot=kind)

    assert record.error is None
    assert (await replicated.ask("prod", contents)).keys().isdisjoint(unsigned)
    assert await doubts(replicated, "prod") == []


@pytest.mark.leaves(*DEAD)
@pytest.mark.parametrize("kind", ["plain", "offline"])
async def test_work_on_a_snapshot_that_was_never_signed_stays_and_is_listed(
    replicated: World, kind: str
) -> None:
    assert await killed_at(replicated, ("prod", "VDI.set_other_config", 0), snapshot=kind)
    unsigned = await replicated.ask("prod", disks_of_unsigned)
    await carried.overwrite(replicated, "prod", unsigned[0], 8 * MiB, WORK)
    worked = await replicated.ask("prod", contents)

    for _ in range(2):
        record = await run(replicated)

        assert record.outcome is Outcome.DELTA, record.error
        await replicated.newest_equals_its_source()
        now = await replicated.ask("prod", contents)
        assert now.keys() >= set(unsigned)
        assert now[unsigned[0]] == worked[unsigned[0]]
    [doubt] = await doubts(replicated, "prod")
    assert doubt.name.startswith("xorepd-unmarked-")
    assert "source snapshot that was written to" in doubt.why


def disks_of_unsigned(xenapi: Any) -> list[str]:
    """Return the disks of snapshots that no run came to sign."""
    found = []
    for ref, vm in xenapi.VM.get_all_records().items():
        if vm["name_label"].startswith("xorepd-unmarked-"):
            found += [xenapi.VDI.get_uuid(vdi) for vdi in hands.disks_of(xenapi, ref).values()]
    return found


def contents(xenapi: Any) -> dict[str, str]:
    """Return the content ids of all disks of a pool, by UUID."""
    disks = [vdi for vdi in xenapi.VDI.get_all_records().values() if vdi["managed"]]
    return {vdi["uuid"]: vdi["other_config"].get("content_id", "") for vdi in disks}


@pytest.mark.leaves(*DEAD)
async def test_a_snapshot_that_a_person_took_of_a_source_disk_meanwhile_stays(
    replicated: World,
) -> None:
    def snapshot_disks(xenapi: Any) -> list[str]:
        disks = hands.disks_of(xenapi, hands.vm_of(xenapi, "web01")).values()
        return [str(xenapi.VDI.get_uuid(xenapi.VDI.snapshot(vdi))) for vdi in disks]

    await killed_at(replicated, ("prod", "VM.snapshot", 0))
    theirs = await replicated.ask("prod", snapshot_disks)

    record = await run(replicated)

    assert record.outcome is Outcome.DELTA, record.error
    assert (await replicated.ask("prod", everything)).keys() >= set(theirs)
    assert {doubt.uuid for doubt in await doubts(replicated, "prod")} == set(theirs)


async def test_copies_of_our_marks_by_hand_prove_nothing(replicated: World) -> None:
    def copy(xenapi: Any) -> list[str]:
        made = []
        for vdi in list(xenapi.VDI.get_all_records().values()):
            if "xorepd:mark" in vdi["other_config"]:
                ref = hands.create_disk(xenapi, "dr-storage", "mine")
                xenapi.VDI.set_other_config(ref, vdi["other_config"])
                made.append(str(xenapi.VDI.get_uuid(ref)))
        return made

    theirs = await replicated.ask("dr", copy)
    assert theirs

    for seed in range(2):
        await replicated.lab.guest_write("web01", 1, random=2, seed=seed)
        assert (await run(replicated, keep=1)).outcome is Outcome.DELTA

    assert (await replicated.ask("dr", everything)).keys() >= set(theirs)


# -- a replica whose disks are others now -----------------------------------------------------


async def test_a_replica_whose_disk_was_exchanged_is_refused_and_named(replicated: World) -> None:
    def exchange(xenapi: Any) -> str:
        replica = hands.replica_of(xenapi)
        copy = xenapi.VDI.clone(hands.disks_of(xenapi, replica)["1"])
        hands.detach(xenapi, replica, "1")
        hands.attach(xenapi, replica, copy, "1")
        return str(xenapi.VDI.get_uuid(copy))

    theirs = await replicated.ask("dr", exchange)
    await carried.overwrite(replicated, "dr", theirs, 8 * MiB, WORK)

    record = await run(replicated)

    assert record.outcome is Outcome.FAILED
    assert "is at device 1, where a run puts another one" in str(record.error)
    assert theirs in await replicated.ask("dr", everything)


async def test_a_replica_that_was_only_reverted_goes_on(replicated: World) -> None:
    def revert(xenapi: Any) -> None:
        [point] = [
            ref
            for ref, vm in xenapi.VM.get_all_records().items()
            if vm["is_a_snapshot"] and '"role":"point"' in vm["other_config"].get("xorepd:mark", "")
        ]
        xenapi.VM.revert(point)

    await replicated.ask("dr", revert)

    record = await run(replicated)

    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()


async def test_a_replica_whose_marks_were_wiped_is_listed_and_its_points_stay_bases(
    replicated: World,
) -> None:
    def wipe(xenapi: Any) -> str:
        replica = hands.replica_of(xenapi)
        xenapi.VM.set_other_config(replica, {})
        return str(xenapi.VM.get_uuid(replica))

    wiped = await replicated.ask("dr", wipe)

    record = await run(replicated)

    assert record.outcome is Outcome.DELTA, record.error
    [doubt] = [doubt for doubt in await doubts(replicated, "dr") if doubt.uuid == wiped]
    assert "has lost its marks" in doubt.why
    await replicated.newest_equals_its_source()


# -- power, and what cannot be copied ---------------------------------------------------------


async def test_a_vm_that_was_reverted_to_our_base_is_not_started(replicated: World) -> None:
    def shut_down_and_revert(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.clean_shutdown(vm)
        [base] = [
            ref
            for ref in xenapi.VM.get_snapshots(vm)
            if "xorepd:mark" in xenapi.VM.get_other_config(ref)
        ]
        state = '{"run":"r","self":"' + xenapi.VM.get_uuid(vm) + '","disks":[],"started_at":""}'
        xenapi.VM.add_to_other_config(base, "xorepd:restart", state)
        xenapi.VM.revert(base)

    await replicated.ask("prod", shut_down_and_revert)

    record = await run(replicated)

    assert record.error is None
    state = await replicated.ask("prod", lambda x: x.VM.get_power_state(hands.vm_of(x, "web01")))
    assert state == "Halted"


async def test_a_disk_that_is_attached_twice_is_refused_by_name(two_pools: World) -> None:
    def attach_again(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.clean_shutdown(vm)
        hands.attach(xenapi, vm, hands.disks_of(xenapi, vm)["1"], "7", mode="RO")

    await two_pools.ask("prod", attach_again)

    record = await run(two_pools)

    assert record.outcome is Outcome.FAILED
    assert "disk web01-data is attached to VM web01 2 times" in str(record.error)
    assert await two_pools.left_over() == []


@pytest.mark.parametrize("deed", ["written", "attached"])
async def test_disk_that_a_person_took_after_the_last_look_is_not_destroyed(
    replicated: World, deed: str
) -> None:
    """News of a pool come late, and the turn of an SR may take minutes."""

    def take(xenapi: Any) -> None:
        ref = xenapi.VDI.get_by_uuid(disk.uuid)
        vm = hands.create_vm(xenapi, "rescue")
        hands.attach(xenapi, vm, ref, "0")
        if deed == "written":
            xenapi.VM.start(vm, False, False)
            xenapi.VM.hard_shutdown(vm)
            hands.detach(xenapi, vm, "0")

    def create(xenapi: Any) -> str:
        return hands.create_disk(xenapi, "dr-storage", "staging")

    ref = Ref(await replicated.ask("dr", create))
    async with replicated.daemon() as context:
        dr = context.pools[PoolName("dr")]
        await dr.refresh()
        disk = dr.cache.vdis[ref]
        await replicated.ask("dr", take)

        with pytest.raises(ContentChanged):
            await destroy_disk(dr, disk)

        assert disk.uuid in await replicated.ask("dr", everything)
        await dr.refresh()
        if deed == "written":
            await destroy_disk(dr, dr.cache.vdis[ref])
            assert disk.uuid not in await replicated.ask("dr", everything)
        else:
            with pytest.raises(ContentChanged):
                await destroy_disk(dr, dr.cache.vdis[ref], even_if_changed=True)
