"""What of a replica counts as changed since its last run."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from tests.unit.replication.builders import OTHER_SR, OTHER_STREAM, TargetWorld
from xorepd.ids import Ref
from xorepd.replication.deciding.divergence import EXCHANGED, WRITTEN, find_divergence
from xorepd.replication.format.marks import Commit, Role
from xorepd.xapi.records import CONTENT_ID


async def diverged(world: TargetWorld, *wanted: str) -> dict[Ref, str]:
    found = find_divergence(await world.read(), wanted)
    assert len({each.vdi.ref for each in found}) == len(found)
    return {each.vdi.ref: each.how for each in found}


def replicated() -> TargetWorld:
    """Return a target with a replica of two disks and two restore points."""
    world = TargetWorld()
    world.run("run-1")
    world.run("run-2", ("c-2", "c-3"))
    return world


def drive(world: TargetWorld, device: int) -> Ref:
    return Ref(world.raw(world.replica)["VBDs"][device])


def exchange(world: TargetWorld, device: int, disk: Ref) -> Ref:
    """Put another disk in the place of one of the replica's; return the one that was there."""
    vbd = drive(world, device)
    former = Ref(world.raw(vbd)["VDI"])
    world.detach(vbd)
    world.attach(world.replica, disk, str(device))
    return former


async def test_replica_at_rest_is_as_its_run_left_it() -> None:
    assert await diverged(replicated()) == {}


async def test_target_without_a_replica_has_nothing_that_could_have_changed() -> None:
    assert find_divergence(await TargetWorld().read(), ["0"]) == []


async def test_replica_that_has_lost_its_mark_is_not_judged() -> None:
    world = replicated()
    world.write(world.disks(world.replica)[0])
    world.raw(world.replica)["other_config"] = {}

    assert await diverged(world) == {}


async def test_disk_that_was_written_to_is_named() -> None:
    world = replicated()
    written = world.disks(world.replica)[1]
    world.raw(written)["name_label"] = "web01-data"
    world.write(written)

    [found] = find_divergence(await world.read())

    assert (found.vdi.ref, found.how) == (written, WRITTEN)
    assert str(found) == "disk web01-data was written to"


async def test_disk_without_a_name_is_told_by_its_uuid() -> None:
    world = replicated()
    written = world.disks(world.replica)[1]
    world.raw(written)["name_label"] = ""
    world.write(written)

    [found] = find_divergence(await world.read())

    assert str(found) == f"disk {world.uuid(written)} was written to"


async def test_disk_that_is_open_for_writing_counts_as_written_to() -> None:
    world = replicated()
    disk = world.disks(world.replica)[0]
    world.attach(world.vm("dom0", is_control_domain=True), disk, currently_attached=True)

    assert await diverged(world) == {disk: WRITTEN}


async def test_written_disk_is_told_whatever_became_of_the_points() -> None:
    world = replicated()
    written = world.disks(world.replica)[0]
    for point in (await world.read()).points:
        world.destroy(point.vm.ref)
    world.write(written)

    assert await diverged(world) == {written: WRITTEN}


# -- exchanged -----------------------------------------------------------------------------------


async def test_disk_of_others_where_a_run_put_one_is_an_exchange() -> None:
    world = replicated()
    theirs = world.disk()
    exchange(world, 0, theirs)

    assert await diverged(world) == {theirs: EXCHANGED.format("0")}


async def test_moved_disk_is_an_exchange_once_it_was_written_to() -> None:
    world = replicated()
    moved = world.clone_disk(world.disks(world.replica)[0])  # a move makes another VDI
    world.raw(moved)["SR"] = OTHER_SR
    world.destroy(exchange(world, 0, moved))
    assert await diverged(world) == {}  # all that it holds stands in a restore point

    world.write(moved)

    assert await diverged(world) == {moved: EXCHANGED.format("0")}


@pytest.mark.parametrize("is_missing", [False, True])
async def test_disk_of_others_without_a_content_id_equals_no_restore_point(
    *, is_missing: bool
) -> None:
    world = replicated()
    point = (await world.read()).points[0]
    theirs = world.disk()
    exchange(world, 0, theirs)
    del world.raw(theirs)["other_config"][CONTENT_ID]
    if is_missing:  # a point's disk, which has none either
        world.raw(point.disks[0].vdi.ref)["missing"] = True
        del world.raw(point.disks[0].vdi.ref)["other_config"][CONTENT_ID]

    assert await diverged(world) == {theirs: EXCHANGED.format("0")}


async def test_disk_of_others_is_not_believed_to_equal_a_point_that_was_written_to() -> None:
    world = replicated()
    point = (await world.read()).points[0]
    changed = point.disks[0].vdi.ref
    world.write(changed)
    theirs = world.clone_disk(changed)
    exchange(world, 0, theirs)

    assert await diverged(world) == {theirs: EXCHANGED.format("0")}


async def test_disk_of_another_stream_where_a_run_put_one_is_an_exchange() -> None:
    world = replicated()
    theirs = world.disk()
    world.mark(theirs, Role.DISK, stream=OTHER_STREAM)
    exchange(world, 0, theirs)

    assert await diverged(world) == {theirs: EXCHANGED.format("0")}


async def test_disk_of_others_at_any_other_device_stays() -> None:
    world = replicated()
    theirs = world.disk()
    world.attach(world.replica, theirs, "7")
    assert await diverged(world) == {}

    assert await diverged(world, "0", "1", "7") == {theirs: EXCHANGED.format("7")}


async def test_disk_that_was_taken_off_the_replica_costs_nothing() -> None:
    world = replicated()
    world.detach(drive(world, 1))

    assert await diverged(world, "0", "1") == {}


async def test_devices_that_a_run_filled_are_known_by_the_mark_without_any_point() -> None:
    world = replicated()
    for point in (await world.read()).points:
        world.destroy(point.vm.ref)
    theirs = world.disk()
    exchange(world, 1, theirs)

    assert await diverged(world) == {theirs: EXCHANGED.format("1")}


# -- reverted ------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1], ids=["newest", "older"])
async def test_replica_that_was_reverted_and_not_used_since_is_as_a_run_left_it(which: int) -> None:
    world = replicated()
    point = (await world.read()).points[which].vm.ref
    world.revert(world.replica, point)

    assert await diverged(world, "0", "1") == {}


async def test_replica_that_was_reverted_and_used_is_not() -> None:
    world = replicated()
    world.revert(world.replica, (await world.read()).points[0].vm.ref)
    used = world.disks(world.replica)[0]
    world.write(used)

    assert await diverged(world) == {used: EXCHANGED.format("0")}


async def test_replica_that_was_reverted_to_what_no_point_holds_any_more_is_not() -> None:
    world = replicated()
    point = (await world.read()).points[1].vm.ref
    world.revert(world.replica, point)
    reverted = world.disks(world.replica)
    for disk in world.disks(point):
        world.destroy(disk)
    world.destroy(point)

    assert await diverged(world) == {disk: EXCHANGED.format(n) for n, disk in enumerate(reverted)}


# -- while a commit is pending -------------------------------------------------------------------


def begun(world: TargetWorld) -> tuple[list[Ref], list[Ref], Commit]:
    """Begin a commit; return the old disks, the new ones, and what the mark says."""
    old, staged = world.disks(world.replica), world.stage("run-3", ("c-4", "c-5", "c-6"))
    return old, staged, world.begin_commit(staged, "run-3")


Deed = Callable[[TargetWorld, list[Ref]], None]


def not_swapped(world: TargetWorld, staged: list[Ref]) -> None:
    pass


def half_swapped(world: TargetWorld, staged: list[Ref]) -> None:
    world.swap(staged[:1])


def swapped(world: TargetWorld, staged: list[Ref]) -> None:
    world.swap(staged)


def taken(world: TargetWorld, staged: list[Ref]) -> None:
    world.swap(staged)
    world.take_point()


@pytest.mark.parametrize("done", [not_swapped, half_swapped, swapped, taken])
async def test_commit_that_was_stopped_leaves_nothing_that_has_changed(done: Deed) -> None:
    world = replicated()
    _, staged, _ = begun(world)
    done(world, staged)

    assert await diverged(world) == {}


@pytest.mark.parametrize("whose", ["old", "new"])
@pytest.mark.parametrize("done", [not_swapped, half_swapped, swapped, taken])
async def test_disk_that_a_pending_commit_names_is_named_where_it_was_written_to(
    done: Deed, whose: str
) -> None:
    world = replicated()
    old, staged, _ = begun(world)
    done(world, staged)
    written = (old if whose == "old" else staged)[0]
    world.write(written)

    assert await diverged(world) == {written: WRITTEN}


async def test_first_commit_that_was_stopped_has_changed_where_its_replica_was_used() -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged)
    assert await diverged(world) == {}

    world.write(staged[0])

    assert await diverged(world) == {staged[0]: WRITTEN}


@pytest.mark.parametrize("device", ["0", "2"], ids=["old-and-new", "new"])
async def test_disk_of_others_at_a_device_of_a_pending_commit_is_an_exchange(device: str) -> None:
    world = replicated()
    begun(world)
    theirs = world.disk()
    for vbd in list(world.raw(world.replica)["VBDs"]):
        if world.raw(vbd)["userdevice"] == device:
            world.detach(vbd)
    world.attach(world.replica, theirs, device)

    assert await diverged(world) == {theirs: EXCHANGED.format(device)}


@pytest.mark.parametrize("device", ["1", "2"], ids=["old", "new"])
async def test_devices_of_a_pending_commit_of_the_earlier_form_are_known(device: str) -> None:
    world = replicated()
    for point in (await world.read()).points:
        world.destroy(point.vm.ref)
    new = {"0": world.uuid(world.stage("run-3", ("c-4",))[0]), "2": "gone"}
    old = {str(number): world.uuid(disk) for number, disk in enumerate(world.disks(world.replica))}
    world.mark(world.replica, Role.REPLICA, commit=Commit("run-3", old, new))
    world.mark_earlier(world.replica)
    for vbd in list(world.raw(world.replica)["VBDs"]):
        world.detach(vbd)
    theirs = world.disk()
    world.attach(world.replica, theirs, device)

    assert await diverged(world) == {theirs: EXCHANGED.format(device)}


async def test_disk_of_ours_that_no_commit_names_is_no_matter_of_the_replica() -> None:
    world = replicated()
    begun(world)
    [other] = world.stage("run-0", ("c-9",))
    world.write(other)

    assert await diverged(world) == {}


async def test_disk_that_left_the_replica_is_no_matter_of_it_when_no_commit_is_pending() -> None:
    world = replicated()
    left = world.disks(world.replica)[1]
    world.detach(drive(world, 1))
    world.write(left)

    assert await diverged(world) == {}


# -- the earlier form ----------------------------------------------------------------------------


async def earlier(*written: str) -> tuple[dict[Ref, str], dict[str, Ref]]:
    """Return what is found on a replica of the earlier form, and its disks, some written to."""
    world = replicated()
    world.all_earlier()
    point = (await world.read()).points[0]
    disks = {"live": world.disks(world.replica)[0], "point": point.disks[0].vdi.ref}
    for each in written:
        world.write(disks[each])
    return await diverged(world), disks


async def test_replica_of_the_earlier_form_at_rest_is_as_its_run_left_it() -> None:
    assert (await earlier())[0] == {}


@pytest.mark.parametrize("written", ["live", "point"])
async def test_replica_of_the_earlier_form_is_compared_with_its_newest_point(written: str) -> None:
    found, disks = await earlier(written)

    # Which of the two was written to cannot be told; the live one is what a run would replace.
    assert found == {disks["live"]: WRITTEN}


@pytest.mark.parametrize("without", ["content", "points"])
async def test_replica_of_the_earlier_form_whose_changes_cannot_be_told_is_believed(
    without: str,
) -> None:
    world = replicated()
    world.all_earlier()
    for disk in world.disks(world.replica):
        if without == "content":
            del world.raw(disk)["other_config"][CONTENT_ID]
        world.raw(disk)["name_label"] = "x"
    if without == "points":
        for point in (await world.read()).points:
            world.destroy(point.vm.ref)

    assert await diverged(world) == {}


async def test_disk_of_others_where_a_run_of_the_earlier_form_put_one_is_an_exchange() -> None:
    world = replicated()
    world.all_earlier()
    theirs = world.disk()
    exchange(world, 0, theirs)

    assert await diverged(world) == {theirs: EXCHANGED.format("0")}


async def test_each_disk_is_judged_by_itself() -> None:
    world = replicated()
    first, second = world.disks(world.replica)
    theirs = world.disk()
    world.write(first)
    assert exchange(world, 1, theirs) == second

    found: Collection[str] = sorted((await diverged(world)).values())

    assert found == sorted([WRITTEN, EXCHANGED.format("1")])
