"""Each row of the table in `recovery`, on records as a run leaves them when it dies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest

from tests.unit.parts import job
from tests.unit.replication.builders import STREAM, SourceWorld, TargetWorld, World, uuids
from xorepd.ids import Ref
from xorepd.replication.deciding.recovery import (
    CancelCommit,
    DestroyReplica,
    FinishCommit,
    SourceCleaning,
    UndoCommit,
    decide_commit,
    decide_prune,
    decide_source,
)
from xorepd.replication.deciding.selection import without_excluded
from xorepd.replication.format.inventory import Marked, SourceSide, TargetSide, VmSnapshot
from xorepd.replication.format.marks import KEY, SNAPSHOTTING, Commit, Role
from xorepd.replication.format.ownership import temporary_name

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


async def test_replica_of_a_vm_without_disks_at_rest_needs_nothing() -> None:
    world = TargetWorld()
    world.run(contents=())

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


async def test_commit_before_its_swap_is_cancelled() -> None:
    world = TargetWorld()
    world.run()
    world.begin_commit(world.stage("run-2"), "run-2")

    assert decide_commit(await world.read()) == CancelCommit()


async def test_commit_before_its_swap_is_cancelled_beside_a_disk_of_others() -> None:
    world = TargetWorld()
    world.run()
    world.begin_commit(world.stage("run-2"), "run-2")
    world.attach(world.replica, world.disk(), "7")

    assert decide_commit(await world.read()) == CancelCommit()


@pytest.mark.parametrize("device", [0, 1])
async def test_commit_that_has_begun_to_detach_is_undone(device: int) -> None:
    world = TargetWorld()
    world.run()
    commit = world.begin_commit(world.stage("run-2"), "run-2")
    world.detach(world.raw(world.replica)["VBDs"][device])

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_commit_whose_old_disks_are_at_other_devices_by_now_is_undone() -> None:
    world = TargetWorld()
    world.run()
    commit = world.begin_commit(world.stage("run-2"), "run-2")
    first, second = world.raw(world.replica)["VBDs"]
    world.raw(first)["userdevice"], world.raw(second)["userdevice"] = "1", "0"

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
    world.begin_commit(world.stage("run-3"), "run-3")

    assert decide_commit(await world.read()) == CancelCommit()


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
    world.release()

    side = await world.read()

    assert decide_commit(side) is None
    assert [vdi.ref for vdi in side.unattached] == old


async def test_replica_without_points_keeps_the_disks_that_somebody_gave_it() -> None:
    world = TargetWorld()
    world.create_replica()
    world.attach(world.replica, world.disk())

    assert decide_commit(await world.read()) is None


async def test_clone_of_a_replica_in_its_commit_decides_nothing() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    commit = world.begin_commit(staged, "run-2")
    world.swap(staged)
    clone = world.clone(world.replica, temporary_name("run-2"))
    world.snapshot(clone, temporary_name("run-2"))

    side = await world.read()

    assert side.replica is not None
    assert side.replica.ref == world.replica
    assert decide_commit(side) == UndoCommit(commit)


async def test_replica_in_a_commit_that_has_been_one_before_is_not_destroyed() -> None:
    world = TargetWorld()
    world.run()
    for vbd in list(world.raw(world.replica)["VBDs"]):
        world.detach(vbd)  # by a person, or its source had no disks
    commit = world.begin_commit(world.stage("run-2"), "run-2")
    assert commit.old == {}

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_points_of_a_replica_that_is_gone_do_not_speak_for_a_new_one() -> None:
    world = TargetWorld()
    world.run()
    world.destroy(world.replica)
    world.create_replica("run-2")
    world.begin_commit(world.stage("run-2"), "run-2")

    assert decide_commit(await world.read()) == DestroyReplica()


async def test_snapshot_by_a_user_of_all_the_new_disks_does_not_finish_the_commit() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    commit = world.begin_commit(staged, "run-2")
    world.swap(staged)
    world.snapshot(world.replica, "manual")

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_commit_of_the_earlier_form_whose_point_exists_is_finished() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.swap(staged)
    world.all_earlier()
    point = world.snapshot(world.replica, "web01 - web / web 20260302T120000Z")

    found = decide_commit(await world.read())

    assert isinstance(found, FinishCommit)
    assert found.point.vm.ref == point


async def test_commit_of_the_earlier_form_without_a_point_is_undone() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.swap(staged)
    world.all_earlier()

    found = decide_commit(await world.read())

    assert isinstance(found, UndoCommit)
    assert set(found.commit.new.values()) == {world.uuid(disk) for disk in staged}


async def test_commit_whose_disks_were_written_to_is_decided_as_any_other() -> None:
    # What has changed refuses the run before anything is done; see `divergence`.
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    world.begin_commit(staged)
    world.swap(staged)
    world.write(staged[0])

    assert decide_commit(await world.read()) == DestroyReplica()


async def test_first_commit_is_undone_where_people_put_a_disk_of_theirs_into_the_replica() -> None:
    world = TargetWorld()
    world.create_replica()
    staged = world.stage()
    commit = world.begin_commit(staged)
    world.swap(staged)
    world.attach(world.replica, world.disk(), "7")

    assert decide_commit(await world.read()) == UndoCommit(commit)


@pytest.mark.parametrize("how", ["written", "exchanged"])
async def test_snapshot_of_a_replica_that_people_worked_on_amid_a_commit_finishes_none(
    how: str,
) -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    commit = world.begin_commit(staged, "run-2")
    world.swap(staged if how == "written" else staged[::-1])
    if how == "written":
        world.write(staged[0])
    world.take_point()

    assert decide_commit(await world.read()) == UndoCommit(commit)


async def test_point_whose_signing_was_interrupted_is_finished_without_the_replicas_disks() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.swap(staged)
    point = world.take_point()
    for device, disk in enumerate(world.disks(point)):
        content = world.content_of(staged[device])
        facts: dict[str, Any] = {"snapshot": content, "disk": f"d-{device}", "device": str(device)}
        world.mark(disk, Role.POINT, run="run-2", **facts)
    world.detach(world.raw(world.replica)["VBDs"][0])
    world.destroy(staged[0])  # by a person

    decided = decide_commit(await world.read())

    assert isinstance(decided, FinishCommit)
    assert decided.point.vm.ref == point


@pytest.mark.parametrize("which", [0, 1], ids=["newest", "older"])
async def test_replica_that_was_reverted_to_a_point_finishes_that_commit_again(which: int) -> None:
    # A revert brings the mark back that the replica had when the point was taken.
    world = TargetWorld()
    for run in ("run-1", "run-2"):
        world.run(run)
    points = (await world.read()).points
    point = points[which]
    world.revert(world.replica, point.vm.ref)
    commit = Commit(point.mark.run, {}, {"0": "v", "1": "w"}, "xorepd-unmarked-x", "title")
    world.mark(world.replica, Role.REPLICA, run=point.mark.run, snapshot="s", commit=commit)

    found = decide_commit(await world.read())

    assert isinstance(found, FinishCommit)
    assert found.point.vm.ref == point.vm.ref


async def test_replica_that_has_lost_its_mark_is_left_alone() -> None:
    world = TargetWorld()
    world.run()
    staged = world.stage("run-2")
    world.begin_commit(staged, "run-2")
    world.raw(world.replica)["other_config"] = {}

    side = await world.read()

    assert (side.replica, decide_commit(side)) == (None, None)


# -- snapshots on the source ---------------------------------------------------------------------

US, THEM = STREAM.sr, "sr-2"
WANTED, HELD = {"sr_1": "wanted"}, {"sr_1": "held"}


async def cleaned(source: SourceWorld, target: TargetSide = NOTHING) -> SourceCleaning:
    return decide_source(await source.read(), target, US)


def refs(what: Iterable[VmSnapshot | Marked]) -> list[Ref]:
    return [each.vm.ref if isinstance(each, VmSnapshot) else each.vdi.ref for each in what]


async def test_source_without_snapshots_needs_nothing() -> None:
    assert not (await cleaned(SourceWorld())).is_needed


async def test_wanted_snapshot_that_no_point_holds_is_released() -> None:
    source = SourceWorld()
    made = source.source_snapshot(**WANTED)

    found = await cleaned(source, await point_of(("c-8", "c-9")))

    assert refs(found.release) == [made]
    assert found.hold == ()


async def test_snapshot_from_which_an_interrupted_run_goes_on_is_spared() -> None:
    source = SourceWorld()
    lost = source.source_snapshot("run-1", **WANTED)
    begun = source.source_snapshot("run-2", **WANTED)

    found = decide_source(await source.read(), NOTHING, US, spared=source.uuid(begun))

    assert refs(found.release) == [lost]


async def test_snapshot_that_is_wanted_for_others_only_is_left_to_them() -> None:
    source = SourceWorld()
    source.source_snapshot(sr_2="wanted")
    source.source_snapshot("run-2", sr_2="held")

    assert not (await cleaned(source)).is_needed


async def test_snapshot_for_nobody_is_released_by_whoever_comes() -> None:
    source = SourceWorld()
    made = source.source_snapshot()

    assert refs((await cleaned(source)).release) == [made]


async def test_wanted_snapshot_that_a_point_holds_is_held() -> None:
    source = SourceWorld()
    made = source.source_snapshot(**WANTED)

    found = await cleaned(source, await point_of(contents_of(source, made)))

    assert refs(found.hold) == [made]
    assert found.release == ()


async def test_wanted_snapshot_that_an_older_point_holds_is_held() -> None:
    source = SourceWorld()
    made = source.source_snapshot(**WANTED)

    found = await cleaned(source, await point_of(contents_of(source, made), ("c-8", "c-9")))

    assert refs(found.hold) == [made]


async def test_wanted_snapshot_of_which_a_point_holds_one_disk_is_held() -> None:
    source = SourceWorld()
    made = source.source_snapshot(**WANTED)

    found = await cleaned(source, await point_of((contents_of(source, made)[0], "c-9")))

    assert refs(found.hold) == [made]


@pytest.mark.parametrize("uses", [{}, {"sr_2": "held"}])
async def test_whoever_has_the_content_claims_a_snapshot_whose_key_went_astray(
    uses: dict[str, str],
) -> None:
    source = SourceWorld()
    made = source.source_snapshot(**uses)

    found = await cleaned(source, await point_of(contents_of(source, made)))

    assert refs(found.hold) == [made]
    assert found.release == ()


async def test_held_snapshot_stays_even_when_no_point_is_seen() -> None:
    source = SourceWorld()
    source.source_snapshot(**HELD)

    assert not (await cleaned(source)).is_needed


async def test_key_with_a_value_of_a_later_version_keeps_the_snapshot() -> None:
    source = SourceWorld()
    source.source_snapshot(sr_1="treasured")

    assert not (await cleaned(source)).is_needed


@pytest.mark.parametrize("confirmed", [True, False])
async def test_snapshot_of_the_earlier_form_is_for_the_target_in_its_mark(confirmed: bool) -> None:
    source = SourceWorld()
    made = source.earlier_snapshot(confirmed=confirmed)

    found = await cleaned(source)

    assert (await source.read()).snapshots[0].uses == {US: "held" if confirmed else "wanted"}
    assert refs(found.release) == ([] if confirmed else [made])


async def test_snapshot_of_the_earlier_form_is_held_when_a_point_holds_it() -> None:
    source = SourceWorld()
    made = source.earlier_snapshot(confirmed=False)

    found = await cleaned(source, await point_of(contents_of(source, made)))

    assert refs(found.hold) == [made]


async def test_snapshot_that_was_never_marked_is_destroyed() -> None:
    source = SourceWorld()
    made = source.unsigned_snapshot()

    found = await cleaned(source)

    assert refs(found.destroy) == [made]
    assert uuids(d.vdi for d in found.destroy[0].disks) == set(contents_of(source, made))


async def test_snapshot_with_a_part_of_its_disks_marked_is_destroyed_with_all_of_them() -> None:
    source = SourceWorld()
    made = source.unsigned_snapshot()
    source.mark(source.disks(made)[0], Role.SOURCE, snapshot="c", disk="d")

    found = await cleaned(source)

    assert len(found.destroy[0].disks) == 2


async def test_snapshot_of_a_user_stays() -> None:
    source = SourceWorld()
    source.snapshot(source.web, "before the update")

    assert not (await cleaned(source)).is_needed


async def test_snapshots_of_users_that_were_taken_beside_ours_stay() -> None:
    source = SourceWorld()
    for each in (source.web, *source.roots):
        source.set_key(each, SNAPSHOTTING, "run-9")
    ours = source.unsigned_snapshot("run-9")
    source.snapshot(source.web, "by a user, in that very moment")
    source.snapshot_disk(source.roots[0])
    source.destroy(ours)  # as if it had failed: its record goes, its disks stay

    assert not (await cleaned(source)).is_needed


async def test_disk_whose_snapshot_record_is_gone_is_released() -> None:
    source = SourceWorld()
    made = source.source_snapshot(**WANTED)
    disks = source.disks(made)
    source.destroy(made)

    assert refs((await cleaned(source)).release) == disks


async def test_disk_whose_snapshot_record_is_gone_stays_while_a_point_holds_it() -> None:
    source = SourceWorld()
    made = source.source_snapshot(**HELD)
    disks = contents_of(source, made)
    source.destroy(made)

    found = await cleaned(source, await point_of(disks))

    assert found.release == ()


@pytest.mark.parametrize("use", ["held", "bare"])
async def test_disk_whose_snapshot_record_is_gone_stays_held_even_when_no_point_is_seen(
    use: str,
) -> None:
    source = SourceWorld()
    made = source.source_snapshot(sr_1=use)
    source.destroy(made)

    assert not (await cleaned(source)).is_needed


async def test_snapshot_that_is_held_for_its_tracking_is_held() -> None:
    source = SourceWorld()
    made = source.source_snapshot(sr_1="bare")

    assert not (await cleaned(source, await point_of(contents_of(source, made)))).is_needed


async def test_disk_whose_snapshot_record_is_gone_is_left_to_those_whom_it_is_for() -> None:
    source = SourceWorld()
    made = source.source_snapshot(sr_2="held")
    source.destroy(made)

    assert not (await cleaned(source)).is_needed


async def test_each_snapshot_is_decided_by_itself() -> None:
    source = SourceWorld()
    source.source_snapshot("run-1", **HELD)
    replicated = source.source_snapshot("run-2", **WANTED)
    lost = source.source_snapshot("run-3", **WANTED)

    found = await cleaned(source, await point_of(contents_of(source, replicated)))

    assert refs(found.hold) == [replicated]
    assert refs(found.release) == [lost]


async def test_base_that_is_kept_is_one_that_the_next_run_can_use() -> None:
    source = SourceWorld()
    made = source.source_snapshot(**WANTED)
    target = await point_of(contents_of(source, made))

    side: SourceSide = await source.read()

    assert decide_source(side, target, US).release == ()
    assert {base.uuid for base in side.bases()} == set(contents_of(source, made))


async def test_what_a_sweep_removes_is_the_same_for_all_disks_and_for_those_that_travel() -> None:
    """`forget` has no job that says which disks stay behind, and sweeps what a run sweeps."""
    source = SourceWorld()
    source.raw(source.roots[1])["name_label"] = "[NOBAK] scratch"
    replicated = source.source_snapshot("run-1", **WANTED)
    source.source_snapshot("run-2", **HELD)
    source.source_snapshot("run-3", **WANTED)
    alone = source.source_snapshot("run-4", **WANTED)
    source.unsigned_snapshot()
    target = await point_of(contents_of(source, replicated))
    source.destroy(alone)
    whole = await source.read()

    travelling = without_excluded(job(), whole)
    cleaning = decide_source(whole, target, US)

    assert [disk.vdi.ref for disk in travelling.excluded] == [source.roots[1]]
    assert [len(what) for what in (cleaning.destroy, cleaning.hold, cleaning.release)] == [1, 1, 3]
    assert decide_source(travelling, target, US) == cleaning
    assert uuids(travelling.drives) == uuids(whole.drives)
    releases = decide_prune(whole, target, US, hold_bases=LONG)
    assert len(releases) == 5
    assert decide_prune(travelling, target, US, hold_bases=LONG) == releases


# -- after a commit ------------------------------------------------------------------------------

LONG = 1e9
SHORT = 0.5


async def pruned(
    source: SourceWorld, target: TargetSide, hold_bases: float = LONG, busy: str = ""
) -> list[tuple[Ref, str]]:
    side = await source.read()
    found = decide_prune(side, target, US, hold_bases=hold_bases, busy={busy})
    return list(zip(refs(each.what for each in found), [each.sr for each in found], strict=True))


async def newest(source: SourceWorld, snapshot: Ref) -> TargetSide:
    """Return a target whose newest point holds a snapshot."""
    side = await point_of(contents_of(source, snapshot))
    [point] = side.points
    mark = dataclasses.replace(point.mark, snapshot=source.uuid(snapshot))
    return dataclasses.replace(side, points=(dataclasses.replace(point, mark=mark),))


def moved(source: SourceWorld, snapshot: Ref, **facts: Any) -> None:
    """Let a snapshot and its disks tell another moment."""
    for each in (snapshot, *source.disks(snapshot)):
        source.set_key(each, KEY, dataclasses.replace(source.mark_on(each), **facts).encode())


async def test_after_a_commit_all_but_the_newest_base_are_released() -> None:
    source = SourceWorld()
    older = source.source_snapshot("run-1", **HELD)
    base = source.source_snapshot("run-2", **HELD)

    assert await pruned(source, await newest(source, base)) == [(older, US)]


async def test_after_a_commit_metadata_of_older_bases_is_released() -> None:
    source = SourceWorld()
    older = source.source_snapshot("run-1", sr_1="bare")
    disks = source.disks(older)
    source.destroy(older)
    base = source.source_snapshot("run-2", **HELD)

    assert await pruned(source, await newest(source, base)) == [(disk, US) for disk in disks]


async def test_base_of_another_target_stays_after_a_commit() -> None:
    source = SourceWorld()
    shared = source.source_snapshot("run-1", **HELD, sr_2="held")
    source.source_snapshot("run-2", sr_2="wanted")
    base = source.source_snapshot("run-3", **HELD)

    assert await pruned(source, await newest(source, base)) == [(shared, US)]


async def test_base_is_given_up_for_a_target_that_has_not_come_for_too_long() -> None:
    source = SourceWorld()
    old = source.source_snapshot("run-1", sr_2="held")
    base = source.source_snapshot("run-2", **HELD, sr_2="wanted")

    assert await pruned(source, await newest(source, base), SHORT) == [(old, THEM)]


async def test_base_is_not_given_up_for_a_target_that_is_being_served() -> None:
    source = SourceWorld()
    source.source_snapshot("run-1", sr_2="held")
    base = source.source_snapshot("run-2", **HELD)

    assert await pruned(source, await newest(source, base), SHORT, busy=THEM) == []


async def test_base_is_given_up_by_its_age_in_seconds() -> None:
    source = SourceWorld()
    old = source.source_snapshot("run-1", sr_2="held")
    base = source.source_snapshot("run-2", **HELD)
    moved(source, old, moment="2026-03-02T12:00:00+00:00")
    moved(source, base, moment="2026-03-02T13:00:00+00:00")

    assert await pruned(source, await newest(source, base), 3600.0) == []
    assert await pruned(source, await newest(source, base), 3599.0) == [(old, THEM)]


async def test_age_of_a_base_is_told_by_the_daemons_clock() -> None:
    source = SourceWorld()
    old = source.source_snapshot("run-1", sr_2="held")
    base = source.source_snapshot("run-2", **HELD)
    moved(source, old, moment="2026-03-02T12:00:00+00:00")
    moved(source, base, moment="2026-03-05T13:00:00+00:00", offset=3 * 86400)

    assert await pruned(source, await newest(source, base), 3600.0) == []


@pytest.mark.parametrize("which", ["old", "newest"])
async def test_base_whose_age_cannot_be_told_is_not_given_up(which: str) -> None:
    source = SourceWorld()
    old = source.source_snapshot("run-1", sr_2="held")
    base = source.source_snapshot("run-2", **HELD)
    moved(source, old if which == "old" else base, moment="never")

    assert await pruned(source, await newest(source, base), SHORT) == []


async def test_now_is_when_the_newest_snapshot_was_taken_whatever_older_ones_say() -> None:
    source = SourceWorld()
    old = source.source_snapshot("run-1", sr_2="held")
    base = source.source_snapshot("run-2", **HELD, sr_2="wanted")
    moved(source, old, moment="2056-03-02T12:00:00+00:00")

    assert await pruned(source, await newest(source, base), SHORT) == []


async def test_own_base_is_never_given_up_however_old_it_is() -> None:
    source = SourceWorld()
    base = source.source_snapshot("run-1", **HELD)
    source.source_snapshot("run-2", sr_2="held")

    assert await pruned(source, await newest(source, base), SHORT) == []
