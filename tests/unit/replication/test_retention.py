from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.unit.replication.builders import TargetWorld
from xorepd.config.keep import Keep
from xorepd.replication.cleanup.prune import period_time
from xorepd.replication.deciding.retention import select_expired
from xorepd.replication.format.inventory import VmSnapshot

PARIS = ZoneInfo("Europe/Paris")
MONDAY = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def expired(newest_first: list[str], keep: Keep) -> list[str]:
    """Return what goes of points without times."""
    return select_expired(newest_first, keep, UTC, lambda point: None)


def kept(times: list[datetime], keep: Keep, zone: ZoneInfo = PARIS) -> list[datetime]:
    """Return what stays of points taken at these times, in any order; oldest first."""
    newest_first = sorted(times, reverse=True)
    gone = select_expired(newest_first, keep, zone, lambda time: time)
    return [time for time in reversed(newest_first) if time not in gone]


def paris(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=PARIS).astimezone(UTC)


def test_points_beyond_the_retention_go_oldest_first() -> None:
    assert expired(["p5", "p4", "p3", "p2", "p1"], Keep(last=2)) == ["p1", "p2", "p3"]


@pytest.mark.parametrize("last", [3, 4, 24])
def test_no_point_within_the_retention_goes(last: int) -> None:
    assert expired(["p3", "p2", "p1"], Keep(last=last)) == []


def test_newest_point_always_stays() -> None:
    assert expired(["p3", "p2", "p1"], Keep(last=1)) == ["p1", "p2"]


def test_nothing_goes_where_nothing_is() -> None:
    assert expired([], Keep(last=1, daily=3)) == []


def test_newest_point_of_each_day_stays() -> None:
    hourly = [MONDAY + timedelta(hours=hour) for hour in range(72)]

    assert kept(hourly, Keep(last=2, daily=3)) == [
        paris(2026, 3, 3, 23),
        paris(2026, 3, 4, 23),
        paris(2026, 3, 5, 11),
        paris(2026, 3, 5, 12),
    ]


def test_day_begins_at_midnight_of_the_jobs_time_zone() -> None:
    before, after = paris(2026, 7, 1, 23, 59), paris(2026, 7, 2, 0, 1)

    assert kept([before, after], Keep(daily=2)) == [before, after]
    assert kept([before, after], Keep(daily=2), ZoneInfo("UTC")) == [after]


@pytest.mark.parametrize("night", [(2026, 3, 29), (2026, 10, 25)])
def test_day_of_23_or_25_hours_is_one_day(night: tuple[int, int, int]) -> None:
    start = paris(*night)
    times = [start - timedelta(minutes=1)]
    while (start := start + timedelta(minutes=30)).astimezone(PARIS).day == night[2]:
        times.append(start)

    assert kept(times, Keep(daily=2)) == [times[0], times[-1]]


def test_days_without_points_do_not_count() -> None:
    times = [MONDAY, MONDAY + timedelta(days=90), MONDAY + timedelta(days=91)]

    assert kept(times, Keep(daily=3)) == times


def test_weeks_begin_on_monday_and_belong_to_one_year() -> None:
    # ISO week 1 of 2026 begins on Monday, 29 December 2025.
    sunday, wednesday, thursday = (
        paris(2025, 12, 28, 20),
        paris(2025, 12, 31, 20),
        paris(2026, 1, 1, 20),
    )

    assert kept([sunday, wednesday, thursday], Keep(weekly=2)) == [sunday, thursday]


def test_each_rule_keeps_the_newest_of_its_periods() -> None:
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    daily = [noon + timedelta(days=day) for day in range(800)]  # to 10 March 2026

    assert [f"{time:%y-%m-%d}" for time in kept(daily, Keep(daily=2, weekly=2, monthly=2))] == [
        *("26-02-28", "26-03-08", "26-03-09", "26-03-10")
    ]
    assert [f"{time:%y-%m-%d}" for time in kept(daily, Keep(yearly=3))] == [
        *("24-12-31", "25-12-31", "26-03-10")
    ]


def test_points_of_one_moment_are_told_apart_by_their_order() -> None:
    points = ["p3", "p2", "p1"]

    assert select_expired(points, Keep(daily=2), UTC, lambda point: MONDAY) == ["p1", "p2"]


def test_point_dated_into_the_future_has_a_day_like_any_other() -> None:
    future = MONDAY + timedelta(days=4000)

    assert kept([MONDAY, future], Keep(daily=2)) == [MONDAY, future]


@pytest.mark.parametrize(
    "time", [None, datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]
)
def test_point_whose_day_cannot_be_known_counts_by_its_place_alone(time: datetime | None) -> None:
    times = {"newest": MONDAY, "odd": time, "old": MONDAY - timedelta(days=1)}
    zone = ZoneInfo("Pacific/Kiritimati") if time and time.year > 1 else ZoneInfo("Pacific/Niue")

    def gone(keep: Keep) -> list[str]:
        return select_expired(list(times), keep, zone, lambda point: times[point])

    assert gone(Keep(last=1, daily=5)) == ["odd"]
    assert gone(Keep(last=2, daily=5)) == []


# -- clocks that are wrong -----------------------------------------------------------------------

YEARS = timedelta(days=30 * 365)


async def daily(
    *wrong: int, by: timedelta, offset_s: int = 0, target: timedelta
) -> list[VmSnapshot]:
    """Return points of one run a day, oldest first.

    Args:
        wrong: which runs took their snapshot while the source's clock was ahead.
        by: how far ahead.
        offset_s: what of that was measured.
        target: how far ahead the target's clock is, all the time.
    """
    world = TargetWorld()
    for day in range(10):
        world.run(f"run-{day}")
    points = []
    for day, point in enumerate(reversed((await world.read()).points)):
        when = MONDAY + timedelta(days=day)
        moment = when + by if day in wrong else when
        arrived = when + timedelta(minutes=5) + target
        mark = replace(point.mark, moment=moment.isoformat(), arrived=arrived.isoformat())
        mark = replace(mark, offset=offset_s if day in wrong else 0)
        points.append(replace(point, mark=mark, vm=replace(point.vm, snapshot_time=arrived)))
    return points


def kept_after_each_run(points: list[VmSnapshot], keep: Keep) -> list[int]:
    """Return which runs' points stand when retention has followed each run."""
    standing: list[VmSnapshot] = []
    for point in points:
        standing.insert(0, point)
        gone = select_expired(standing, keep, UTC, period_time)
        standing = [each for each in standing if each not in gone]
    return [points.index(point) for point in reversed(standing)]


DAYS = timedelta(days=3)


@pytest.mark.parametrize(
    ("by", "is_measured", "target"),
    [
        (DAYS, True, timedelta(0)),
        (DAYS, False, timedelta(0)),
        (DAYS, False, timedelta(days=-1)),
        (DAYS, True, timedelta(days=400)),
        (YEARS, True, timedelta(0)),
        (YEARS, False, timedelta(0)),
        (YEARS, False, timedelta(days=-1)),
        (YEARS, False, timedelta(days=400)),
    ],
)
@pytest.mark.parametrize("wrong", [(), (1,), (5,), (2, 3), (9,)])
async def test_clock_that_was_ahead_costs_no_day(
    wrong: tuple[int, ...], by: timedelta, target: timedelta, *, is_measured: bool
) -> None:
    offset_s = int(by.total_seconds()) if is_measured else 0
    points = await daily(*wrong, by=by, offset_s=offset_s, target=target)

    assert kept_after_each_run(points, Keep(last=1, daily=7)) == [3, 4, 5, 6, 7, 8, 9]


async def test_arrival_that_no_mark_tells_is_the_date_of_the_record() -> None:
    points = await daily(4, by=YEARS, target=timedelta(0))
    earlier = [replace(point, mark=replace(point.mark, arrived="")) for point in points]

    assert kept_after_each_run(earlier, Keep(last=1, daily=7)) == [3, 4, 5, 6, 7, 8, 9]
