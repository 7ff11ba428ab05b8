from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xorepd.daemon.calendar import next_fire

PARIS = ZoneInfo("Europe/Paris")
ZONES = [
    PARIS,
    ZoneInfo("UTC"),
    ZoneInfo("America/New_York"),
    ZoneInfo("Australia/Lord_Howe"),  # changes by half an hour
    ZoneInfo("America/Sao_Paulo"),  # until 2019 it skipped midnight
    ZoneInfo("Asia/Kathmandu"),
    ZoneInfo("Pacific/Apia"),  # skipped the 30th of December 2011
]
MOMENTS = st.integers(
    int(datetime(2010, 1, 1, tzinfo=UTC).timestamp()),
    int(datetime(2030, 1, 1, tzinfo=UTC).timestamp()),
).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
EXPRESSIONS = [
    "*/15 * * * *",
    "7 * * * *",
    "30 2 * * *",
    "0 0 * * *",
    "0,30 1-3 * * *",
    "45 */2 * * *",
    "0 3 1 * *",
    "15 2 * * 0",
]


def fires(expression: str, zone: ZoneInfo, after: datetime, count: int) -> list[str]:
    found = []
    for _ in range(count):
        after = next_fire(expression, zone, after)
        found.append(f"{after.astimezone(zone):%d %H:%M%z}")
    return found


def test_time_that_the_change_skips_fires_once_right_after_it() -> None:
    after = datetime(2026, 3, 28, 12, tzinfo=PARIS)

    assert fires("30 2 * * *", PARIS, after, 2) == ["29 03:00+0200", "30 02:30+0200"]


def test_all_times_that_the_change_skips_are_one() -> None:
    after = datetime(2026, 3, 29, 1, 45, tzinfo=PARIS)

    assert fires("*/20 * * * *", PARIS, after, 3) == [
        "29 03:00+0200",
        "29 03:20+0200",
        "29 03:40+0200",
    ]


def test_time_that_the_change_repeats_fires_once() -> None:
    after = datetime(2026, 10, 24, 12, tzinfo=PARIS)

    assert fires("30 2 * * *", PARIS, after, 2) == ["25 02:30+0200", "26 02:30+0100"]


def test_schedule_of_every_hour_goes_on_in_the_repeated_hour() -> None:
    after = datetime(2026, 10, 25, 1, 40, tzinfo=PARIS)

    assert fires("*/30 * * * *", PARIS, after, 5) == [
        "25 02:00+0200",
        "25 02:30+0200",
        "25 02:00+0100",
        "25 02:30+0100",
        "25 03:00+0100",
    ]


def test_day_of_month_and_day_of_week_are_alternatives_as_in_cron() -> None:
    after = datetime(2026, 3, 1, tzinfo=UTC)

    assert fires("0 0 13 * 5", ZoneInfo("UTC"), after, 3) == [
        "06 00:00+0000",
        "13 00:00+0000",
        "20 00:00+0000",
    ]


def test_alias_is_an_expression() -> None:
    assert fires("@daily", PARIS, datetime(2026, 3, 1, 12, tzinfo=UTC), 1) == ["02 00:00+0100"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
@given(
    zone=st.sampled_from(ZONES),
    after=MOMENTS,
    within=st.floats(0, 1),
)
def test_next_fire_is_the_first(
    expression: str, zone: ZoneInfo, after: datetime, within: float
) -> None:
    due_at = next_fire(expression, zone, after)

    assert due_at > after
    # From anywhere between, the same moment is the next: nothing is due earlier, nothing skipped.
    between = after + (due_at - after) * within
    if between < due_at:
        assert next_fire(expression, zone, between) == due_at


@given(
    zone=st.sampled_from(ZONES),
    day=st.dates(date(2012, 1, 1), date(2030, 1, 1)),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
)
def test_daily_schedule_fires_once_on_every_day(
    zone: ZoneInfo, day: date, hour: int, minute: int
) -> None:
    expression = f"{minute} {hour} * * *"
    start = datetime(day.year, day.month, day.day, tzinfo=zone) - timedelta(seconds=1)

    days = []
    after = start
    for _ in range(3):
        after = next_fire(expression, zone, after)
        days.append(after.astimezone(zone).date())

    assert days == [day + timedelta(days=n) for n in range(3)]


@given(
    zone=st.sampled_from(ZONES),
    after=MOMENTS,
)
def test_frequent_schedule_is_never_late(zone: ZoneInfo, after: datetime) -> None:
    # What promises a restore point every 15 minutes keeps that promise over every change.
    assert next_fire("*/15 * * * *", zone, after) - after <= timedelta(minutes=15)
