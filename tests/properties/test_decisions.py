"""Base choice and marks over anything that pools may hold."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.xapi import raws
from xorepd.ids import Ref
from xorepd.replication.deciding.plan import (
    Delta,
    Full,
    Resync,
    ResyncReason,
    SourceDisk,
    choose_base,
)
from xorepd.replication.format.evidence import PointDisk, RestorePoint, SourceBase
from xorepd.replication.format.marks import (
    KEY,
    Commit,
    Mark,
    ReplicaKey,
    Role,
    decode,
    is_from_the_future,
    next_order,
)
from xorepd.replication.format.ownership import Content, own_mark
from xorepd.xapi.records import Vm

DISKS = st.sampled_from(["d-0", "d-1"])
SNAPSHOTS = st.sampled_from(["s-1", "s-2", "s-3", "s-4"])
CONTENTS = st.sampled_from(Content)
POINT_DISKS = st.builds(
    PointDisk,
    uuid=st.uuids().map(str),
    disk=DISKS,
    snapshot=SNAPSHOTS,
    virtual_size=st.sampled_from([900, 1000, 1100]),
    is_usable=st.booleans(),
    content=CONTENTS,
    device=st.sampled_from(["0", "1"]),
) | st.builds(
    PointDisk,
    uuid=st.uuids().map(str),
    disk=st.just(""),
    snapshot=st.just(""),
    virtual_size=st.sampled_from([0, 1000]),
    is_usable=st.booleans(),
    content=st.just(Content.UNKNOWN),
    device=st.sampled_from(["0", "1"]),
    is_lost=st.just(True),
)
POINTS = st.lists(
    st.builds(RestorePoint, st.uuids().map(str), st.lists(POINT_DISKS, max_size=3).map(tuple)),
    max_size=5,
)
BASES = st.lists(
    st.builds(SourceBase, uuid=SNAPSHOTS, disk=DISKS, content=CONTENTS),
    max_size=4,
    unique_by=lambda base: base.uuid,
)
DISK = SourceDisk("d-0", "0", "root", 1000)


def serves(copy: PointDisk, bases: list[SourceBase]) -> bool:
    """Return whether both sides prove that a copy is a base of the disk."""
    return (
        copy.is_usable
        and copy.content is Content.PROVEN
        and copy.virtual_size <= DISK.virtual_size
        and any(
            base.uuid == copy.snapshot
            and base.disk == DISK.uuid
            and base.content is not Content.CHANGED
            for base in bases
        )
    )


@given(POINTS, BASES, st.booleans())
def test_base_of_a_delta_is_proven_on_both_sides(
    points: list[RestorePoint], bases: list[SourceBase], resync: bool
) -> None:
    found = choose_base(DISK, points, bases, resync=resync)

    if isinstance(found, Delta):
        copies = {copy.uuid: copy for point in points for copy in point.disks}
        assert copies[found.onto].snapshot == found.base
        assert serves(copies[found.onto], bases)


@given(POINTS, BASES, st.booleans())
def test_less_than_a_delta_is_planned_only_where_no_delta_is_possible(
    points: list[RestorePoint], bases: list[SourceBase], resync: bool
) -> None:
    found = choose_base(DISK, points, bases, resync=resync)

    if not isinstance(found, Delta):
        assert not any(serves(copy, bases) for point in points for copy in point.disks)


@given(POINTS, BASES)
def test_comparison_is_with_a_copy_that_can_be_cloned_and_with_a_proven_one_if_there_is_any(
    points: list[RestorePoint], bases: list[SourceBase]
) -> None:
    found = choose_base(DISK, points, bases, resync=True)

    if isinstance(found, Resync):
        copies = {copy.uuid: copy for point in points for copy in point.disks}
        onto = copies[found.onto]
        assert onto.is_usable
        assert onto.virtual_size <= DISK.virtual_size
        assert found.reason.value == getattr(choose_base(DISK, points, bases), "reason", "") or (
            onto.disk != DISK.uuid and found.reason is ResyncReason.DISK_MOVED
        )
        alike = [copy for copy in copies.values() if copy.disk == DISK.uuid and copy.is_usable]
        if any(c.content is Content.PROVEN and c.virtual_size <= 1000 for c in alike):
            assert onto.content is Content.PROVEN


@given(POINTS, BASES)
def test_no_newer_point_could_have_been_the_base(
    points: list[RestorePoint], bases: list[SourceBase]
) -> None:
    found = choose_base(DISK, points, bases)

    if isinstance(found, Delta):
        at = next(i for i, p in enumerate(points) if found.onto in {c.uuid for c in p.disks})
        assert isinstance(choose_base(DISK, points[:at], bases), Full)


TEXTS = st.text(max_size=20)
NUMBERS = st.integers(0, 2**53 - 1)
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=3)
TIMES = st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)
MARKS = st.builds(
    Mark,
    role=st.sampled_from(Role),
    stream=st.builds(ReplicaKey, TEXTS, TEXTS, TEXTS),
    run=st.text(min_size=1, max_size=20),
    self=TEXTS,
    ref=TEXTS,
    attempt=TEXTS,
    lineage=TEXTS,
    epoch=NUMBERS,
    job=TEXTS,
    snapshot=TEXTS,
    disk=TEXTS,
    device=TEXTS,
    order=NUMBERS,
    moment=TEXTS | TIMES,
    offset=st.integers(1 - 2**53, 2**53 - 1),
    arrived=TEXTS | TIMES,
    content=TEXTS,
    disks=MAPS,
    deltas=NUMBERS,
    confirmed=st.booleans(),
    commit=st.none() | st.builds(Commit, TEXTS, MAPS, MAPS, TEXTS, TEXTS),
    onto=TEXTS,
    base=TEXTS,
    reason=TEXTS,
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


@given(MARKS, TEXTS, TEXTS)
def test_mark_counts_on_no_object_but_its_own(mark: Mark, uuid: str, ref: str) -> None:
    raw = raws.vm(uuid, other_config={KEY: mark.encode()})

    found = own_mark(Vm.parse(Ref(ref), raw))

    assert found == (mark if (uuid, mark.ref or ref) == (mark.self, ref) else None)


@given(MARKS, st.datetimes(timezones=st.just(UTC)))
def test_moments_of_any_mark_can_be_told(mark: Mark, arrived: datetime) -> None:
    told = mark.taken_at

    assert told is None or told.tzinfo is not None
    assert is_from_the_future(mark, arrived) in (True, False)
    if told is not None and not mark.arrived and told <= arrived:
        assert not is_from_the_future(mark, arrived)


@given(st.lists(NUMBERS, max_size=12))
def test_new_order_is_after_all_that_are_known(known: list[int]) -> None:
    assert all(order < next_order(known) for order in known)


SECONDS = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 -- the bounds have to be without


@given(MARKS, SECONDS)
def test_mark_of_the_earlier_version_says_what_it_said_and_no_more(
    mark: Mark, time: datetime
) -> None:
    plain = json.loads(mark.encode()) | {"v": 1, "time": time.isoformat()}
    if mark.commit is not None:
        plain["commit"] = {key: plain["commit"][key] for key in ("run", "old", "new")}
    blank = Mark(mark.role, mark.stream, mark.run)

    found = decode({KEY: json.dumps(plain)})

    assert found is not None
    later = ("ref", "attempt", "lineage", "epoch", "offset", "arrived", "content", "disks")
    said = replace(mark, **{name: getattr(blank, name) for name in later})
    commit = mark.commit and replace(mark.commit, point="", title="")
    assert found == replace(said, moment=time.isoformat(), order=found.order, commit=commit)


@given(SECONDS, SECONDS)
def test_orders_of_the_earlier_version_are_as_its_times(one: datetime, other: datetime) -> None:
    def order(time: datetime) -> int:
        plain = {"role": "point", "stream": {"pool": "p", "vm": "v", "sr": "s"}, "run": "r"}
        mark = decode({KEY: json.dumps({"v": 1, **plain, "time": time.isoformat()})})
        assert mark is not None
        return mark.order

    assert (order(one) < order(other)) == (one < other)


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
        assert hash((found.stream, found.self, found.ref, found.snapshot, found.order))
