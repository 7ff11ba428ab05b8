"""When a cron expression is next due, right over changes of daylight saving time. Pure.

croniter only does what clocks on walls do: it lists local times without any zone. What those mean
as moments is decided here. In spring some local times do not exist, in autumn some exist twice:

    spring   01:00 ───── 02:00╌╌╌╌╌╌╌╌╌╌╌╌╌╌03:00 ───── 04:00      02:30 fires once, at 03:00
    autumn   01:00 ───── 02:00 ═════════ 03:00                     02:30 fires once, the first time
                         02:00 ═════════ 03:00 ───── 04:00         */15 fires in both hours

As in cron since Vixie's, what is due at a certain hour is due once that day, and what is due in
every hour goes on at its pace: otherwise replicas would be an hour older than promised each autumn.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from croniter import croniter

_SECOND = timedelta(seconds=1)


def next_fire(expression: str, zone: ZoneInfo, after: datetime) -> datetime:
    """Return the first moment after `after` at which an expression is due, in UTC.

    Args:
        expression: Five cron fields, already validated.
        zone: Whose local time the fields are in.
        after: An aware time; it is itself never returned.
    """
    after = after.astimezone(UTC)
    local = after.astimezone(zone)
    # Where local times repeat, start from the first of them.
    repeated = max(_offset(local, fold=0) - _offset(local, fold=1), timedelta())
    every_pass = _is_hourly(expression)

    best: datetime | None = None
    for wall in _walls(expression, local.replace(tzinfo=None, fold=0) - repeated):
        moments = _moments(wall, zone)
        # First moments never go back from one local time to the next, so nothing better follows.
        if best is not None and moments[0] >= best:
            return best
        for moment in moments if every_pass else moments[:1]:
            if moment > after and (best is None or moment < best):
                best = moment
    raise ValueError(f"{expression!r} never comes due")


def _is_hourly(expression: str) -> bool:
    """Return whether an expression is due in every hour of its days."""
    if expression.startswith("@"):
        return expression == "@hourly"
    return expression.split()[1] == "*"


def _walls(expression: str, after: datetime) -> Iterator[datetime]:
    """Yield the local times that fit an expression, in order, whether or not they exist."""
    schedule = croniter(expression, after)
    while True:
        yield schedule.get_next(datetime)


def _moments(wall: datetime, zone: ZoneInfo) -> tuple[datetime, ...]:
    """Return the moments at which the clock shows a local time: one or two, in order.

    A local time that a change skips gives the moment of the change.
    """
    first = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    second = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if first == second:
        return (first,)
    if first < second:
        return (first, second)
    return (_change_between(second, first, zone),)


def _change_between(early: datetime, late: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment between two at which a zone changes its offset."""
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
