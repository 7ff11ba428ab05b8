"""Which restore points stay. Pure.

    last = 2, daily = 3                          o expires    # stays

    Mon          Tue          Wed     Thu                 Fri
    o     #      o      o     -       o      #            o     #     #
          daily                              daily              last  last, daily

Of each period that has points the newest one stays, for so many of the newest such periods. A
period without points does not count, so that a source which was off for a month keeps its days. The
newest of a period was the newest of all in its time: deciding after each run comes to the same as
deciding over everything that ever was. Each rule looks for itself; one point may serve several.

Points come in the order of their marks, which no step of a clock disturbs; their times only tell
which period they belong to. There is no "now": a point that a wrong clock dated into the future
belongs where it arrived (`prune.period_time`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, tzinfo
from typing import TypeVar

from xorepd.config.keep import Keep

T = TypeVar("T")
Period = Callable[[date], object]


def select_expired(
    newest_first: Sequence[T],
    keep: Keep,
    zone: tzinfo,
    time_of: Callable[[T], datetime | None],
) -> list[T]:
    """Return the restore points that no rule keeps, oldest first.

    The newest one is the base of the next run and always stays.

    Args:
        zone: Whose midnight parts the days.
        time_of: When the source was snapshotted, aware; None where that cannot be read: such a
            point belongs to no period.
    """
    days = [_day(time_of(point), zone) for point in newest_first]
    kept = set(range(max(1, keep.last)))
    rules: tuple[tuple[Period, int], ...] = (
        (lambda day: day, keep.daily),
        (lambda day: day.isocalendar()[:2], keep.weekly),
        (lambda day: (day.year, day.month), keep.monthly),
        (lambda day: day.year, keep.yearly),
    )
    for period, count in rules:
        newest_of: dict[object, int] = {}
        for index, day in enumerate(days):
            if day is not None:
                newest_of.setdefault(period(day), index)
        kept.update(list(newest_of.values())[:count])
    return [point for index, point in reversed([*enumerate(newest_first)]) if index not in kept]


def _day(time: datetime | None, zone: tzinfo) -> date | None:
    try:
        return None if time is None else time.astimezone(zone).date()
    except OverflowError:  # a forged mark: the first or last day of all time, in another zone
        return None
