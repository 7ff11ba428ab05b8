from __future__ import annotations

import pytest

from tests.unit.replication.builders import (
    OTHER_SR,
    OTHER_STREAM,
    STREAM,
    SourceWorld,
    TargetWorld,
    World,
    uuids,
)
from xorepd.ids import Ref
from xorepd.replication.inventory import disks_of, temporary_name, used_by_vms
from xorepd.replication.markers import CLONING, KEY, SNAPSHOTTING, Role
from xorepd.replication.plan import SourceBase

# -- disks and who has them ----------------------------------------------------------------------


async def test_disks_come_in_the_order_of_their_devices() -> None:
    world = World()
    vm = world.vm()
    disks = {device: world.disk() for device in ("10", "2", "0")}
    for device, disk in disks.items():
        world.attach(vm, disk, device)
    cache = await world.cache()

    found = [(vbd.userdevice, vdi.ref) for vbd, vdi in disks_of(cache, cache.vms[vm])]

    assert found == [("0", disks["0"]), ("2", disks["2"]), ("10", disks["10"])]


async def test_cd_drives_and_empty_drives_are_no_disks() -> None:
    world = World()
    vm = world.vm()
    world.attach(vm, world.disk(), "0", type="CD")
    world.attach(vm, world.disk(), "1", empty=True)
    world.attach(vm, Ref("OpaqueRef:gone"), "2")
    cache = await world.cache()

    assert list(disks_of(cache, cache.vms[vm])) == []


async def test_disk_is_not_used_when_only_the_control_domain_has_it() -> None:
    world = World()
    disk = world.disk()
    world.attach(world.vm(is_control_domain=True), disk)
    cache = await world.cache()

    assert not used_by_vms(cache, cache.vdis[disk])


@pytest.mark.parametrize("kind", ["is_a_template", "is_a_snapshot"])
async def test_disk_is_used_by_any_other_vm(kind: str) -> None:
    world = World()
    disk = world.disk()
    world.attach(world.vm(is_control_domain=True), disk)
    world.attach(world.vm(**{kind: True}), disk)
    cache = await world.cache()

    assert used_by_vms(cache, cache.vdis[disk])


async def test_owner_itself_can_be_left_out_of_the_question() -> None:
    world = World()
    disk, owner = world.disk(), world.vm()
    world.attach(owner, disk)
    cache = await world.cache()

    assert not used_by_vms(cache, cache.vdis[disk], but=owner)


# -- the source ----------------------------------------------------------------------------------


async def test_our_snapshots_are_found_with_their_disks_newest_first() -> None:
    world = SourceWorld()
    older = world.source_snapshot("run-1")
    newer = world.source_snapshot("run-2")

    side = await world.read()

    assert [group.vm.ref for group in side.snapshots] == [newer, older]
    assert side.snapshots[0].contents == {world.uuid(disk) for disk in world.disks(newer)}
    assert (side.unsigned, side.orphans) == ((), ())


async def test_snapshot_of_a_user_is_not_ours() -> None:
    world = SourceWorld()
    world.snapshot(world.web, "before the update")

    side = await world.read()

    assert (side.snapshots, side.unsigned, side.orphans) == ((), (), ())


async def test_snapshot_for_another_target_is_not_of_this_stream() -> None:
    world = SourceWorld()
    world.source_snapshot()

    side = await world.read(OTHER_STREAM)

    assert (side.snapshots, side.unsigned, side.orphans) == ((), (), ())


async def test_snapshot_of_another_vm_is_not_looked_at() -> None:
    world = SourceWorld()
    other = world.vm()
    made = world.snapshot(other)
    world.mark(made, Role.SOURCE)

    assert (await world.read()).snapshots == ()


async def test_clone_of_our_snapshot_is_not_ours() -> None:
    world = SourceWorld()
    made = world.source_snapshot()
    clone = world.clone(made, "clone by a user")
    for disk in world.disks(clone):
        world.detach(world.raw(disk)["VBDs"][0])

    side = await world.read()

    assert [group.vm.ref for group in side.snapshots] == [made]
    assert side.orphans == ()


async def test_unmarked_snapshot_is_known_by_its_name_and_its_inherited_key() -> None:
    world = SourceWorld()
    world.set_key(world.web, SNAPSHOTTING, "run-9")
    made = world.snapshot(world.web, temporary_name("run-9"))

    side = await world.read()

    (group,) = side.unsigned
    assert group.vm.ref == made
    assert uuids(d.vdi for d in group.disks) == {world.uuid(disk) for disk in world.disks(made)}
    assert side.snapshots == ()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("run-9", "snapshot by a user"),
        ("run-9", temporary_name("run-8")),
        (None, temporary_name("run-9")),
    ],
)
async def test_unmarked_snapshot_with_half_a_proof_is_not_ours(key: str | None, name: str) -> None:
    world = SourceWorld()
    if key is not None:
        world.set_key(world.web, SNAPSHOTTING, key)
    world.snapshot(world.web, name)

    assert (await world.read()).unsigned == ()


async def test_marked_disk_whose_snapshot_is_gone_is_an_orphan() -> None:
    world = SourceWorld()
    made = world.source_snapshot()
    disks = world.disks(made)
    world.destroy(made)

    side = await world.read()

    assert side.snapshots == ()
    assert uuids(each.vdi for each in side.orphans) == {world.uuid(disk) for disk in disks}


async def test_orphan_that_somebody_attached_to_a_vm_is_left_alone() -> None:
    world = SourceWorld()
    made = world.source_snapshot()
    disk = world.disks(made)[0]
    world.destroy(made)
    world.attach(world.vm("rescue"), disk)

    assert world.uuid(disk) not in uuids(each.vdi for each in (await world.read()).orphans)


async def test_bases_are_all_snapshots_of_present_disks_that_hold_data_or_are_tracked() -> None:
    world = SourceWorld()
    made = world.source_snapshot()
    orphaned = world.source_snapshot("run-2")
    of_orphaned = world.disks(orphaned)
    world.destroy(orphaned)
    for disk, is_tracked in ((world.disks(made)[1], False), (of_orphaned[1], True)):
        world.raw(disk)["type"] = "cbt_metadata"
        world.raw(disk)["cbt_enabled"] = is_tracked

    found = (await world.read()).bases()

    first, second = (world.uuid(disk) for disk in world.roots)
    assert set(found) == {
        SourceBase(world.uuid(world.disks(made)[0]), first),
        SourceBase(world.uuid(of_orphaned[0]), first),
        SourceBase(world.uuid(of_orphaned[1]), second),
    }


async def test_snapshot_of_a_disk_that_was_detached_is_no_base() -> None:
    world = SourceWorld()
    world.source_snapshot()
    world.detach(world.raw(world.roots[1])["VBDs"][0])

    found = (await world.read()).bases()

    assert {base.disk for base in found} == {world.uuid(world.roots[0])}


# -- the target ----------------------------------------------------------------------------------


async def test_replica_and_its_points_are_found_newest_first() -> None:
    world = TargetWorld()
    older = world.run("run-1")
    newer = world.run("run-2", ("c-2", "c-3"))

    side = await world.read()

    assert side.replica is not None
    assert side.replica.ref == world.replica
    assert [point.vm.ref for point in side.points] == [newer, older]
    assert side.points[0].contents == {"c-2", "c-3"}
    assert [vdi.ref for _, vdi in side.live] == world.disks(world.replica)
    assert (side.fresh, side.loose, side.unsigned_vms, side.cloning) == (None, (), (), ())


async def test_replica_of_another_stream_is_not_seen() -> None:
    world = TargetWorld()
    world.run()

    side = await world.read(OTHER_STREAM)

    assert (side.replica, side.points, side.loose) == (None, (), ())


async def test_points_are_shown_to_base_choice_with_their_contents() -> None:
    world = TargetWorld()
    point = world.run()
    world.raw(world.disks(point)[1])["missing"] = True

    (found,) = (await world.read()).plan_points()

    assert found.uuid == world.uuid(point)
    assert [(d.disk, d.content, d.is_usable) for d in found.disks] == [
        ("d-0", "c-0", True),
        ("d-1", "c-1", False),
    ]


async def test_snapshot_of_the_replica_by_a_user_is_never_ours() -> None:
    world = TargetWorld()
    point = world.run()
    manual = world.snapshot(world.replica, "before I look at it")

    side = await world.read()

    assert [each.vm.ref for each in side.points] == [point]
    assert (side.fresh, side.loose, side.unsigned_vms) == (None, (), ())
    assert manual not in [vm.ref for vm in side.unsigned_vms]


async def test_disks_of_a_users_snapshot_of_the_replica_stay_when_its_record_goes() -> None:
    world = TargetWorld()
    world.run()
    world.destroy(world.snapshot(world.replica, "manual"))

    assert (await world.read()).loose == ()


async def test_snapshot_of_a_restore_points_disk_by_a_user_is_never_ours() -> None:
    world = TargetWorld()
    point = world.run()
    world.snapshot_disk(world.disks(point)[0])

    assert (await world.read()).loose == ()


async def test_clone_of_the_replica_is_never_ours() -> None:
    world = TargetWorld()
    world.run()
    clone = world.clone(world.replica, "failover test")
    for disk in world.disks(clone):
        world.detach(world.raw(disk)["VBDs"][0])

    side = await world.read()

    assert side.replica is not None
    assert side.replica.ref == world.replica
    assert (len(side.points), side.loose, side.unsigned_vms) == (1, (), ())


async def test_clone_of_a_restore_point_is_never_ours() -> None:
    world = TargetWorld()
    point = world.run()
    clone = world.clone(point, "failover")
    for disk in world.disks(clone):
        world.detach(world.raw(disk)["VBDs"][0])

    side = await world.read()

    assert [each.vm.ref for each in side.points] == [point]
    assert (side.loose, side.unsigned_vms) == ((), ())


async def test_snapshot_of_a_clone_of_the_replica_is_never_ours() -> None:
    world = TargetWorld()
    point = world.run()
    world.snapshot(world.clone(world.replica), "of the clone")

    side = await world.read()

    assert [each.vm.ref for each in side.points] == [point]
    assert side.loose == ()


async def test_staging_disks_are_loose() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")

    assert [vdi.ref for vdi in (await world.read()).loose] == staged


async def test_disk_of_a_point_whose_record_is_gone_is_loose() -> None:
    world = TargetWorld()
    point = world.run()
    disks = world.disks(point)
    world.destroy(point)

    assert [vdi.ref for vdi in (await world.read()).loose] == disks


async def test_staging_disk_that_is_attached_to_the_control_domain_is_loose() -> None:
    world = TargetWorld()
    (disk,) = world.stage(contents=("c-0",))
    world.attach(world.vm(is_control_domain=True), disk, currently_attached=True)

    assert [vdi.ref for vdi in (await world.read()).loose] == [disk]


async def test_disk_of_ours_in_somebody_elses_vm_is_left_alone() -> None:
    world = TargetWorld()
    (disk,) = world.stage(contents=("c-0",))
    world.attach(world.vm("rescue"), disk)

    assert (await world.read()).loose == ()


async def test_disk_of_ours_in_somebody_elses_vm_is_left_alone_beside_the_control_domain() -> None:
    world = TargetWorld()
    (disk,) = world.stage(contents=("c-0",))
    world.attach(world.vm(is_control_domain=True), disk, currently_attached=True)
    world.attach(world.vm("rescue"), disk)

    assert (await world.read()).loose == ()


async def test_staging_disk_on_another_sr_is_left_alone() -> None:
    world = TargetWorld()
    world.stage()

    assert (await world.read(sr=OTHER_SR)).loose == ()


async def test_disk_that_was_created_and_not_signed_is_loose() -> None:
    world = TargetWorld()
    disk = world.disk()
    world.mark(disk, Role.DISK, unsigned=True)

    assert [vdi.ref for vdi in (await world.read()).loose] == [disk]


async def test_clone_of_a_disk_that_was_not_signed_is_left_alone() -> None:
    world = TargetWorld()
    disk = world.disk()
    world.mark(disk, Role.DISK, unsigned=True)
    clone = world.clone_disk(disk)

    found = [vdi.ref for vdi in (await world.read()).loose]

    assert clone not in found
    assert disk in found


async def test_snapshot_of_a_disk_that_was_not_signed_is_left_alone() -> None:
    world = TargetWorld()
    disk = world.disk()
    world.mark(disk, Role.DISK, unsigned=True)
    snapshot = world.snapshot_disk(disk)

    assert snapshot not in [vdi.ref for vdi in (await world.read()).loose]


async def test_unsigned_mark_of_another_role_proves_nothing_on_a_disk() -> None:
    world = TargetWorld()
    for role in (Role.POINT, Role.SOURCE, Role.REPLICA):
        world.mark(world.disk(), role, unsigned=True)

    assert (await world.read()).loose == ()


async def test_clone_that_was_made_to_become_a_staging_disk_is_loose() -> None:
    world = TargetWorld()
    point = world.run()
    base = world.disks(point)[0]
    world.set_key(base, CLONING, "run-2")
    clone = world.clone_disk(base)

    side = await world.read()

    assert [vdi.ref for vdi in side.loose] == [clone]
    assert [vdi.ref for vdi in side.cloning] == [base]


async def test_clone_that_was_signed_is_loose_as_a_staging_disk() -> None:
    world = TargetWorld()
    point = world.run()
    clone = world.clone_disk(world.disks(point)[0])
    world.mark(clone, Role.DISK, run="run-2")

    assert [vdi.ref for vdi in (await world.read()).loose] == [clone]


async def test_clone_of_a_copy_of_others_is_ours_by_the_stream_that_it_inherited() -> None:
    world = TargetWorld()
    copy = world.disk()
    world.attach(world.vm("carried"), copy)
    world.set_key(copy, CLONING, str(STREAM))
    clone = world.clone_disk(copy)
    world.set_key(world.clone_disk(copy), CLONING, str(OTHER_STREAM))
    world.snapshot_disk(copy)

    side = await world.read()

    assert [vdi.ref for vdi in side.loose] == [clone]
    assert copy in [vdi.ref for vdi in side.cloning]


async def test_snapshot_taken_by_a_user_while_we_clone_is_left_alone() -> None:
    world = TargetWorld()
    point = world.run()
    base = world.disks(point)[0]
    world.set_key(base, CLONING, "run-2")
    world.snapshot_disk(base)

    assert (await world.read()).loose == ()


async def test_clone_of_the_cloning_disk_in_a_vm_is_left_alone() -> None:
    world = TargetWorld()
    point = world.run()
    base = world.disks(point)[0]
    world.set_key(base, CLONING, "run-2")
    world.attach(world.vm("failover"), world.clone_disk(base))

    assert (await world.read()).loose == ()


async def test_replica_that_was_created_and_not_signed_is_found_while_it_is_bare() -> None:
    world = TargetWorld()
    bare = world.vm("[Importing…]", is_a_template=True)
    world.mark(bare, Role.REPLICA, unsigned=True)

    side = await world.read()

    assert [vm.ref for vm in side.unsigned_vms] == [bare]
    assert side.replica is None


@pytest.mark.parametrize("difference", ["disks", "no template", "snapshot"])
async def test_vm_with_an_unsigned_mark_that_may_be_a_copy_is_left_alone(difference: str) -> None:
    world = TargetWorld()
    vm = world.vm(is_a_template=difference != "no template", is_a_snapshot=difference == "snapshot")
    world.mark(vm, Role.REPLICA, unsigned=True)
    if difference == "disks":
        world.attach(vm, world.disk())

    assert (await world.read()).unsigned_vms == ()


async def test_point_taken_in_a_commit_is_fresh_until_it_is_signed() -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged)
    point = world.take_point()

    side = await world.read()

    assert side.fresh is not None
    assert side.fresh.vm.ref == point
    assert side.fresh.contents == {"c-0", "c-1"}
    assert side.points == ()


async def test_point_with_a_part_of_its_disks_signed_is_fresh_with_all_of_them() -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged)
    point = world.take_point()
    world.mark(world.disks(point)[0], Role.POINT, snapshot="c-0", disk="d-0")

    side = await world.read()

    assert side.fresh is not None
    assert side.fresh.contents == {"c-0", "c-1"}
    assert side.loose == ()


async def test_snapshot_by_a_user_before_the_commit_is_not_its_point() -> None:
    world = TargetWorld()
    world.run()
    world.snapshot(world.replica, "manual")
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")

    assert (await world.read()).fresh is None


async def test_snapshot_by_a_user_in_the_middle_of_a_swap_is_not_its_point() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.swap(staged[:1])
    world.snapshot(world.replica, "manual, of half a commit")

    side = await world.read()

    assert side.fresh is None


async def test_snapshot_by_a_user_of_the_old_disks_in_a_commit_is_not_its_point() -> None:
    world = TargetWorld()
    world.run()
    world.begin_commit(world.stage("run-2"), "run-2")
    world.snapshot(world.replica, "manual, before the swap")

    assert (await world.read()).fresh is None


async def test_disk_that_a_user_added_to_the_replica_is_not_of_the_point() -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged)
    world.attach(world.replica, world.disk(), "7")
    world.take_point()

    side = await world.read()

    assert side.fresh is not None
    assert len(side.fresh.disks) == 2
    assert len(side.live) == 3


async def test_garbage_in_the_place_of_marks_hurts_nothing() -> None:
    world = TargetWorld()
    world.run()
    for text in ("{", "[]", '{"v":1,"role":"point","time":5}'):
        world.set_key(world.vm(), KEY, text)
        world.set_key(world.disk(), KEY, text)

    side = await world.read()

    assert len(side.points) == 1
    assert side.loose == ()
