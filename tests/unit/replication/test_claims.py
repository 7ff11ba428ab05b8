from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from xorepd.replication.format.claims import (
    LONGEST_S,
    PREFIX,
    Ending,
    Free,
    Owner,
    Taken,
    claims_on,
    decide,
    encode,
    key_of,
    rival_of,
)
from xorepd.replication.format.marks import ReplicaKey

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
STREAM = ReplicaKey(pool="p", vm="v", sr="s")
OURS, THEIRS = Owner("a", "alpha"), Owner("b", "beta")


def entry(owner: Owner, epoch: int, number: int = 0, *, ago: float = 0.0) -> dict[str, str]:
    """Return the claim of somebody that was written so many seconds ago, good for 60 s."""
    written = NOW - timedelta(seconds=ago)
    return {key_of(STREAM, epoch, number): encode(owner, "run", written, 60.0)}


def verdict(other: dict[str, str], watched_s: float = 0.0) -> Free | Taken | Ending:
    claims = claims_on(other, STREAM)
    return decide(claims, OURS, NOW, {claim.key: watched_s for claim in claims})


def test_a_claim_reads_as_it_was_written() -> None:
    (claim,) = claims_on({"folder": "x"} | entry(THEIRS, 7, 3), STREAM)

    assert (claim.epoch, claim.number, claim.owner, claim.host) == (7, 3, "b", "beta")
    assert claim.until == NOW + timedelta(seconds=60)


def test_claims_to_another_vm_are_not_seen() -> None:
    other = ReplicaKey(pool="p", vm="v2", sr="s")

    assert claims_on(entry(THEIRS, 7), other) == ()


def test_where_nobody_claims_the_epoch_is_of_the_pools_clock() -> None:
    assert verdict({}) == Free(int(NOW.timestamp()))


def test_the_epoch_grows_even_when_the_clock_has_been_set_back() -> None:
    ahead = int(NOW.timestamp()) + 1000

    assert verdict(entry(OURS, ahead)) == Free(ahead + 1)


def test_a_live_claim_of_somebody_else_is_respected() -> None:
    taken = verdict(entry(THEIRS, 7, ago=59), watched_s=1000.0)

    assert isinstance(taken, Taken)
    assert taken.by.host == "beta"


def test_our_own_claim_of_before_a_crash_does_not_keep_us_away() -> None:
    assert isinstance(verdict(entry(OURS, 7)), Free)


def test_an_ended_claim_is_watched_before_it_counts_as_ended() -> None:
    ended = entry(THEIRS, 7, ago=61)

    assert verdict(ended, watched_s=20.0) == Ending(claims_on(ended, STREAM)[0], 40.0)
    assert isinstance(verdict(ended, watched_s=60.0), Free)


def test_a_claim_that_lasts_longer_than_it_can_was_written_by_a_clock_of_before() -> None:
    assert isinstance(verdict(entry(THEIRS, 7, ago=-3600)), Ending)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"v":2,"owner":"b","host":"h","run":"r","until":"2020-01-01T00:00:00+00:00","for":1}',
        '{"v":1,"owner":"b","host":"h","run":"r","until":"2020-01-01T00:00:00","for":1}',
        '{"v":1,"owner":"b","host":"h","run":"r","until":"2020-01-01T00:00:00+00:00","for":NaN}',
        '{"v":1,"owner":"b","host":"h","run":"r","until":"2020-01-01T00:00:00+00:00","for":1e9}',
        '{"v":1,"owner":"b","host":"h","run":"r","until":5,"for":1}',
        "[" * 20_000,
    ],
)
def test_a_claim_that_cannot_be_read_counts_until_it_was_seen_for_the_longest_time(
    value: str,
) -> None:
    other = {key_of(STREAM, 7, 0): value}

    assert isinstance(verdict(other, watched_s=LONGEST_S - 1), Taken)
    assert isinstance(verdict(other, watched_s=LONGEST_S), Free)


@pytest.mark.parametrize("numbers", ["", "x.y", "7", "7.", "-1.0", "9" * 5000])
def test_a_strange_key_is_a_claim_that_cannot_be_read(numbers: str) -> None:
    (value,) = entry(THEIRS, 1, ago=1000).values()
    other = {f"{PREFIX}p/v/{numbers}": value}

    assert isinstance(verdict(other), Taken | Ending)
    assert isinstance(verdict(other, watched_s=LONGEST_S), Free)


def test_whoever_takes_gives_way_to_a_claim_that_came_meanwhile() -> None:
    for epoch in (5, 9):
        claims = claims_on(entry(OURS, 7) | entry(THEIRS, epoch), STREAM)

        rival = rival_of(claims, None, 7, OURS, ())

        assert rival is not None
        assert rival.owner == "b"


def test_whoever_takes_does_not_mind_what_had_ended_before() -> None:
    claims = claims_on(entry(OURS, 7) | entry(THEIRS, 5, ago=100), STREAM)

    assert rival_of(claims, None, 7, OURS, {key_of(STREAM, 5, 0)}) is None


def test_a_renewal_ignores_a_latecomer_and_gives_way_to_a_successor() -> None:
    (old,) = claims_on(entry(OURS, 7), STREAM)
    renewed = entry(OURS, 7) | entry(OURS, 7, 1)

    assert rival_of(claims_on(renewed | entry(THEIRS, 6), STREAM), old, 7, OURS, ()) is None
    assert rival_of(claims_on(renewed | entry(THEIRS, 8), STREAM), old, 7, OURS, ()) is not None


def test_a_renewal_whose_old_claim_was_taken_away_gives_way_to_anybody() -> None:
    (old,) = claims_on(entry(OURS, 7), STREAM)
    claims = claims_on(entry(OURS, 7, 1) | entry(THEIRS, 6), STREAM)

    assert rival_of(claims, old, 7, OURS, ()) is not None


def test_a_copied_state_directory_is_noticed_by_the_epoch() -> None:
    (old,) = claims_on(entry(OURS, 7), STREAM)
    claims = claims_on(entry(OURS, 7) | entry(OURS, 7, 1) | entry(OURS, 8), STREAM)

    assert rival_of(claims, old, 7, OURS, ()) is not None


def test_the_format_stays_as_documented() -> None:
    ((key, value),) = entry(THEIRS, 7).items()

    assert key == "XenCenter.CustomFields.xorepd-lease/p/v/7.0"
    assert json.loads(value) == {
        "v": 1,
        "owner": "b",
        "host": "beta",
        "run": "run",
        "until": "2026-11-23T12:01:00+00:00",
        "for": 60.0,
    }
