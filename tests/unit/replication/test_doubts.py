"""What is listed because it may be ours or not, and that each of its two commands settles it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.unit.replication.builders import SourceWorld, TargetWorld, World
from xorepd.ids import Ref
from xorepd.replication.format.current import KEY as CURRENT
from xorepd.replication.format.current import Current, State
from xorepd.replication.format.doubts import Unresolved, find_unresolved
from xorepd.replication.format.marks import (
    BLOCK_TEXT,
    BLOCKED_ON_REPLICA,
    CONFIRMED,
    DISPLACED,
    FOR,
    KEY,
    REPLICA_TAG,
    SNAPSHOTTING,
    Role,
    displaced_text,
)
from xorepd.replication.format.ownership import temporary_name

Made = tuple[World, Ref]
"""A pool, and the one object on it that is doubtful."""


async def doubts(world: World) -> list[Unresolved]:
    return find_unresolved("dr", await world.cache())


def replicated() -> tuple[TargetWorld, Ref]:
    """Return a target with a replica and two restore points, and the newer one of these."""
    world = TargetWorld()
    world.run("run-1")
    return world, world.run("run-2", ("c-2", "c-3"))


# -- what is listed ------------------------------------------------------------------------------


def staging_disk_written() -> Made:
    world, _ = replicated()
    (disk,) = world.stage("run-3", ("c-4",))
    world.write(disk)
    return world, disk


def disk_of_the_replica_taken_off_and_written() -> Made:
    world, _ = replicated()
    vbd = Ref(world.raw(world.replica)["VBDs"][1])
    disk = Ref(world.raw(vbd)["VDI"])
    world.detach(vbd)
    world.write(disk)
    return world, disk


def disk_of_a_point_that_is_gone_written() -> Made:
    world, point = replicated()
    disk = world.disks(point)[0]
    world.destroy(point)
    world.write(disk)
    return world, disk


def point_written() -> Made:
    world, point = replicated()
    world.write(world.disks(point)[0])
    return world, point


def source_snapshot_written() -> Made:
    world = SourceWorld()
    snapshot = world.source_snapshot(sr_1="held")
    world.write(world.disks(snapshot)[0])
    return world, snapshot


def cloned() -> Made:
    world, point = replicated()
    return world, world.clone_disk(world.disks(point)[0])


def cloned_and_written() -> Made:
    world, clone = cloned()
    world.write(clone)
    return world, clone


def snapshotted() -> Made:
    world, _ = replicated()
    return world, world.snapshot_disk(world.disks(world.replica)[0])


def imported_disk() -> Made:
    world, _ = replicated()
    disk = world.disk()
    mark = world.mark(disk, Role.POINT)
    world.set_key(disk, KEY, mark.on(mark.self, "OpaqueRef:exported").encode())
    return world, disk


def not_signed() -> Made:
    world, _ = replicated()
    disk = world.disk()
    world.mark(disk, Role.DISK, unsigned=True, run="run-3")
    return world, disk


def unfinished() -> Made:
    world = SourceWorld()
    world.set_key(world.roots[0], SNAPSHOTTING, "run-9")
    return world, world.snapshot_disk(world.roots[0])


def memory_of_no_vm() -> Made:
    world = SourceWorld()
    return world, world.disk(type="suspend", is_a_snapshot=True)


def disk_of_a_point_that_lost_its_marks() -> Made:
    world, point = replicated()
    disk, other = world.disks(point)
    world.detach(world.raw(disk)["VBDs"][0])
    for each in (disk, world.disk()):  # and one that was never ours
        world.raw(each)["other_config"] = {}
    world.destroy(other)
    return world, disk


def imported_vm() -> Made:
    world, _ = replicated()
    mark = world.mark_on(world.replica)
    world.set_key(world.replica, KEY, mark.on(mark.self, "OpaqueRef:exported").encode())
    return world, world.replica


def wiped() -> Made:
    world, point = replicated()
    world.raw(world.replica)["other_config"] = {}
    world.raw(world.replica)["snapshots"].append(point)
    return world, world.replica


def point_with_the_keys_of_another() -> Made:
    world, point = replicated()
    world.set_key(point, KEY, world.mark_on(world.replica).encode())
    return world, point


def replica_with_the_keys_of_another() -> Made:
    world, point = replicated()
    world.set_key(world.replica, KEY, world.mark_on(point).encode())
    return world, world.replica


def source_snapshot_without_keys() -> Made:
    world = SourceWorld()
    snapshot = world.source_snapshot(sr_1="held")
    world.raw(snapshot)["other_config"] = {}
    return world, snapshot


def source_snapshot_with_a_key_alone() -> Made:
    world, snapshot = source_snapshot_without_keys()
    world.raw(snapshot)["other_config"] = {FOR + "sr-1": "held"}
    for disk in world.disks(snapshot):
        world.raw(disk)["other_config"] = {}
    return world, snapshot


def staging_disk_without_its_mark() -> Made:
    world, _ = replicated()
    (disk,) = world.stage("run-3", ("c-4",))
    world.raw(disk)["other_config"] = {CONFIRMED: "0"}
    return world, disk


def disk_of_others_taken_out_of_the_replica() -> Made:
    world, _ = replicated()
    disk = world.disk()
    world.set_key(disk, DISPLACED, displaced_text(world.uuid(disk), "7"))
    return world, disk


def point_without_marks() -> Made:
    world, point = replicated()
    for each in (point, *world.disks(point)):
        world.raw(each)["other_config"] = {}
    return world, point


def replica_without_marks() -> Made:
    world, _ = replicated()
    for each in (world.replica, *world.disks(world.replica)):
        world.raw(each)["other_config"] = {}
    world.raw(world.replica)["tags"] = [REPLICA_TAG]
    world.raw(world.replica)["blocked_operations"] = dict.fromkeys(BLOCKED_ON_REPLICA, BLOCK_TEXT)
    world.raw(world.replica)["snapshots"] = []
    return world, world.replica


def replica_with_the_keys_of_a_point_and_disks_of_others() -> Made:
    other, point = replicated()
    world, replica = replica_without_marks()
    world.set_key(replica, KEY, other.mark_on(point).encode())
    return world, replica


def replica_with_the_keys_of_a_source_snapshot() -> Made:
    source = SourceWorld()
    world, replica = replica_without_marks()
    world.raw(replica)["blocked_operations"] = {}
    world.set_key(replica, KEY, source.mark_on(source.source_snapshot()).encode())
    return world, replica


def point_never_signed_because_the_replica_was_worked_on() -> Made:
    world, _ = replicated()
    replica = world.mark_on(world.replica)
    point = world.snapshot(world.replica, temporary_name("run-3"))
    for disk in world.disks(point):
        world.set_key(disk, KEY, "none")
    world.set_key(point, KEY, replica.encode())
    return world, point


def shell_that_was_started() -> Made:
    world, _ = replicated()
    shell = world.vm(temporary_name("run-3"))
    world.mark(shell, Role.REPLICA, unsigned=True)
    return world, shell


def point_never_signed_of_a_replica_that_is_gone() -> Made:
    world, point = replicated()
    world.raw(point)["name_label"] = temporary_name("run-2")
    world.set_key(point, KEY, world.mark_on(world.replica).encode())
    world.destroy(world.replica)
    return world, point


def snapshot_never_signed_of_a_forgotten_replica() -> Made:
    world = SourceWorld()
    return world, world.unsigned_snapshot("run-3")


def shell_without_keys() -> Made:
    world, _ = replicated()
    return world, world.vm(temporary_name("run-3"), is_a_template=True)


def point_with_the_keys_of_the_replica_and_of_other_disks() -> Made:
    world, point = replicated()
    source = SourceWorld()
    theirs = source.mark_on(source.disks(source.source_snapshot())[0])
    world.set_key(point, KEY, world.mark_on(world.replica).encode())
    for disk in world.disks(point):
        world.set_key(disk, KEY, theirs.encode())
    return world, point


def snapshot_with_other_keys() -> Made:
    world = SourceWorld()
    disk = world.snapshot_disk(world.roots[0])
    world.raw(disk)["other_config"] = {"xorepd:cbt": "web"}
    return world, disk


LOST = r"carries no mark of its own any more, and its disks are signed by a run \(.*\)"
OF_ANOTHER = "carries the mark of disk .+: a run that died cloned it, or a person did"
WRITTEN = "is a disk of ours, and was written to since its run left it"
ALL: list[tuple[Callable[[], Made], str]] = [
    (staging_disk_written, WRITTEN),
    (disk_of_the_replica_taken_off_and_written, WRITTEN),
    (disk_of_a_point_that_is_gone_written, WRITTEN),
    (point_written, r"is a restore point that was written to since it was taken \(disk .*\)"),
    (
        source_snapshot_written,
        r"is a source snapshot that was written to since it was taken \(disk .*\)",
    ),
    (cloned, OF_ANOTHER),
    (cloned_and_written, OF_ANOTHER),
    (snapshotted, OF_ANOTHER),
    (imported_disk, OF_ANOTHER),
    (not_signed, "was made by run run-3, which never signed it, or was copied from such a disk"),
    (unfinished, "was snapshotted while run run-9 took a snapshot, which has not got it"),
    (memory_of_no_vm, "is the memory of a snapshot that no VM has"),
    (
        disk_of_a_point_that_lost_its_marks,
        "was the disk of restore point point of run-2, and has lost its marks",
    ),
    (
        disk_of_others_taken_out_of_the_replica,
        "was disk 7 of a replica until a run put another there",
    ),
    (point_with_the_keys_of_another, LOST),
    (replica_with_the_keys_of_another, LOST),
    (source_snapshot_without_keys, LOST),
    (
        source_snapshot_with_a_key_alone,
        "carries no mark of its own any more, and other keys of ours are on it or its disks",
    ),
    (
        staging_disk_without_its_mark,
        "bears keys of ours, and carries no mark: people changed its keys",
    ),
    (point_without_marks, r"is a snapshot of replica .+, and has lost the mark of one"),
    (
        replica_without_marks,
        "looks like a replica, which xorepd keeps from starting, and carries no mark of one",
    ),
    (
        replica_with_the_keys_of_a_point_and_disks_of_others,
        "looks like a replica, which xorepd keeps from starting, and carries no mark of one",
    ),
    (
        replica_with_the_keys_of_a_source_snapshot,
        "carries the mark of .+, and is no copy of it",
    ),
    (
        point_never_signed_because_the_replica_was_worked_on,
        "was taken by run run-3, which did not sign it: the replica had been worked on",
    ),
    (
        shell_that_was_started,
        "was made by run run-3, which never signed it, and has been used since",
    ),
    (
        point_never_signed_of_a_replica_that_is_gone,
        "was taken by run run-2, which never signed it, of a VM that is gone or forgotten",
    ),
    (
        snapshot_never_signed_of_a_forgotten_replica,
        "was taken by run run-3, which never signed it, of a VM that is gone or forgotten",
    ),
    (
        shell_without_keys,
        "was made by run run-3, which never signed it, and has been used since",
    ),
    (
        point_with_the_keys_of_the_replica_and_of_other_disks,
        "carries the mark of .+, and is no copy of it",
    ),
    (
        snapshot_with_other_keys,
        "is a snapshot with keys of ours, and carries no mark: people changed its keys",
    ),
    (imported_vm, "bears the UUID of our replica, and is another object: it was imported"),
    (wiped, "has lost its marks: restore point point of run-2 is a snapshot of it"),
]
EACH = pytest.mark.parametrize(("make", "why"), ALL, ids=[make.__name__ for make, _ in ALL])


@EACH
async def test_what_no_run_touches_is_listed_with_the_reason(
    make: Callable[[], Made], why: str
) -> None:
    world, ref = make()

    found = await doubts(world)

    assert [doubt.uuid for doubt in found] == [world.uuid(ref)]
    assert re.fullmatch(why, found[0].why), found[0].why
    assert (found[0].pool, found[0].name) == ("dr", world.raw(ref)["name_label"])


def obey(world: World, command: str, ref: Ref) -> None:
    """Do what a command of `xe` does to the object that is doubtful."""
    call, uuid, *more = command.removeprefix("xe ").split(" ")
    assert uuid == f"uuid={world.uuid(ref)}"
    match call, more:
        case "vdi-destroy", []:
            world.destroy(ref)
        case "snapshot-uninstall" | "vm-uninstall", []:
            assert world.raw(ref)["is_a_snapshot"] == (call == "snapshot-uninstall")
            disks = world.disks(ref)
            world.destroy(ref)
            for disk in disks:
                world.destroy(disk)
        case "vdi-param-set" | "vm-param-set", [setting]:
            assert ("SR" in world.raw(ref)) == (call == "vdi-param-set")
            key, value = setting.removeprefix("other-config:").split("=")
            world.set_key(ref, key, value)
        case _:
            pytest.fail(command)


@EACH
@pytest.mark.parametrize("which", ["remove", "keep"])
async def test_each_of_both_commands_settles_it(
    make: Callable[[], Made], why: str, which: str
) -> None:
    world, ref = make()
    [doubt] = await doubts(world)

    obey(world, doubt.remove if which == "remove" else doubt.keep, ref)

    assert await doubts(world) == []
    assert (ref in world) == (which == "keep")


async def test_doubts_come_by_their_names_disks_first() -> None:
    world, point = replicated()
    world.write(world.disks(point)[1])
    for name in ("web02", "web01"):
        world.raw(world.clone_disk(world.disks(world.replica)[0]))["name_label"] = name

    found = [(doubt.kind, doubt.name) for doubt in await doubts(world)]

    assert found == [("VDI", "web01"), ("VDI", "web02"), ("VM", "point of run-2")]


async def test_disk_is_listed_with_its_size_and_its_age() -> None:
    world, ref = cloned()
    world.raw(ref)["physical_utilisation"] = "4711"

    [doubt] = await doubts(world)

    assert doubt.since is not None
    assert (doubt.size, doubt.since.isoformat()) == (4711, world.moment(ref))


async def test_disk_that_was_never_dated_has_no_age() -> None:
    world, _ = not_signed()

    assert [doubt.since for doubt in await doubts(world)] == [None]


# -- what is not ---------------------------------------------------------------------------------


async def test_what_is_ours_and_as_we_left_it_is_no_doubt() -> None:
    target, _ = replicated()
    staged = target.stage("run-3")
    target.begin_commit(staged, "run-3")
    source = SourceWorld()
    source.source_snapshot(sr_1="held")
    source.destroy(source.source_snapshot("run-2", sr_1="bare"))
    active = Current("origin", 1, State.ACTIVE, source.uuid(source.web))
    source.set_key(source.web, CURRENT, active.encode())
    source.unsigned_snapshot("run-3")
    source.earlier_snapshot("run-0", confirmed=True)

    assert await doubts(target) == []
    assert await doubts(source) == []


async def test_disk_that_a_run_is_writing_is_no_doubt() -> None:
    world, _ = replicated()
    (disk,) = world.stage("run-3", ("c-4",))
    world.attach(world.vm("dom0", is_control_domain=True), disk, currently_attached=True)

    assert await doubts(world) == []


async def test_replica_that_was_written_to_is_a_matter_of_its_run() -> None:
    world, _ = replicated()
    world.write(world.disks(world.replica)[0])

    assert await doubts(world) == []


async def test_vms_of_others_are_no_doubts_whatever_they_inherited() -> None:
    world, point = replicated()
    world.write(world.disks(world.clone(world.replica))[0])
    world.clone(point)
    world.snapshot(world.replica, "by a user")
    displaced = world.disk()
    world.set_key(displaced, DISPLACED, displaced_text(world.uuid(displaced), "7"))
    world.attach(mine := world.vm("mine"), displaced)
    world.snapshot(mine, "of a VM with a disk that a run took out of the replica")
    world.clone_disk(displaced)
    world.disk()
    world.vm("template", is_a_template=True)
    of_xen_orchestra = world.vm("[XO Backup nightly] web01", tags=[REPLICA_TAG])
    world.raw(of_xen_orchestra)["blocked_operations"] = {
        "start": BLOCK_TEXT,
        "start_on": BLOCK_TEXT,
    }

    assert await doubts(world) == []


async def test_disk_of_ours_in_a_vm_of_others_is_a_matter_of_theirs() -> None:
    world, disk = staging_disk_written()
    world.attach(world.vm("rescue"), disk)

    assert await doubts(world) == []


@pytest.mark.parametrize("changes", [{"managed": False}, {"missing": True}])
async def test_disk_that_is_not_there_is_no_doubt(changes: dict[str, object]) -> None:
    world, disk = cloned()
    world.raw(disk).update(changes)

    assert await doubts(world) == []


@pytest.mark.parametrize("text", ["none", "", "{", '{"v":9}'])
async def test_mark_that_is_none_is_no_doubt(text: str) -> None:
    world, ref = cloned()
    world.set_key(ref, KEY, text)
    world.set_key(world.vm("vm"), KEY, text)

    assert await doubts(world) == []
