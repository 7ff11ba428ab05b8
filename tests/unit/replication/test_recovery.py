"""Each row of the table in `recovery`, on records as a run leaves them when it dies."""

from __future__ import annotations

from tests.unit.replication.builders import SourceWorld, TargetWorld, World, uuids
from xorepd.ids import Ref
from xorepd.replication.inventory import SourceSide, TargetSide, temporary_name
from xorepd.replication.markers import SNAPSHOTTING, Role
from xorepd.replication.recovery import (
    DestroyReplica,
    FinishCommit,
    SourceCleaning,
    UndoCommit,
    decide_commit,
    decide_source,
)

NOTHING = TargetSide(replica=None, mark=None)


def contents_of(world: World, snapshot: Ref) -> tuple[str, ...]:
    return tuple(world.uuid(disk) for disk in world.disks(snapshot))


async def point_of(*contents: tuple[str, ...]) -> TargetSide:
    """Return a target with one restore point for each group of contents."""
    world = TargetWorld()
    for number, each in enumerate(contents):
        world.run(f"run-{number}", each)
    return await world.read()


# -- the commit on the target --------------------------------------------------------------------


async def test_target_without_anything_needs_nothing() -> None:
    assert decide_commit(await TargetWorld().read()) is None


async def test_replica_at_rest_needs_nothing() -> None:
    world = TargetWorld()
    world.run()

    assert decide_commit(await world.read()) is None


async def test_replica_that_never_came_to_its_first_commit_is_destroyed() -> None:
    world = TargetWorld()
    world.stage()
    world.create_replica()

    assert decide_commit(await world.read()) == DestroyReplica()


async def test_replica_in_its_first_commit_without_a_point_is_destroyed() -> None:
    world = TargetWorld()
    world.create_replica()
    world.begin_commit(world.stage())

    assert decide_commit(await world.read()) == DestroyReplica()


async def test_replica_in_its_first_commit_with_half_its_disks_is_destroyed() -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged[:1])

    assert decide_commit(await world.read()) == DestroyReplica()


async def test_first_commit_whose_point_exists_is_finished() -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged)
    point = world.take_point()

    found = decide_commit(await world.read())

    assert isinstance(found, FinishCommit)
    assert found.point.vm.ref == point


async def test_commit_before_its_swap_is_undone() -> None:
    world = TargetWorld()
    world.run()
    commit = world.begin_commit(world.stage("run-2"), "run-2")

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_commit_in_the_middle_of_its_swap_is_undone() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    commit = world.begin_commit(staged, "run-2")
    world.swap(staged[:1])

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_commit_after_its_swap_and_before_its_point_is_undone() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    commit = world.begin_commit(staged, "run-2")
    world.swap(staged)

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_disks_of_a_point_without_its_record_prove_nothing() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    commit = world.begin_commit(staged, "run-2")
    world.swap(staged)
    for disk in staged:
        world.snapshot_disk(disk)

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_commit_whose_point_exists_is_finished() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.swap(staged)
    point = world.take_point()

    found = decide_commit(await world.read())

    assert isinstance(found, FinishCommit)
    assert found.point.vm.ref == point


async def test_commit_whose_point_is_signed_already_is_finished() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.swap(staged)
    point = world.take_point()
    world.sign_point(point, "run-2")

    found = decide_commit(await world.read())

    assert isinstance(found, FinishCommit)
    assert found.point.vm.ref == point


async def test_point_of_an_earlier_run_does_not_finish_a_commit() -> None:
    world = TargetWorld()
    world.run("run-1")
    world.run("run-2")
    commit = world.begin_commit(world.stage("run-3"), "run-3")

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_snapshot_by_a_user_in_the_middle_of_a_swap_does_not_finish_the_commit() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    commit = world.begin_commit(staged, "run-2")
    world.swap(staged[:1])
    world.snapshot(world.replica, "manual")

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_replaced_disks_are_loose_once_the_commit_is_done() -> None:
    world = TargetWorld()
    world.run()
    old = world.disks(world.replica)
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.swap(staged)
    world.sign_point(world.take_point(), "run-2")
    world.release("run-2")

    side = await world.read()

    assert decide_commit(side) is None
    assert [vdi.ref for vdi in side.loose] == old


async def test_replica_without_points_keeps_the_disks_that_somebody_gave_it() -> None:
    world = TargetWorld()
    world.create_replica()
    world.attach(world.replica, world.disk())

    assert decide_commit(await world.read()) is None


async def test_clone_of_a_replica_in_its_commit_decides_nothing() -> None:
    world = TargetWorld()
    world.run()
    commit = world.begin_commit(world.stage("run-2"), "run-2")
    clone = world.clone(world.replica, "failover")
    world.snapshot(clone, "of the clone")

    side = await world.read()

    assert side.replica is not None
    assert side.replica.ref == world.replica
    assert decide_commit(side) == UndoCommit(commit)


# -- snapshots on the source ---------------------------------------------------------------------


async def cleaned(source: SourceWorld, target: TargetSide = NOTHING) -> SourceCleaning:
    return decide_source(await source.read(), target)


async def test_source_without_snapshots_needs_nothing() -> None:
    assert await cleaned(SourceWorld()) == SourceCleaning((), (), ())


async def test_unconfirmed_snapshot_that_no_point_holds_is_destroyed() -> None:
    source = SourceWorld()
    made = source.source_snapshot()

    found = await cleaned(source, await point_of(("c-8", "c-9")))

    assert [group.vm.ref for group in found.destroy] == [made]
    assert found.confirm == ()


async def test_unconfirmed_snapshot_that_a_point_holds_is_confirmed() -> None:
    source = SourceWorld()
    made = source.source_snapshot()

    found = await cleaned(source, await point_of(contents_of(source, made)))

    assert [group.vm.ref for group in found.confirm] == [made]
    assert found.destroy == ()


async def test_unconfirmed_snapshot_that_an_older_point_holds_is_confirmed() -> None:
    source = SourceWorld()
    made = source.source_snapshot()

    found = await cleaned(source, await point_of(contents_of(source, made), ("c-8", "c-9")))

    assert [group.vm.ref for group in found.confirm] == [made]


async def test_unconfirmed_snapshot_of_which_a_point_holds_one_disk_is_confirmed() -> None:
    source = SourceWorld()
    made = source.source_snapshot()

    found = await cleaned(source, await point_of((contents_of(source, made)[0], "c-9")))

    assert [group.vm.ref for group in found.confirm] == [made]


async def test_confirmed_snapshot_stays_even_when_no_point_is_seen() -> None:
    source = SourceWorld()
    source.source_snapshot(confirmed=True)

    assert await cleaned(source) == SourceCleaning((), (), ())


async def test_snapshot_that_was_never_marked_is_destroyed() -> None:
    source = SourceWorld()
    source.set_key(source.web, SNAPSHOTTING, "run-9")
    made = source.snapshot(source.web, temporary_name("run-9"))

    found = await cleaned(source)

    assert [group.vm.ref for group in found.destroy] == [made]
    assert uuids(d.vdi for d in found.destroy[0].disks) == set(contents_of(source, made))


async def test_snapshot_with_a_part_of_its_disks_marked_is_destroyed_with_all_of_them() -> None:
    source = SourceWorld()
    source.set_key(source.web, SNAPSHOTTING, "run-9")
    made = source.snapshot(source.web, temporary_name("run-9"))
    source.mark(source.disks(made)[0], Role.SOURCE, snapshot="c", disk="d")

    found = await cleaned(source)

    assert len(found.destroy[0].disks) == 2


async def test_snapshot_of_a_user_stays() -> None:
    source = SourceWorld()
    source.snapshot(source.web, "before the update")

    assert await cleaned(source) == SourceCleaning((), (), ())


async def test_disk_whose_snapshot_record_is_gone_is_destroyed() -> None:
    source = SourceWorld()
    made = source.source_snapshot()
    disks = contents_of(source, made)
    source.destroy(made)

    found = await cleaned(source)

    assert uuids(disk.vdi for disk in found.destroy_disks) == set(disks)


async def test_disk_whose_snapshot_record_is_gone_stays_while_a_point_holds_it() -> None:
    source = SourceWorld()
    made = source.source_snapshot()
    disks = contents_of(source, made)
    source.destroy(made)

    found = await cleaned(source, await point_of(disks))

    assert found.destroy_disks == ()


async def test_each_snapshot_is_decided_by_itself() -> None:
    source = SourceWorld()
    confirmed = source.source_snapshot("run-1", confirmed=True)
    held = source.source_snapshot("run-2")
    lost = source.source_snapshot("run-3")

    found = await cleaned(source, await point_of(contents_of(source, held)))

    assert [group.vm.ref for group in found.confirm] == [held]
    assert [group.vm.ref for group in found.destroy] == [lost]
    assert confirmed not in {group.vm.ref for group in (*found.confirm, *found.destroy)}


async def test_base_that_is_kept_is_one_that_the_next_run_can_use() -> None:
    source = SourceWorld()
    made = source.source_snapshot()
    target = await point_of(contents_of(source, made))

    side: SourceSide = await source.read()

    assert decide_source(side, target).destroy == ()
    assert {base.uuid for base in side.bases()} == set(contents_of(source, made))
