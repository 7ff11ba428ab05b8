"""When a cron expression is next due, right over changes of daylight saving time. Pure.

croniter lists local times without a zone. This module decides which moments they stand for. In
spring some local times do not exist, in autumn some exist twice:

    spring   01:00 ───── 02:00╌╌╌╌╌╌╌╌╌╌╌╌╌╌03:00 ───── 04:00      02:30 fires once, at 03:00
    autumn   01:00 ───── 02:00 ═════════ 03:00                     02:30 fires once, the first time
                         02:00 ═════════ 03:00 ───── 04:00         */15 fires in both hours

As in Vixie cron, a job with a fixed hour runs once on that day, and a job of every hour keeps its
pace. Otherwise replicas would be an hour older than promised each autumn.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from croniter import croniter

_SECOND = timedelta(seconds=1)


def next_fire(expression: str, zone: ZoneInfo, after: datetime) -> datetime:
    """Return the first moment after `after` at which a cron expression is due, in UTC.

    Args:
        expression: Five cron fields, already validated.
        zone: The time zone of the fields.
        after: An aware time; never returned itself.
    """
    after = after.astimezone(UTC)
    local = after.astimezone(zone)
    # If the local time occurs twice, start from its first occurrence.
    repeated = max(_offset(local, fold=0) - _offset(local, fold=1), timedelta())
    every_pass = _is_hourly(expression)

    best: datetime | None = None
    for wall in _walls(expression, local.replace(tzinfo=None, fold=0) - repeated):
        moments = _moments(wall, zone)
        # The first moments of ascending local times ascend, so no better one follows.
        if best is not None and moments[0] >= best:
            return best
        for moment in moments if every_pass else moments[:1]:
            if moment > after and (best is None or moment < best):
                best = moment
    raise ValueError(f"{expression!r} is never due")


def _is_hourly(expression: str) -> bool:
    """Return whether an expression is due in every hour of its days."""
    if expression.startswith("@"):
        return expression == "@hourly"
    return expression.split()[1] == "*"


def _walls(expression: str, after: datetime) -> Iterator[datetime]:
    """Yield the local times that match an expression, in order, even those that do not exist."""
    schedule = croniter(expression, after)
    while True:
        yield schedule.get_next(datetime)


def _moments(wall: datetime, zone: ZoneInfo) -> tuple[datetime, ...]:
    """Return the moments at which the wall clock shows a local time: one or two, in order.

    For a local time that does not exist, return the moment of the change to summer time.
    """
    first = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    second = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if first == second:
        return (first,)
    if first < second:
        return (first, second)
    return (_change_between(second, first, zone),)


def _change_between(early: datetime, late: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment at which a zone changes its offset, between two others."""
    before = early.astimezone(zone).utcoffset()
    while late - early > _SECOND:
        middle = early + (late - early) // 2
        middle = middle.replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == before:
            early = middle
        else:
            late = middle
    return late


def _offset(local: datetime, *, fold: int) -> timedelta:
    return local.replace(fold=fold).utcoffset() or timedelta()
