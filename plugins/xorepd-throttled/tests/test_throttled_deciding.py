"""Bucket, timetable and options: what is decided, at moments that the test chooses."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xorepd_throttled.bucket import BURST_S, Bucket
from xorepd_throttled.link import BLOCK, SECTOR, portion
from xorepd_throttled.options import SLOWEST, read_options
from xorepd_throttled.timetable import Tariff, parse_period

PARIS = ZoneInfo("Europe/Paris")
MONDAY = "2026-03-02"


# -- bucket ----------------------------------------------------------------------------------------


def test_first_may_pass_at_once_and_the_next_when_its_time_has_come() -> None:
    bucket = Bucket()
    assert bucket.wait_s(100.0) == 0

    bucket.take(100.0, 2.0)

    assert bucket.wait_s(100.0) == pytest.approx(2.0 - BURST_S)
    assert bucket.wait_s(101.0) == pytest.approx(1.0 - BURST_S)
    assert bucket.wait_s(110.0) == 0


def test_unused_time_is_made_up_for_but_no_more_than_a_burst() -> None:
    bucket = Bucket()
    bucket.take(0.0, 1.0)
    bucket.take(1000.0, 1.0)

    assert bucket.wait_s(1000.0) == pytest.approx(1.0 - BURST_S)


def test_what_is_given_back_shortens_the_wait() -> None:
    bucket = Bucket()
    bucket.take(0.0, 1.0)

    bucket.give(0.5)

    assert bucket.wait_s(0.0) == pytest.approx(0.5 - BURST_S)


@given(st.lists(st.tuples(st.floats(0, 0.05), st.floats(0, 0.3)), max_size=50))
def test_never_more_than_the_time_that_passed_and_a_burst(steps: list[tuple[float, float]]) -> None:
    bucket, now, taken = Bucket(), 0.0, 0.0
    for seconds, late in steps:
        now += bucket.wait_s(now) + late
        assert taken <= now + BURST_S + 1e-6
        bucket.take(now, seconds)
        taken += seconds


@given(st.integers(1, 1 << 24), st.floats(SLOWEST, 1e10))
def test_portion_takes_no_time_to_speak_of_and_keeps_the_alignment(
    wanted: int, rate: float
) -> None:
    size = portion(wanted, rate)

    assert 0 < size <= wanted
    assert size / rate <= 0.07
    assert size == wanted or size % SECTOR == 0
    assert size in (wanted, SECTOR) or size < BLOCK or size % BLOCK == 0


def test_without_a_limit_everything_may_pass() -> None:
    assert portion(1 << 30, math.inf) == 1 << 30


# -- timetable -------------------------------------------------------------------------------------


def rate_at(tariff: Tariff, text: str) -> float:
    return tariff.at(datetime.fromisoformat(text).replace(tzinfo=UTC))[0]


def tariff(*periods: tuple[str, float], zone: ZoneInfo = PARIS) -> Tariff:
    return Tariff(9.0, tuple((parse_period(text), rate) for text, rate in periods), zone)


@pytest.mark.parametrize(
    ("period", "inside", "outside"),
    [
        ("08:00-18:00", f"{MONDAY} 07:00", f"{MONDAY} 17:00"),  # Paris is an hour ahead
        ("08:00-18:00", f"{MONDAY} 16:59", f"{MONDAY} 06:59"),
        ("22:00-06:00", f"{MONDAY} 21:00", f"{MONDAY} 05:00"),
        ("Mon 22:00-06:00", "2026-03-03 04:59", f"{MONDAY} 04:59"),
        ("Mon-Fri 8:00-18:00", "2026-03-06 08:00", "2026-03-07 08:00"),
        ("sat-mon", f"{MONDAY} 08:00", "2026-03-03 08:00"),
        ("12:00-24:00", f"{MONDAY} 22:59", f"{MONDAY} 23:00"),
    ],
)
def test_period_rules_inside_and_not_outside(period: str, inside: str, outside: str) -> None:
    rates = tariff((period, 1.0))

    assert (rate_at(rates, inside), rate_at(rates, outside)) == (1.0, 9.0)


def test_period_means_the_clock_on_the_wall_in_summer_and_winter() -> None:
    rates = tariff(("08:00-09:00", 1.0))

    assert rate_at(rates, "2026-03-28 07:30") == 1.0  # 8:30 in winter
    assert rate_at(rates, "2026-03-29 06:30") == 1.0  # 8:30, summer time began that night
    assert rate_at(rates, "2026-03-29 07:30") == 9.0


def test_first_period_that_holds_rules() -> None:
    rates = tariff(("12:00-13:00", 1.0), ("08:00-18:00", 2.0))

    assert rate_at(rates, f"{MONDAY} 11:30") == 1.0
    assert rate_at(rates, f"{MONDAY} 12:30") == 2.0
    assert rates.at(datetime(2026, 3, 2, 11, 30, tzinfo=UTC))[1] == "12:00-13:00"


@pytest.mark.parametrize("text", ["", "noon", "8-18", "25:00-26:00", "Xyz 08:00-09:00", "08:00"])
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_period(text)


# -- options ---------------------------------------------------------------------------------------


def test_everything_that_can_be_said_is_understood() -> None:
    options = read_options(
        {
            "through": {"name": "compressed", "level": 3},
            "link": "wan",
            "rate": "100Mbit/s",
            "timetable": {"08:00-18:00": "2MiB/s", "22:00-06:00": "unlimited"},
            "timezone": "Europe/Paris",
            "pool_rate": "1Gbit/s",
            "job_rate": "64kbit/s",
        }
    )

    assert (options.through, options.through_options) == ("compressed", {"level": 3})
    assert options.link == "wan"
    assert options.link_tariff is not None
    assert options.link_tariff.rate == 12_500_000
    assert [rate for _, rate in options.link_tariff.periods] == [2 << 20, math.inf]
    assert options.link_tariff.zone == PARIS
    assert options.pool_tariff == Tariff(125_000_000)
    assert options.job_tariff == Tariff(SLOWEST)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rat": "1MiB/s"}, r"no option rat; did you mean rate\?"),
        ({"rate": "fast"}, "rate: 'fast' is not a rate; write it like 100Mbit/s"),
        ({"rate": "100Mbit"}, "rate: '100Mbit' is not a rate"),
        ({"rate": "1kbit/s"}, "rate: the slowest rate is 64kbit/s"),
        ({"rate": 100}, "rate must be a text"),
        ({"job_rate": "0"}, "job_rate: "),
        ({"timetable": "08:00-18:00"}, "timetable must be a table"),
        ({"timetable": {"08:00-18:00": "x"}}, "timetable \"08:00-18:00\": 'x' is not a rate"),
        ({"timetable": {"8-18": "1MiB/s"}}, "timetable: '8-18' is not a period"),
        ({"timezone": "Europe/Paris"}, "timezone means nothing without a timetable"),
        ({"timetable": {}, "timezone": 3}, "timezone 3 is not known"),
        ({"timetable": {}, "timezone": "../etc"}, "timezone '../etc' is not known"),
        ({"link": ""}, "link must be a name"),
        ({"link": "pool:dr"}, "link must be a name"),
        ({"through": 3}, "through must be the name of a transport"),
        ({"through": {"level": 3}}, "through must be the name of a transport"),
    ],
)
def test_wrong_option_is_refused_with_its_name_and_what_to_write(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_options(options)
