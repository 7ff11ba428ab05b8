from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta

import pytest

from xorepd.replication.format.marks import (
    KEY,
    SNAPSHOTTING,
    XO_KEYS_OF_POINTS,
    Commit,
    Mark,
    ReplicaKey,
    Role,
    decode,
    is_from_the_future,
    next_order,
    read_time,
    snapshotting_on,
    snapshotting_text,
    xo_point,
    xo_source,
    xo_time,
)

STREAM = ReplicaKey("pool-1", "vm-1", "sr-1")
COMMIT = Commit("run-1", {"0": "old-0"}, {"0": "new-0", "1": "new-1"}, "unmarked-1", "point 1")
MARK = Mark(
    Role.REPLICA,
    STREAM,
    "run-1",
    self="u-1",
    ref="OpaqueRef:1",
    attempt="a-1",
    lineage="pool-0/vm-0",
    epoch=2,
    job="web",
    snapshot="s-1",
    disk="d-1",
    device="0",
    order=7,
    moment="2026-03-02T12:00:00+00:00",
    offset=-3,
    arrived="2026-03-02T12:05:00+00:00",
    content="content-1",
    disks={"0": "v-0"},
    deltas=4,
    confirmed=True,
    commit=COMMIT,
    onto="o-1",
    base="b-1",
    reason="first-run",
)
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def written(mark: Mark, **members: object) -> dict[str, str]:
    """Return the other_config with a mark, some members of it changed by hand."""
    return {KEY: json.dumps(json.loads(mark.encode()) | members)}


def test_mark_with_everything_comes_back() -> None:
    assert decode({KEY: MARK.encode()}) == MARK


def test_mark_with_nothing_optional_comes_back() -> None:
    mark = Mark(Role.DISK, STREAM, "run-1")

    assert decode({KEY: mark.encode()}) == mark


def test_what_is_empty_is_not_written() -> None:
    assert set(json.loads(Mark(Role.DISK, STREAM, "run-1").encode())) == {
        "v",
        "role",
        "stream",
        "run",
    }


def test_commit_of_a_first_run_comes_back_with_its_empty_side() -> None:
    mark = replace(MARK, commit=Commit("run-1", {}, {"0": "new"}))

    assert decode({KEY: mark.encode()}) == mark


def test_nothing_of_the_mark_with_everything_is_empty() -> None:
    assert all(getattr(MARK, field.name) for field in fields(MARK))


def test_mark_is_written_on_another_object_with_its_uuid_and_reference() -> None:
    assert MARK.on("u-2", "OpaqueRef:2") == replace(MARK, self="u-2", ref="OpaqueRef:2")


def test_members_of_a_later_release_are_ignored() -> None:
    assert MARK.commit is not None
    commit = asdict(MARK.commit) | {"notes": 1}

    assert decode(written(MARK, notes=["x"], time="2020-01-01T00:00:00+00:00")) == MARK
    assert decode(written(MARK, commit=commit)) == MARK


@pytest.mark.parametrize("version", [0, 3, -1, "2", None, [2], {"v": 2}, 2.5])
def test_mark_of_another_version_is_none_of_ours(version: object) -> None:
    assert decode(written(MARK, v=version)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "true",
        "1",
        '"text"',
        "[]",
        "{}",
        '{"v":1}',
        '{"v":2}',
        '{"v":' + "9" * 5000 + "}",
        "{",
        "\x00",
        "NaN",
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
)
def test_garbage_is_no_mark(text: str) -> None:
    assert decode({KEY: text}) is None


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("role", "king"),
        ("role", None),
        ("role", ["disk"]),
        ("stream", None),
        ("stream", "pool/vm/sr"),
        ("stream", {"pool": "p", "vm": "v"}),
        ("stream", {"pool": "p", "vm": "v", "sr": ["s"]}),
        ("run", 5),
        ("run", None),
        ("self", ["u-1"]),
        ("ref", 1),
        ("attempt", None),
        ("lineage", {"pool": "p"}),
        ("epoch", -1),
        ("epoch", "2"),
        ("epoch", 2**53),
        ("epoch", True),
        ("snapshot", ["s-1"]),
        ("order", -1),
        ("order", 1.0),
        ("order", "7"),
        ("order", 2**53),
        ("order", None),
        ("order", float("nan")),
        ("moment", 5),
        ("offset", 2**53),
        ("offset", -(2**53)),
        ("offset", 0.5),
        ("arrived", 5),
        ("content", None),
        ("disks", []),
        ("disks", None),
        ("disks", {"0": 1}),
        ("disks", {"0": {"1": "v"}}),
        ("deltas", -1),
        ("deltas", False),
        ("reason", 5),
        ("confirmed", "false"),
        ("commit", "run-1"),
        ("commit", {"run": "r"}),
        ("commit", {"run": "r", "old": [], "new": {}}),
        ("commit", {"run": "r", "old": {}, "new": {"0": None}}),
        ("commit", {"run": "r", "old": {}, "new": {}, "point": 5}),
        ("commit", {"run": "r", "old": {}, "new": {}, "title": None}),
    ],
)
def test_mark_with_a_member_of_another_type_is_no_mark(member: str, value: object) -> None:
    assert decode(written(MARK, **{member: value})) is None


@pytest.mark.parametrize("value", [5, None, ["x"]])
@pytest.mark.parametrize("member", [each.name for each in fields(Mark) if each.type == "str"])
def test_mark_whose_text_is_none_is_no_mark(member: str, value: object) -> None:
    assert decode(written(MARK, **{member: value})) is None


@pytest.mark.parametrize("member", ["role", "stream", "run"])
def test_mark_without_what_every_mark_has_is_no_mark(member: str) -> None:
    plain = json.loads(MARK.encode())
    del plain[member]

    assert decode({KEY: json.dumps(plain)}) is None


def test_object_without_our_key_has_no_mark() -> None:
    assert decode({"xo:backup:job": "j"}) is None


@pytest.mark.parametrize("size", [2, 4096, 1 << 20])
def test_mark_of_any_size_is_read_or_is_none(size: int) -> None:
    disks = {str(number): f"v-{number}" for number in range(size // 16)}

    assert decode(written(MARK, disks=disks)) == replace(MARK, disks=disks)


# -- the earlier version -------------------------------------------------------------------------

TIME = "2026-03-02T12:00:00.000001+00:00"
EARLIER = {
    "v": 1,
    "role": "replica",
    "stream": {"pool": "pool-1", "vm": "vm-1", "sr": "sr-1"},
    "run": "run-1",
    "self": "u-1",
    "job": "web",
    "snapshot": "s-1",
    "disk": "d-1",
    "device": "0",
    "time": TIME,
    "deltas": 4,
    "confirmed": True,
    "commit": {"run": "run-1", "old": {"0": "old-0"}, "new": {"0": "new-0", "1": "new-1"}},
    "onto": "o-1",
    "base": "b-1",
    "reason": "first-run",
}


def earlier(**members: object) -> Mark | None:
    """Read a mark as earlier versions wrote it, some members of it changed by hand."""
    return decode({KEY: json.dumps(EARLIER | members)})


def test_mark_of_the_earlier_version_is_read_with_all_that_it_says() -> None:
    assert earlier() == Mark(
        Role.REPLICA,
        STREAM,
        "run-1",
        self="u-1",
        job="web",
        snapshot="s-1",
        disk="d-1",
        device="0",
        order=1772452800000001,
        moment=TIME,
        deltas=4,
        confirmed=True,
        commit=replace(COMMIT, point="", title=""),
        onto="o-1",
        base="b-1",
        reason="first-run",
    )


def test_orders_of_the_earlier_version_are_as_its_times_and_before_the_next_number() -> None:
    times = ["1969-12-31T00:00:00+00:00", "2026-03-02T12:00:00+00:00", TIME]
    found = [earlier(time=time) for time in (*times, "2026-03-02T15:00:00+02:00")]

    orders = [mark.order for mark in found if mark is not None]

    assert orders == sorted(orders)
    assert len(set(orders)) == len(found)
    assert next_order(orders) > orders[-1]


@pytest.mark.parametrize("time", ["", "never", "2026-03-02", "2026-03-02T12:00:00"])
def test_earlier_time_that_cannot_be_read_comes_before_all_others(time: str) -> None:
    mark = earlier(time=time)

    assert mark is not None
    assert (mark.order, mark.moment, mark.taken_at) == (0, time, None)


@pytest.mark.parametrize("time", [5, None, ["2026-03-02T12:00:00+00:00"], {}])
def test_earlier_time_of_another_type_is_no_mark(time: object) -> None:
    assert earlier(time=time) is None


def test_earlier_mark_without_a_time_is_read() -> None:
    plain = {key: value for key, value in EARLIER.items() if key != "time"}
    mark = decode({KEY: json.dumps(plain)})

    assert mark is not None
    assert (mark.order, mark.moment) == (0, "")


def test_members_that_the_earlier_version_did_not_have_are_not_believed_there() -> None:
    later = {"ref": "OpaqueRef:1", "content": "c", "order": 5, "disks": {"0": "v"}, "epoch": 9}

    assert earlier(**later, arrived="x", offset=5, moment="y", attempt="a", notes=1) == earlier()


# -- order and moment ----------------------------------------------------------------------------


def test_first_snapshot_of_a_stream_is_the_first() -> None:
    assert next_order([]) == 1


def test_snapshot_comes_after_all_that_are_known() -> None:
    assert next_order([3, 9, 4]) == 10


def test_moment_is_told_by_the_daemons_clock() -> None:
    ahead = Mark(Role.POINT, STREAM, "r", moment=NOON.isoformat(), offset=3 * 86400)

    assert ahead.taken_at == NOON - timedelta(days=3)
    assert replace(ahead, offset=-60).taken_at == NOON + timedelta(minutes=1)
    assert replace(ahead, moment="2026-03-02T14:00:00+02:00", offset=0).taken_at == NOON


@pytest.mark.parametrize(
    ("moment", "offset"),
    [
        ("", 0),
        ("never", 0),
        ("2026-03-02T12:00:00", 0),
        ("0001-01-01T00:00:00+00:00", 1),
        ("9999-12-31T23:59:59+00:00", -1),
        (NOON.isoformat(), 2**53 - 1),
        (NOON.isoformat(), 1 - 2**53),
    ],
)
def test_moment_that_cannot_be_told_is_none(moment: str, offset: int) -> None:
    assert Mark(Role.POINT, STREAM, "r", moment=moment, offset=offset).taken_at is None


@pytest.mark.parametrize(
    ("moment", "arrived", "is_it"),
    [
        (NOON, NOON, False),
        (NOON + timedelta(minutes=15), NOON, False),
        (NOON + timedelta(minutes=15, seconds=1), NOON, True),
        (NOON - timedelta(days=10000), NOON, False),
        (datetime.max.replace(tzinfo=UTC), NOON, True),
        (NOON, datetime.max.replace(tzinfo=UTC), False),
        (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), False),
        (datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC), True),
    ],
)
def test_point_is_from_the_future_that_was_snapshotted_after_it_arrived(
    moment: datetime, arrived: datetime, *, is_it: bool
) -> None:
    mark = Mark(Role.POINT, STREAM, "r", moment=moment.isoformat())

    assert is_from_the_future(mark, arrived) == is_it
    said = replace(mark, arrived=arrived.isoformat())
    assert is_from_the_future(said, datetime.min.replace(tzinfo=UTC)) == is_it


def test_clock_whose_offset_is_known_takes_no_point_into_the_future() -> None:
    mark = Mark(Role.POINT, STREAM, "r", moment="2056-03-02T12:00:00+00:00")
    ahead = int((datetime(2056, 3, 2, 12, tzinfo=UTC) - NOON).total_seconds())

    assert is_from_the_future(mark, NOON)
    assert not is_from_the_future(replace(mark, offset=ahead), NOON)


def test_arrival_that_cannot_be_read_is_that_of_its_record() -> None:
    mark = Mark(Role.POINT, STREAM, "r", moment=NOON.isoformat(), arrived="never")

    assert not is_from_the_future(mark, NOON)
    assert is_from_the_future(mark, NOON - timedelta(days=1))


def test_point_whose_moment_is_unknown_is_from_nowhere() -> None:
    assert not is_from_the_future(Mark(Role.POINT, STREAM, "r", moment="never"), NOON)


@pytest.mark.parametrize("text", ["", "never", "2026-03-02", "2026-03-02T12:00:00", "\x00"])
def test_time_without_a_zone_or_a_sense_is_none(text: str) -> None:
    assert read_time(text) is None


@pytest.mark.parametrize("content", [None, "", "c-1", "/No content: this is a cbt_metadata VDI/"])
def test_what_is_written_while_a_snapshot_is_taken_comes_back(content: str | None) -> None:
    written_on = {SNAPSHOTTING: snapshotting_text("run-1", content)}

    assert snapshotting_on(written_on) == ("run-1", content)


def test_disk_of_which_no_snapshot_is_taken_names_no_run() -> None:
    assert snapshotting_on({}) == ("", None)


# -- what stands beside ours ---------------------------------------------------------------------


def test_time_is_written_as_xen_orchestra_writes_it() -> None:
    assert xo_time(NOON) == "20260302T12:00:00Z"


def test_source_snapshot_has_the_keys_of_xen_orchestra() -> None:
    assert xo_source("job", "vm", NOON) == {
        "xo:backup:job": "job",
        "xo:backup:schedule": "job",
        "xo:backup:vm": "vm",
        "xo:backup:datetime": "20260302T12:00:00Z",
        "xo:backup:includeNonNbdQcow2Fix": "true",
    }


def test_confirmed_disk_of_a_source_snapshot_is_exported_and_has_its_content() -> None:
    found = xo_source("job", "vm", NOON, content="c", exported=True)

    assert found["xo:backup:contentKey"] == "c"
    assert found["xo:backup:exported"] == "true"


def test_restore_point_names_what_it_is_a_copy_of() -> None:
    found = xo_point("job", "vm", NOON, "sr", "snapshot")

    assert found["xo:copy_of"] == "snapshot"
    assert found["xo:backup:sr"] == "sr"
    assert "xo:backup:contentKey" not in found


def test_all_keys_of_a_point_but_its_sr_are_taken_off_the_live_replica() -> None:
    keys = xo_point("job", "vm", NOON, "sr", "snapshot", content="c")

    assert set(keys) - set(XO_KEYS_OF_POINTS) == {"xo:backup:sr"}
