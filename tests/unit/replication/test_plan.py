from __future__ import annotations

from dataclasses import replace

import pytest

from xorepd.replication.plan import (
    Delta,
    Full,
    FullReason,
    Point,
    PointDisk,
    SourceBase,
    SourceDisk,
    choose_base,
    limit_deltas,
)

DISK = SourceDisk("d-0", "0", "root", 1000)


def point(content: str, *, disk: str = "d-0", size: int = 1000, is_usable: bool = True) -> Point:
    """Return a restore point of one disk, which is named after its content."""
    return Point(f"p-{content}", (PointDisk(f"copy-{content}", disk, content, size, is_usable),))


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
    counted = Point("p", (replace(held, deltas=6),))

    assert choose_base(DISK, [counted], [base("s-1")]) == Delta("s-1", held.uuid, number=7)


@pytest.mark.parametrize(("number", "goes_on"), [(1, True), (7, True), (8, False), (9, False)])
def test_full_is_due_after_so_many_deltas(number: int, goes_on: bool) -> None:
    delta = Delta("s-1", "copy", number)

    assert limit_deltas(delta, 7) == (delta if goes_on else Full(FullReason.DUE))


def test_full_is_never_due_where_no_job_wants_one() -> None:
    delta, full = Delta("s-1", "copy", 10_000), Full(FullReason.NEW_DISK)

    assert limit_deltas(delta, None) == delta
    assert limit_deltas(full, 1) == full
