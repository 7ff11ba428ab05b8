from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from xorepd.replication.markers import (
    KEY,
    XO_KEYS_OF_POINTS,
    Commit,
    Mark,
    Role,
    Stream,
    decode,
    next_time,
    signed,
    xo_point,
    xo_source,
    xo_time,
)

STREAM = Stream("pool-1", "vm-1", "sr-1")
COMMIT = Commit("run-1", {"0": "old-0"}, {"0": "new-0", "1": "new-1"})
MARK = Mark(
    Role.REPLICA,
    STREAM,
    "run-1",
    self="u-1",
    job="web",
    snapshot="s-1",
    disk="d-1",
    device="0",
    time="2026-03-02T12:00:00+00:00",
    confirmed=True,
    commit=COMMIT,
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


def test_mark_counts_on_the_object_that_it_names() -> None:
    assert signed({KEY: MARK.encode()}, "u-1") == MARK


def test_mark_is_void_on_any_other_object() -> None:
    assert signed({KEY: MARK.encode()}, "u-2") is None


def test_unsigned_mark_counts_nowhere_as_signed() -> None:
    assert signed({KEY: MARK.on("").encode()}, "u-1") is None


def test_mark_is_written_on_another_object_with_its_uuid() -> None:
    assert MARK.on("u-2") == replace(MARK, self="u-2")


def test_members_of_a_later_release_are_ignored() -> None:
    assert decode(written(MARK, epoch=3, notes=["x"])) == MARK


def test_mark_of_another_version_is_none_of_ours() -> None:
    assert decode(written(MARK, v=2)) is None


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
        ("snapshot", ["s-1"]),
        ("time", 5),
        ("confirmed", "false"),
        ("commit", "run-1"),
        ("commit", {"run": "r"}),
        ("commit", {"run": "r", "old": [], "new": {}}),
        ("commit", {"run": "r", "old": {}, "new": {"0": None}}),
    ],
)
def test_mark_with_a_member_of_another_type_is_no_mark(member: str, value: object) -> None:
    assert decode(written(MARK, **{member: value})) is None


@pytest.mark.parametrize("member", ["role", "stream", "run"])
def test_mark_without_what_every_mark_has_is_no_mark(member: str) -> None:
    plain = json.loads(MARK.encode())
    del plain[member]

    assert decode({KEY: json.dumps(plain)}) is None


def test_object_without_our_key_has_no_mark() -> None:
    assert decode({"xo:backup:job": "j"}) is None


def test_time_of_the_first_snapshot_is_that_of_the_pool() -> None:
    assert next_time(NOON, []) == NOON.isoformat()


def test_time_of_a_later_snapshot_is_that_of_the_pool() -> None:
    earlier = (NOON - timedelta(seconds=1)).isoformat()

    assert next_time(NOON, [earlier]) == NOON.isoformat()


def test_snapshots_within_one_second_keep_their_order() -> None:
    first = next_time(NOON, [])
    second = next_time(NOON, [first])
    third = next_time(NOON, [first, second])

    assert first < second < third < (NOON + timedelta(seconds=1)).isoformat()


def test_clock_that_steps_back_does_not_make_the_newest_snapshot_an_older_one() -> None:
    newest = NOON.isoformat()

    assert next_time(NOON - timedelta(hours=1), [newest]) > newest


@pytest.mark.parametrize("garbage", ["", "never", "2026-03-02", "2026-03-02T12:00:00"])
def test_time_that_cannot_be_read_does_not_count(garbage: str) -> None:
    assert next_time(NOON, [garbage]) == NOON.isoformat()


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
