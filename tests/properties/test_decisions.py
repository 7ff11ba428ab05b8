"""Base choice and marks over anything that pools may hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from xorepd.replication.markers import KEY, Commit, Mark, Role, Stream, decode, next_time, signed
from xorepd.replication.plan import (
    Delta,
    Full,
    Point,
    PointDisk,
    SourceBase,
    SourceDisk,
    choose_base,
)

DISKS = st.sampled_from(["d-0", "d-1"])
CONTENTS = st.sampled_from(["s-1", "s-2", "s-3", "s-4"])
POINT_DISKS = st.builds(
    PointDisk,
    uuid=st.uuids().map(str),
    disk=DISKS,
    content=CONTENTS,
    virtual_size=st.sampled_from([900, 1000, 1100]),
    is_usable=st.booleans(),
)
POINTS = st.lists(
    st.builds(Point, st.uuids().map(str), st.lists(POINT_DISKS, max_size=3).map(tuple)), max_size=5
)
BASES = st.lists(st.builds(SourceBase, uuid=CONTENTS, disk=DISKS), max_size=5)
DISK = SourceDisk("d-0", "0", "root", 1000)


@given(POINTS, BASES)
def test_base_of_a_delta_is_held_on_both_sides(
    points: list[Point], bases: list[SourceBase]
) -> None:
    found = choose_base(DISK, points, bases)

    if isinstance(found, Delta):
        copies = {copy.uuid: copy for point in points for copy in point.disks}
        assert SourceBase(found.base, DISK.uuid) in bases
        assert copies[found.onto].content == found.base
        assert copies[found.onto].is_usable
        assert copies[found.onto].virtual_size <= DISK.virtual_size


@given(POINTS, BASES)
def test_full_copy_is_sent_only_where_no_delta_is_possible(
    points: list[Point], bases: list[SourceBase]
) -> None:
    found = choose_base(DISK, points, bases)

    if isinstance(found, Full):
        assert not any(
            copy.disk == "d-0"
            and copy.is_usable
            and copy.virtual_size <= DISK.virtual_size
            and SourceBase(copy.content, "d-0") in bases
            for point in points
            for copy in point.disks
        )


@given(POINTS, BASES)
def test_no_newer_point_could_have_been_the_base(
    points: list[Point], bases: list[SourceBase]
) -> None:
    found = choose_base(DISK, points, bases)

    if isinstance(found, Delta):
        at = next(i for i, p in enumerate(points) if found.onto in {c.uuid for c in p.disks})
        assert isinstance(choose_base(DISK, points[:at], bases), Full)


TEXTS = st.text(max_size=20)
MARKS = st.builds(
    Mark,
    role=st.sampled_from(Role),
    stream=st.builds(Stream, TEXTS, TEXTS, TEXTS),
    run=st.text(min_size=1, max_size=20),
    self=TEXTS,
    job=TEXTS,
    snapshot=TEXTS,
    disk=TEXTS,
    device=TEXTS,
    time=TEXTS,
    deltas=st.integers(0, 2**53 - 1),
    confirmed=st.booleans(),
    commit=st.none()
    | st.builds(
        Commit, TEXTS, st.dictionaries(TEXTS, TEXTS), st.dictionaries(TEXTS, TEXTS, max_size=3)
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


@given(MARKS)
def test_no_field_of_a_mark_is_lost(mark: Mark) -> None:
    assert decode({KEY: mark.encode()}) == mark


@given(MARKS, st.dictionaries(TEXTS.map("x-".__add__), JSON, max_size=4))
def test_unknown_members_are_ignored(mark: Mark, members: dict[str, object]) -> None:
    text = json.dumps(members | json.loads(mark.encode()))

    assert decode({KEY: text}) == mark


@given(MARKS, TEXTS)
def test_mark_counts_on_no_object_but_its_own(mark: Mark, uuid: str) -> None:
    found = signed({KEY: mark.encode()}, uuid)

    assert found == (mark if uuid == mark.self else None)


MOMENTS = st.integers(0, 9).map(lambda second: datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC))


@given(st.lists(MOMENTS, max_size=12))
def test_marks_are_ordered_as_they_were_written_whatever_the_clock(clock: list[datetime]) -> None:
    times: list[str] = []

    for moment in clock:
        times.append(next_time(moment, times[-2:]))

    assert all(one < other for one, other in pairwise(times))


@given(st.text())
def test_text_that_is_no_mark_is_none(text: str) -> None:
    assert decode({KEY: text}) is None


@given(MARKS, st.sampled_from(sorted(Mark.__dataclass_fields__)), JSON)
def test_damaged_member_never_raises_and_what_is_understood_can_be_used(
    mark: Mark, member: str, value: object
) -> None:
    text = json.dumps(json.loads(mark.encode()) | {member: value})

    found = decode({KEY: text})

    if found is not None:
        assert decode({KEY: found.encode()}) == found
        assert hash((found.stream, found.self, found.snapshot, found.time))
