"""Rates by time of day. Pure: the moment comes in as an argument.

A period is compared with the clock on the wall of its time zone: on the day that summer time begins
or ends, "08:00-18:00" still means what the clock shows.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, time
from zoneinfo import ZoneInfo

UTC = ZoneInfo("UTC")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_PERIOD = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?)?\s*"
    r"(?:(?P<start>\d\d?:\d\d)-(?P<end>\d\d?:\d\d))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Period:
    """From `start` to `end`, on the next day when `end` is not later, on the days it begins on."""

    text: str
    days: frozenset[int]
    start: int
    """Minute of the day."""
    end: int

    def holds(self, weekday: int, minute: int) -> bool:
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        evening = weekday in self.days and minute >= self.start
        morning = (weekday - 1) % 7 in self.days and minute < self.end
        return evening or morning


@dataclass(frozen=True, slots=True)
class Tariff:
    """What the configuration says of a link."""

    rate: float = math.inf
    """Bytes per second outside of all periods."""
    periods: tuple[tuple[Period, float], ...] = ()
    zone: ZoneInfo = UTC

    def at(self, now: datetime) -> tuple[float, str]:
        """Return the rate at a moment, and what sets it."""
        if self.periods:
            local = now.astimezone(self.zone)
            minute = local.hour * 60 + local.minute
            for period, rate in self.periods:
                if period.holds(local.weekday(), minute):
                    return rate, period.text
        return self.rate, "configuration"


def parse_period(text: str) -> Period:
    """Return what `08:00-18:00`, `Mon-Fri 08:00-18:00` or `Sat-Sun` means.

    Raises:
        ValueError: it is not a period.
    """
    found = _PERIOD.fullmatch(text.strip())
    if found is None or not found[0]:
        raise ValueError(
            f"{text!r} is not a period; write it like 08:00-18:00 or Mon-Fri 08:00-18:00"
        )
    start, end = (_minute(found[name]) if found[name] else 0 for name in ("start", "end"))
    return Period(text, _days(found["first"], found["last"]), start, end)


def _minute(text: str) -> int:
    if text == "24:00":
        return 24 * 60
    hour, minute = text.split(":")
    try:
        at = time(int(hour), int(minute))
    except ValueError:
        raise ValueError(f"{text!r} is not a time of day; write it like 08:00") from None
    return at.hour * 60 + at.minute


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    begin, end = (_day(name) for name in (first, last or first))
    return frozenset((begin + i) % 7 for i in range((end - begin) % 7 + 1))


def _day(name: str) -> int:
    try:
        return DAYS.index(name.lower())
    except ValueError:
        raise ValueError(
            f"{name!r} is not a day; write Mon, Tue, Wed, Thu, Fri, Sat or Sun"
        ) from None
