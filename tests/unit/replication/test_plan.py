from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from xorepd.replication.deciding.plan import (
    Delta,
    Full,
    FullReason,
    Resync,
    ResyncReason,
    SourceDisk,
    choose_base,
    limit_deltas,
    without_changes,
)
from xorepd.replication.format.evidence import PointDisk, RestorePoint, SourceBase
from xorepd.replication.format.ownership import Content

DISK = SourceDisk("d-0", "0", "root", 1000)


def point(
    content: str, *, disk: str = "d-0", size: int = 1000, is_usable: bool = True
) -> RestorePoint:
    """Return a restore point of one disk, which is named after its content."""
    return RestorePoint(
        f"p-{content}", (PointDisk(f"copy-{content}", disk, content, size, is_usable),)
    )


def base(uuid: str, disk: str = "d-0") -> SourceBase:
    return SourceBase(uuid, disk)


def test_first_run_is_full() -> None:
    assert choose_base(DISK, [], [base("s-1")]) == Full(FullReason.FIRST_RUN)


def test_disk_that_no_point_holds_is_sent_whole() -> None:
    found = choose_base(DISK, [point("s-1", disk="d-9")], [base("s-1", disk="d-9")])

    assert found == Full(FullReason.NEW_DISK)


def test_disk_that_a_revert_replaced_is_sent_as_a_delta() -> None:
    # XAPI clones the snapshot's disk, and the snapshots of the old disk become those of the clone.
    found = choose_base(DISK, [point("s-1", disk="before")], [base("s-1")])

    assert found == Delta(base="s-1", onto="copy-s-1")


def test_lost_base_falls_back_to_full() -> None:
    found = choose_base(DISK, [point("s-1")], [base("s-2")])

    assert found == Full(FullReason.BASE_GONE_ON_SOURCE)


def test_base_of_another_disk_is_no_base() -> None:
    found = choose_base(DISK, [point("s-1")], [base("s-1", disk="d-9")])

    assert found == Full(FullReason.BASE_GONE_ON_SOURCE)


def test_point_whose_disk_cannot_be_used_falls_back_to_full() -> None:
    found = choose_base(DISK, [point("s-1", is_usable=False)], [base("s-1")])

    assert found == Full(FullReason.BASE_GONE_ON_TARGET)


def test_disk_that_shrank_is_sent_whole() -> None:
    found = choose_base(DISK, [point("s-1", size=1001)], [base("s-1")])

    assert found == Full(FullReason.DISK_SHRANK)


def test_disk_that_grew_is_sent_as_a_delta() -> None:
    found = choose_base(DISK, [point("s-1", size=500)], [base("s-1")])

    assert found == Delta("s-1", "copy-s-1")


def test_newest_common_base_wins() -> None:
    points = [point("s-3"), point("s-2"), point("s-1")]

    assert choose_base(DISK, points, [base("s-1"), base("s-2")]) == Delta("s-2", "copy-s-2")


def test_order_of_the_source_snapshots_does_not_matter() -> None:
    points = [point("s-2"), point("s-1")]

    found = choose_base(DISK, points, [base("s-1"), base("s-2")])

    assert (
        found == choose_base(DISK, points, [base("s-2"), base("s-1")]) == Delta("s-2", "copy-s-2")
    )


def test_older_base_is_taken_where_the_newest_cannot_be_used() -> None:
    points = [point("s-3", is_usable=False), point("s-2", size=2000), point("s-1")]

    found = choose_base(DISK, points, [base("s-1"), base("s-2"), base("s-3")])

    assert found == Delta("s-1", "copy-s-1")


def test_target_that_missed_runs_still_gets_a_delta() -> None:
    found = choose_base(DISK, [point("s-1")], [base(f"s-{n}") for n in range(10, 0, -1)])

    assert found == Delta("s-1", "copy-s-1")


def test_disk_missing_in_the_newest_point_is_found_in_an_older_one() -> None:
    points = [point("s-9", disk="d-9"), point("s-1")]

    assert choose_base(DISK, points, [base("s-1")]) == Delta("s-1", "copy-s-1")


@pytest.mark.parametrize("reason", list(FullReason))
def test_reason_can_be_read_by_machines(reason: FullReason) -> None:
    assert reason.value == reason.name.lower().replace("_", "-")


def test_deltas_are_counted_from_the_disk_that_they_build_on() -> None:
    held = point("s-1").disks[0]
    counted = RestorePoint("p", (replace(held, deltas=6),))

    assert choose_base(DISK, [counted], [base("s-1")]) == Delta("s-1", held.uuid, number=7)


@pytest.mark.parametrize(("number", "goes_on"), [(1, True), (7, True), (8, False), (9, False)])
def test_full_is_due_after_so_many_deltas(number: int, goes_on: bool) -> None:
    delta = Delta("s-1", "copy", number)

    assert limit_deltas(delta, 7) == (delta if goes_on else Full(FullReason.DUE))


def test_full_is_never_due_where_no_job_wants_one() -> None:
    delta, full = Delta("s-1", "copy", 10_000), Full(FullReason.NEW_DISK)

    assert limit_deltas(delta, None) == delta
    assert limit_deltas(full, 1) == full


def copy(snapshot: str, **changes: Any) -> PointDisk:
    plain: dict[str, Any] = {
        "uuid": f"copy-{snapshot}",
        "disk": "d-0",
        "snapshot": snapshot,
        "virtual_size": 1000,
    }
    return PointDisk(**plain | {"is_usable": True, "device": "0"} | changes)


LOST = copy("", uuid="lost", disk="", content=Content.UNKNOWN, is_lost=True)
"""A disk that a restore point names and that carries no mark any more."""


def chosen(
    points: Sequence[PointDisk], bases: Sequence[SourceBase], *, resync: bool = False
) -> Delta | Resync | Full:
    """Choose among restore points of one disk each, newest first."""
    return choose_base(DISK, [RestorePoint("p", (each,)) for each in points], bases, resync=resync)


def compared(
    points: list[PointDisk], bases: Sequence[SourceBase] = (), others: Sequence[str] = ()
) -> Delta | Resync | Full:
    newest_first = [RestorePoint(f"p-{each.snapshot}", (each,)) for each in points]
    return choose_base(DISK, newest_first, bases, others=others, resync=True)


def test_a_lost_base_costs_a_comparison_with_the_newest_copy() -> None:
    found = compared([copy("s-2"), copy("s-1")], [base("s-9")])

    assert found == Resync("copy-s-2", ResyncReason.BASE_GONE_ON_SOURCE)


def test_a_copy_that_cannot_be_read_is_not_compared_with() -> None:
    found = compared([copy("s-2", is_usable=False), copy("s-1")])

    assert found == Resync("copy-s-1", ResyncReason.BASE_GONE_ON_SOURCE)


def test_a_lost_disk_of_a_point_is_made_up_for_by_an_older_one() -> None:
    found = compared([copy("s-2", is_usable=False), copy("s-1")], [base("s-2")])

    assert found == Resync("copy-s-1", ResyncReason.BASE_GONE_ON_TARGET)


def test_a_disk_that_moved_is_compared_with_the_one_that_was_at_its_device() -> None:
    found = compared([copy("s-1", disk="d-gone")])

    assert found == Resync("copy-s-1", ResyncReason.DISK_MOVED)


@pytest.mark.parametrize(
    ("changes", "others"),
    [({"device": "1"}, []), ({"virtual_size": 999}, []), ({}, ["d-gone"])],
    ids=["another-device", "another-size", "still-there"],
)
def test_a_new_disk_is_not_taken_for_one_that_moved(
    changes: dict[str, Any], others: list[str]
) -> None:
    found = compared([copy("s-1", **({"disk": "d-gone"} | changes))], others=others)

    assert found == Full(FullReason.NEW_DISK)


def test_a_disk_that_shrank_is_compared_with_a_copy_that_is_small_enough() -> None:
    larger = copy("s-2", virtual_size=1001)

    assert compared([larger], [base("s-2")]) == Full(FullReason.DISK_SHRANK)
    found = compared([larger, copy("s-1")], [base("s-2")])
    assert found == Resync("copy-s-1", ResyncReason.DISK_SHRANK)


def test_a_proven_base_is_better_than_a_comparison() -> None:
    assert compared([copy("s-2"), copy("s-1")], [base("s-1")]) == Delta("s-1", "copy-s-1")


def test_nothing_is_compared_on_a_first_run() -> None:
    assert compared([]) == Full(FullReason.FIRST_RUN)


@pytest.mark.parametrize(
    ("resync", "how"),
    [
        (True, Resync("copy", ResyncReason.CHANGES_UNKNOWN, 4)),
        (False, Full(FullReason.CHANGES_UNKNOWN)),
    ],
)
def test_a_base_that_says_nothing_costs_a_comparison_or_a_full(
    resync: bool, how: Resync | Full
) -> None:
    assert without_changes(Delta("s-1", "copy", 4), resync=resync) == how


# -- what both disks hold ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Content.CHANGED, FullReason.POINT_CHANGED),
        (Content.UNKNOWN, FullReason.CONTENT_UNKNOWN),
    ],
)
def test_point_that_is_not_proven_is_no_base(content: Content, reason: FullReason) -> None:
    held = copy("s-1", content=content)

    assert chosen([held], [base("s-1")]) == Full(reason)
    compared_with = Resync(held.uuid, ResyncReason(reason.value))
    assert chosen([held], [base("s-1")], resync=True) == compared_with


def test_points_of_which_some_are_changed_and_some_unknown_are_unknown() -> None:
    points = [copy("s-2", content=Content.CHANGED), copy("s-1", content=Content.UNKNOWN)]

    assert chosen(points, [base("s-1"), base("s-2")]) == Full(FullReason.CONTENT_UNKNOWN)


@pytest.mark.parametrize("content", [Content.CHANGED, Content.UNKNOWN])
def test_older_point_that_is_proven_is_taken_instead_of_the_newest(content: Content) -> None:
    points = [copy("s-2", content=content), copy("s-1")]

    found = chosen(points, [base("s-1"), base("s-2")], resync=True)

    assert found == Delta("s-1", "copy-s-1")


def test_source_snapshot_that_was_written_to_is_no_base() -> None:
    changed = SourceBase("s-1", "d-0", Content.CHANGED)

    assert chosen([copy("s-1")], [changed]) == Full(FullReason.BASE_CHANGED)
    found = chosen([copy("s-1")], [changed], resync=True)
    assert found == Resync("copy-s-1", ResyncReason.BASE_CHANGED)


def test_source_snapshot_that_does_not_say_what_it_held_is_a_base() -> None:
    # Nothing that we do not look at writes to it, and there is no other side to compare it with.
    unknown = SourceBase("s-1", "d-0", Content.UNKNOWN)

    assert chosen([copy("s-1")], [unknown]) == Delta("s-1", "copy-s-1")


def test_older_base_that_is_proven_is_taken_instead_of_one_that_was_written_to() -> None:
    bases = [SourceBase("s-2", "d-0", Content.CHANGED), base("s-1")]

    assert chosen([copy("s-2"), copy("s-1")], bases) == Delta("s-1", "copy-s-1")


def test_base_that_was_written_to_counts_before_what_became_of_its_copy() -> None:
    changed = SourceBase("s-1", "d-0", Content.CHANGED)
    held = copy("s-1", content=Content.CHANGED)

    assert chosen([held], [changed]) == Full(FullReason.BASE_CHANGED)


def test_disk_that_shrank_is_told_by_what_is_proven() -> None:
    points = [copy("s-2", content=Content.CHANGED), copy("s-1", virtual_size=1001)]

    assert chosen(points, [base("s-1"), base("s-2")]) == Full(FullReason.DISK_SHRANK)


def test_points_that_have_lost_their_marks_say_so() -> None:
    assert chosen([LOST], [base("s-1")]) == Full(FullReason.MARKS_LOST)


def test_disk_that_has_lost_its_marks_is_compared_with_where_it_is_at_the_device() -> None:
    assert chosen([LOST], [], resync=True) == Resync("lost", ResyncReason.MARKS_LOST)


@pytest.mark.parametrize("changes", [{"is_usable": False}, {"device": "1"}, {"virtual_size": 999}])
def test_disk_that_has_lost_its_marks_and_may_be_another_is_not_compared_with(
    changes: dict[str, Any],
) -> None:
    lost = replace(LOST, **changes)

    assert chosen([lost], [], resync=True) == Full(FullReason.MARKS_LOST)


def test_disk_that_an_older_point_holds_has_not_lost_its_marks() -> None:
    assert chosen([LOST, copy("s-1")], [base("s-1")]) == Delta("s-1", "copy-s-1")


def test_comparison_prefers_a_copy_that_is_proven_to_a_newer_one() -> None:
    points = [
        copy("s-4", content=Content.CHANGED),
        copy("s-3", content=Content.UNKNOWN),
        copy("s-2"),
        copy("s-1"),
    ]

    assert chosen(points, [], resync=True) == Resync("copy-s-2", ResyncReason.BASE_GONE_ON_SOURCE)
    found = chosen(points[:2], [], resync=True)
    assert found == Resync("copy-s-4", ResyncReason.BASE_GONE_ON_SOURCE)


@pytest.mark.parametrize("reason", list(ResyncReason))
def test_reason_of_a_comparison_can_be_read_by_machines(reason: ResyncReason) -> None:
    assert reason.value == reason.name.lower().replace("_", "-")


@pytest.mark.parametrize(
    "reason",
    sorted(set(FullReason) - {FullReason.FIRST_RUN, FullReason.NEW_DISK, FullReason.DUE}),
)
def test_every_full_that_a_comparison_may_spare_has_a_reason_for_that(reason: FullReason) -> None:
    assert ResyncReason(reason.value).name == reason.name
