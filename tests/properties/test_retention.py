"""Retention over any points, at any times, in any order of the clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from xorepd.config.keep import Keep
from xorepd.replication.deciding.retention import select_expired

ZONES = st.sampled_from(["UTC", "Europe/Paris", "Australia/Lord_Howe", "Pacific/Apia"]).map(
    ZoneInfo
)
START = datetime(2023, 12, 20, tzinfo=UTC)
TIMES = st.none() | st.integers(0, 3 * 365 * 24 * 60).map(lambda m: START + timedelta(minutes=m))
COUNTS = st.integers(0, 4)
KEEPS = st.builds(
    Keep, last=st.integers(1, 4), daily=COUNTS, weekly=COUNTS, monthly=COUNTS, yearly=COUNTS
)
RestorePoint = tuple[int, datetime | None]


def points(times: Sequence[datetime | None]) -> list[RestorePoint]:
    """Return points with these times, which need not follow the order of the points."""
    return list(enumerate(times))


def kept(newest_first: list[RestorePoint], keep: Keep, zone: ZoneInfo) -> list[RestorePoint]:
    gone = select_expired(newest_first, keep, zone, lambda point: point[1])
    assert gone == [point for point in reversed(newest_first) if point in gone]
    return [point for point in newest_first if point not in gone]


@given(st.lists(TIMES, max_size=40), KEEPS, ZONES)
def test_newest_points_stay_and_no_more_than_the_rules_ask_for(
    times: list[datetime | None], keep: Keep, zone: ZoneInfo
) -> None:
    all_of_them = points(times)

    found = kept(all_of_them, keep, zone)

    assert found[: keep.last] == all_of_them[: keep.last]
    assert len(found) <= keep.most
    assert bool(found) == bool(times)


@given(st.lists(TIMES, max_size=40), KEEPS, ZONES)
def test_retention_of_what_stayed_takes_nothing_more(
    times: list[datetime | None], keep: Keep, zone: ZoneInfo
) -> None:
    once = kept(points(times), keep, zone)

    assert kept(once, keep, zone) == once


@given(st.lists(TIMES, max_size=40), KEEPS, KEEPS, ZONES)
def test_keeping_more_never_drops_what_keeping_less_kept(
    times: list[datetime | None], one: Keep, other: Keep, zone: ZoneInfo
) -> None:
    larger = Keep(**{n: max(getattr(one, n), getattr(other, n)) for n in Keep.model_fields})

    assert set(kept(points(times), one, zone)) <= set(kept(points(times), larger, zone))


@given(st.lists(TIMES.filter(bool), max_size=40, unique=True), KEEPS, ZONES)
def test_deciding_after_each_run_comes_to_the_same_as_deciding_over_everything(
    times: list[datetime], keep: Keep, zone: ZoneInfo
) -> None:
    history = points(sorted(times, reverse=True))
    standing: list[RestorePoint] = []

    for point in reversed(history):
        standing = kept([point, *standing], keep, zone)

    assert standing == kept(history, keep, zone)


@given(st.lists(TIMES.filter(bool), min_size=1, max_size=40), st.integers(1, 24), ZONES)
def test_daily_rule_keeps_one_point_of_each_of_the_last_days(
    times: list[datetime], daily: int, zone: ZoneInfo
) -> None:
    history = points(sorted(times, reverse=True))
    days = sorted({time.astimezone(zone).date() for time in times}, reverse=True)

    found = kept(history, Keep.model_construct(last=1, daily=daily), zone)

    assert [time.astimezone(zone).date() for _, time in found if time] == days[:daily]
