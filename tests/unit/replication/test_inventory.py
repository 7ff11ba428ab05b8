from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.replication.builders import (
    OTHER_SR,
    OTHER_STREAM,
    SR,
    STREAM,
    SourceWorld,
    TargetWorld,
    World,
    uuids,
)
from xorepd.ids import Ref
from xorepd.replication.format.evidence import SourceBase
from xorepd.replication.format.inventory import disks_of
from xorepd.replication.format.marks import KEY, SNAPSHOTTING, Role
from xorepd.replication.format.ownership import Content, temporary_name, used_by_vms
from xorepd.xapi.records import CONTENT_ID

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
    other: dict[str, Any] = {kind: True}
    world.attach(world.vm(**other), disk)
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


async def test_snapshot_that_was_never_signed_is_known_by_the_name_of_the_call() -> None:
    world = SourceWorld()
    made = world.unsigned_snapshot("run-9")

    side = await world.read()

    (group,) = side.unsigned
    assert (group.vm.ref, group.mark.run) == (made, "run-9")
    assert uuids(d.vdi for d in group.disks) == {world.uuid(disk) for disk in world.disks(made)}
    assert side.snapshots == ()


async def test_disk_that_was_signed_before_its_snapshot_says_what_it_held_then() -> None:
    world = SourceWorld()
    disk = world.disks(world.unsigned_snapshot("run-9"))[0]
    signed = world.mark(disk, Role.SOURCE, stream=STREAM.of_source, run="run-9")
    world.write(disk)

    (group,) = (await world.read()).unsigned

    [content] = [marked.mark.content for marked in group.disks if marked.vdi.ref == disk]
    assert content == signed.content != world.content_id(disk)


@pytest.mark.parametrize(
    ("note", "held", "says"),
    [
        ("run-9 content-1", "content-1", "content-1"),
        ("run-9 content-1", "", "content-1"),
        ("run-9 content-1", "content-5", "content-1"),
        ("run-9 ", "", "xorepd-{uuid}"),
        ("run-9 ", "content-5", "xorepd-{uuid}"),
        ("run-9", "content-5", ""),
        ("run-8 content-1", "content-5", ""),
        ("", "content-5", ""),
    ],
)
async def test_disk_of_an_unsigned_snapshot_says_what_it_held_when_it_was_taken(
    note: str, held: str, says: str
) -> None:
    world = SourceWorld()
    if note:
        world.set_key(world.roots[0], SNAPSHOTTING, note)
    disk = world.disks(world.unsigned_snapshot("run-9"))[0]
    world.set_key(disk, CONTENT_ID, held)

    (group,) = (await world.read()).unsigned

    assert group.disks[0].mark.content == says.format(uuid=world.uuid(disk))


async def test_snapshot_of_a_user_that_inherits_our_keys_is_not_ours() -> None:
    world = SourceWorld()
    world.set_key(world.web, SNAPSHOTTING, "run-9")
    for disk in world.roots:
        world.set_key(disk, SNAPSHOTTING, "run-9")
    made = world.snapshot(world.web, "snapshot by a user")
    assert SNAPSHOTTING in world.raw(made)["other_config"]

    side = await world.read()

    assert (side.snapshots, side.unsigned, side.orphans) == ((), (), ())


async def test_snapshot_of_a_disk_that_a_user_took_while_we_took_ours_is_not_ours() -> None:
    world = SourceWorld()
    world.set_key(world.roots[0], SNAPSHOTTING, "run-9")
    world.snapshot_disk(world.roots[0])

    side = await world.read()

    assert (side.snapshots, side.unsigned, side.orphans) == ((), (), ())


async def test_snapshot_of_another_vm_under_the_name_of_a_call_is_not_looked_at() -> None:
    world = SourceWorld()
    world.snapshot(world.vm("other"), temporary_name("run-9"))

    assert (await world.read()).unsigned == ()


async def test_snapshot_that_was_imported_with_the_uuid_of_ours_is_not_ours() -> None:
    world = SourceWorld()
    made = world.source_snapshot()
    for each in (made, *world.disks(made)):
        world.set_key(each, KEY, world.mark_on(each).on(world.uuid(each), "OpaqueRef:it").encode())

    side = await world.read()

    assert (side.snapshots, side.unsigned, side.orphans) == ((), (), ())


async def test_snapshots_are_put_in_order_by_their_number_whatever_the_clock_said() -> None:
    world = SourceWorld()
    older = world.source_snapshot("run-1")
    newer = world.source_snapshot("run-2")
    mark = replace(world.mark_on(older), moment="2099-01-01T00:00:00+00:00")
    world.set_key(older, KEY, mark.encode())

    assert [group.vm.ref for group in (await world.read()).snapshots] == [newer, older]


async def test_snapshots_of_the_earlier_form_are_put_in_order_by_their_time() -> None:
    world = SourceWorld()
    older = world.earlier_snapshot("run-1", confirmed=True)
    newer = world.earlier_snapshot("run-2", confirmed=True)

    side = await world.read()

    assert [group.vm.ref for group in side.snapshots] == [newer, older]
    assert {base.content for base in side.bases()} == {Content.UNKNOWN}


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


async def test_base_that_something_wrote_to_is_told_apart() -> None:
    world = SourceWorld()
    changed, same = world.disks(world.source_snapshot())
    world.write(changed)

    found = {base.uuid: base.content for base in (await world.read()).bases()}

    assert found == {world.uuid(changed): Content.CHANGED, world.uuid(same): Content.PROVEN}


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
    assert (side.fresh, side.unattached, side.written, side.shells) == (None, (), (), ())


async def test_replica_of_another_stream_is_not_seen() -> None:
    world = TargetWorld()
    world.run()

    side = await world.read(OTHER_STREAM)

    assert (side.replica, side.points, side.unattached) == (None, (), ())


async def test_points_are_shown_to_base_choice_with_their_contents() -> None:
    world = TargetWorld()
    point = world.run()
    world.raw(world.disks(point)[1])["missing"] = True

    (found,) = (await world.read()).plan_points()

    assert found.uuid == world.uuid(point)
    assert [(d.disk, d.snapshot, d.is_usable) for d in found.disks] == [
        ("d-0", "c-0", True),
        ("d-1", "c-1", False),
    ]
    assert {disk.content for disk in found.disks} == {Content.PROVEN}


async def test_point_whose_disk_something_wrote_to_is_shown_to_base_choice_as_changed() -> None:
    world = TargetWorld()
    point = world.run()
    world.write(world.disks(point)[1])

    (found,) = (await world.read()).plan_points()

    assert [disk.content for disk in found.disks] == [Content.PROVEN, Content.CHANGED]
    assert {disk.is_usable for disk in found.disks} == {True}


async def test_point_whose_disk_is_open_for_writing_is_shown_to_base_choice_as_changed() -> None:
    world = TargetWorld()
    point = world.run()
    world.attach(world.vm("rescue"), world.disks(point)[0], currently_attached=True)

    (found,) = (await world.read()).plan_points()

    assert [disk.content for disk in found.disks] == [Content.CHANGED, Content.PROVEN]


async def test_point_of_the_earlier_form_is_proven_by_the_live_disk_that_it_was_taken_of() -> None:
    world = TargetWorld()
    world.run("run-1")
    newest = world.run("run-2")
    world.write(world.disks(newest)[1])
    world.all_earlier()

    newer, older = (await world.read()).plan_points()

    assert [disk.content for disk in newer.disks] == [Content.PROVEN, Content.CHANGED]
    assert [disk.content for disk in older.disks] == [Content.UNKNOWN] * 2


async def test_disks_that_a_point_names_and_that_have_lost_their_marks_are_told_apart() -> None:
    world = TargetWorld()
    point = world.run()
    wiped, gone = world.disks(point)
    name = world.uuid(gone)
    world.detach(world.raw(wiped)["VBDs"][0])
    world.raw(wiped)["other_config"] = {}
    world.destroy(gone)

    side = await world.read()

    (found,) = side.plan_points()
    assert [(d.uuid, d.device, d.is_lost, d.is_usable) for d in found.disks] == [
        (world.uuid(wiped), "0", True, True),
        (name, "1", True, False),
    ]
    assert {disk.content for disk in found.disks} == {Content.UNKNOWN}
    assert set(side.unmarked) == {world.uuid(wiped)}


@pytest.mark.parametrize("fate", ["free", "elsewhere", "used"])
async def test_disk_that_lost_its_mark_is_told_while_it_is_on_the_sr_and_no_vm_has_it(
    fate: str,
) -> None:
    world = TargetWorld()
    wiped = world.disks(world.run())[0]
    world.detach(world.raw(wiped)["VBDs"][0])
    world.raw(wiped)["other_config"] = {}
    world.raw(wiped)["SR"] = OTHER_SR if fate == "elsewhere" else SR
    if fate == "used":
        world.attach(world.vm("mine"), wiped)
    world.disk()  # of others, which no restore point names

    side = await world.read()

    assert set(side.unmarked) == ({world.uuid(wiped)} if fate == "free" else set())
    (point,) = side.plan_points()
    [lost] = [disk for disk in point.disks if disk.is_lost]
    assert (lost.uuid, lost.is_usable) == (world.uuid(wiped), fate == "free")


async def test_points_are_put_in_order_by_their_number_whatever_the_clock_said() -> None:
    world = TargetWorld()
    older, newer = world.run("run-1"), world.run("run-2")
    mark = replace(world.mark_on(older), moment="2099-01-01T00:00:00+00:00")
    world.set_key(older, KEY, mark.encode())

    assert [point.vm.ref for point in (await world.read()).points] == [newer, older]


async def test_replica_that_was_imported_with_the_uuid_of_ours_is_not_ours() -> None:
    world = TargetWorld()
    world.run()
    mark = world.mark_on(world.replica)
    world.set_key(world.replica, KEY, mark.on(mark.self, "OpaqueRef:exported").encode())

    side = await world.read()

    assert (side.replica, side.mark, side.shells) == (None, None, ())


async def test_point_that_was_imported_with_the_uuid_of_ours_is_not_ours() -> None:
    world = TargetWorld()
    point = world.run()
    for each in (point, *world.disks(point)):
        mark = world.mark_on(each)
        world.set_key(each, KEY, mark.on(mark.self, "OpaqueRef:exported").encode())
    world.destroy(point)

    side = await world.read()

    assert (side.points, side.unattached, side.written) == ((), (), ())


async def test_snapshot_of_the_replica_by_a_user_is_never_ours() -> None:
    world = TargetWorld()
    point = world.run()
    manual = world.snapshot(world.replica, "before I look at it")

    side = await world.read()

    assert [each.vm.ref for each in side.points] == [point]
    assert (side.fresh, side.unattached, side.shells) == (None, (), ())
    assert manual not in [vm.ref for vm in side.shells]


async def test_disks_of_a_users_snapshot_of_the_replica_stay_when_its_record_goes() -> None:
    world = TargetWorld()
    world.run()
    world.destroy(world.snapshot(world.replica, "manual"))

    assert (await world.read()).unattached == ()


async def test_snapshot_of_a_restore_points_disk_by_a_user_is_never_ours() -> None:
    world = TargetWorld()
    point = world.run()
    world.snapshot_disk(world.disks(point)[0])

    assert (await world.read()).unattached == ()


async def test_clone_of_the_replica_is_never_ours() -> None:
    world = TargetWorld()
    world.run()
    clone = world.clone(world.replica, "failover test")
    for disk in world.disks(clone):
        world.detach(world.raw(disk)["VBDs"][0])

    side = await world.read()

    assert side.replica is not None
    assert side.replica.ref == world.replica
    assert (len(side.points), side.unattached, side.shells) == (1, (), ())


async def test_clone_of_a_restore_point_is_never_ours() -> None:
    world = TargetWorld()
    point = world.run()
    clone = world.clone(point, "failover")
    for disk in world.disks(clone):
        world.detach(world.raw(disk)["VBDs"][0])

    side = await world.read()

    assert [each.vm.ref for each in side.points] == [point]
    assert (side.unattached, side.shells) == ((), ())


async def test_snapshot_of_a_clone_of_the_replica_is_never_ours() -> None:
    world = TargetWorld()
    point = world.run()
    world.snapshot(world.clone(world.replica), "of the clone")

    side = await world.read()

    assert [each.vm.ref for each in side.points] == [point]
    assert side.unattached == ()


async def test_staging_disks_are_loose() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")

    assert [vdi.ref for vdi in (await world.read()).unattached] == staged


async def test_disk_of_a_point_whose_record_is_gone_is_loose() -> None:
    world = TargetWorld()
    point = world.run()
    disks = world.disks(point)
    world.destroy(point)

    assert [vdi.ref for vdi in (await world.read()).unattached] == disks


async def test_staging_disk_that_a_request_of_ours_is_writing_is_loose_and_not_for_staging() -> (
    None
):
    world = TargetWorld()
    (disk,) = world.stage(contents=("c-0",))
    world.attach(world.vm(is_control_domain=True), disk, currently_attached=True)
    world.set_key(disk, CONTENT_ID, world.mark_on(disk).content)  # as the request keeps it

    side = await world.read()

    assert [vdi.ref for vdi in side.unattached] == [disk]
    assert (side.written, side.staging) == ((), ())


async def test_staging_disk_at_rest_is_for_staging() -> None:
    world = TargetWorld()
    (disk,) = world.stage(contents=("c-0",))
    world.attach(world.vm(is_control_domain=True), disk, mode="RO")

    side = await world.read()

    assert [marked.vdi.ref for marked in side.staging] == [disk]


async def test_staging_disk_that_is_attached_for_writing_is_written_to_and_not_loose() -> None:
    world = TargetWorld()
    (disk,) = world.stage(contents=("c-0",))
    world.attach(world.vm(is_control_domain=True), disk, currently_attached=True)

    side = await world.read()

    assert [vdi.ref for vdi in side.written] == [disk]
    assert (side.unattached, side.staging) == ((), ())


@pytest.mark.parametrize("whose", ["staging", "point", "replaced"])
async def test_disk_of_ours_that_something_wrote_to_is_not_loose(whose: str) -> None:
    world = TargetWorld()
    point = world.run()
    match whose:
        case "staging":
            (disk,) = world.stage("run-2", ("c-2",))
        case "point":
            disk = world.disks(point)[0]
            world.destroy(point)
        case _:
            disk = world.disks(world.replica)[0]
            world.detach(world.raw(disk)["VBDs"][0])
    world.write(disk)

    side = await world.read()

    assert disk not in [vdi.ref for vdi in side.unattached]
    assert [vdi.ref for vdi in side.written] == [disk]
    assert side.staging == ()


async def test_disk_of_ours_that_was_written_to_on_another_sr_is_not_of_this_one() -> None:
    world = TargetWorld()
    for disk in world.stage():
        world.write(disk)

    assert (await world.read(sr=OTHER_SR)).written == ()
    assert (await world.read(OTHER_STREAM)).written == ()


async def test_disk_of_ours_in_somebody_elses_vm_is_left_alone() -> None:
    world = TargetWorld()
    (disk,) = world.stage(contents=("c-0",))
    world.attach(world.vm("rescue"), disk)

    assert (await world.read()).unattached == ()


async def test_disk_of_ours_in_somebody_elses_vm_is_left_alone_beside_the_control_domain() -> None:
    world = TargetWorld()
    (disk,) = world.stage(contents=("c-0",))
    world.attach(world.vm(is_control_domain=True), disk, currently_attached=True)
    world.attach(world.vm("rescue"), disk)

    assert (await world.read()).unattached == ()


async def test_staging_disk_on_another_sr_is_left_alone() -> None:
    world = TargetWorld()
    world.stage()

    assert (await world.read(sr=OTHER_SR)).unattached == ()


async def test_disk_of_a_restore_point_on_another_sr_is_unattached_when_it_lost_its_vm() -> None:
    """People may give the replica a disk of another SR in the moment of a commit."""
    world = TargetWorld()
    disk = world.disk()
    world.mark(disk, Role.POINT)

    assert [vdi.ref for vdi in (await world.read(sr=OTHER_SR)).unattached] == [disk]


@pytest.mark.parametrize("role", list(Role))
async def test_disk_with_a_mark_that_is_not_signed_is_in_no_inventory(role: Role) -> None:
    world = TargetWorld()
    disk = world.disk()
    world.mark(disk, role, unsigned=True)
    world.clone_disk(disk)
    world.snapshot_disk(disk)

    side = await world.read()

    assert (side.unattached, side.written, side.staging, side.unmarked) == ((), (), (), {})


@pytest.mark.parametrize("role", [Role.SOURCE, Role.REPLICA])
async def test_disk_of_ours_of_another_role_is_not_loose(role: Role) -> None:
    world = TargetWorld()
    world.mark(world.disk(), role)

    side = await world.read()

    assert (side.unattached, side.staging) == ((), ())


async def test_copies_of_our_disks_are_in_no_inventory() -> None:
    world = TargetWorld()
    point = world.run()
    (staged,) = world.stage("run-2", ("c-2",))
    for disk in (*world.disks(point), *world.disks(world.replica), staged):
        world.set_key(disk, "xorepd:cloning", "run-2")  # as earlier versions wrote before a clone
        world.clone_disk(disk)
        world.write(world.clone_disk(disk))
        world.snapshot_disk(disk)

    side = await world.read()

    assert [vdi.ref for vdi in side.unattached] == [staged]
    assert [marked.vdi.ref for marked in side.staging] == [staged]
    assert (side.written, side.unmarked) == ((), {})


async def test_clone_that_was_signed_is_loose_as_a_staging_disk() -> None:
    world = TargetWorld()
    point = world.run()
    clone = world.clone_disk(world.disks(point)[0])
    world.mark(clone, Role.DISK, run="run-2")

    assert [vdi.ref for vdi in (await world.read()).unattached] == [clone]


async def test_vm_that_was_created_and_not_signed_is_a_shell_while_it_is_bare() -> None:
    world = TargetWorld()
    bare = world.vm(temporary_name("run-1"), is_a_template=True)
    world.mark(bare, Role.REPLICA, unsigned=True)

    side = await world.read()

    assert [vm.ref for vm in side.shells] == [bare]
    assert side.replica is None


@pytest.mark.parametrize("difference", ["name", "disks", "no template", "signed", "other stream"])
async def test_vm_that_may_be_a_copy_of_an_unfinished_one_is_no_shell(difference: str) -> None:
    world = TargetWorld()
    name = "[Importing…] web01" if difference == "name" else temporary_name("run-1")
    vm = world.vm(name, is_a_template=difference != "no template")
    stream = OTHER_STREAM if difference == "other stream" else STREAM
    mark = world.mark(vm, Role.REPLICA, unsigned=True, stream=stream)
    if difference == "disks":
        world.attach(vm, world.disk())
    if difference == "signed":  # on another one, which was cloned
        world.set_key(vm, KEY, mark.on("another", "OpaqueRef:another").encode())

    side = await world.read()

    assert (side.replica, side.shells) == (None, ())


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
    assert side.unattached == ()


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


async def test_snapshot_by_a_user_after_the_swap_is_not_its_point() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.swap(staged)
    world.snapshot(world.replica, "manual, of all the new disks")

    assert (await world.read()).fresh is None


@pytest.mark.parametrize("when", ["before the commit", "before the swap", "in the swap"])
async def test_snapshot_by_a_user_beside_a_commit_of_the_earlier_form_is_not_its_point(
    when: str,
) -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    if when == "before the commit":
        world.snapshot(world.replica, "manual")
    world.begin_commit(staged, "run-2")
    world.all_earlier()
    if when == "before the swap":
        world.snapshot(world.replica, "manual")
    world.swap(staged[:1])
    if when == "in the swap":
        world.snapshot(world.replica, "manual")

    assert (await world.read()).fresh is None


async def test_point_of_an_earlier_commit_of_the_same_disks_is_not_that_of_this_one() -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged)
    world.take_point()
    world.begin_commit(staged)  # begun anew, so it has old disks by now

    assert (await world.read()).fresh is None


@pytest.mark.parametrize("name", ["point", "renamed by its run, of an earlier version"])
async def test_point_of_a_commit_of_the_earlier_form_is_known_without_its_name(name: str) -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged)
    world.all_earlier()
    point = world.snapshot(world.replica, name)

    side = await world.read()

    assert side.fresh is not None
    assert (side.fresh.vm.ref, side.fresh.contents) == (point, {"c-0", "c-1"})


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
    for text in ("{", "[]", '{"v":1,"role":"point","time":5}', '{"v":2,"role":"point"}', "none"):
        world.set_key(world.vm(), KEY, text)
        world.set_key(world.disk(), KEY, text)

    side = await world.read()

    assert len(side.points) == 1
    assert (side.unattached, side.unmarked) == ((), {})
