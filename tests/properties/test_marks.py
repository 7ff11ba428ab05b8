"""Marks over anything that pools may hold."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.xapi import raws
from xorepd.ids import Ref
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
from xorepd.replication.format.ownership import own_mark
from xorepd.xapi.records import Vm, read_record

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

    found = own_mark(read_record(Vm, Ref(ref), raw))

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
