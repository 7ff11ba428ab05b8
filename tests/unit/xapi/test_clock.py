"""How far a pool's clock is from ours, as far as its dates tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from xorepd.xapi.clock import PoolClock

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def test_clock_that_nothing_has_dated_is_not_known() -> None:
    assert PoolClock("prod").offset is None


@pytest.mark.parametrize(
    ("dated", "began", "ended", "offset"),
    [
        # The date is cut off to whole seconds, so it may lie a second before we began.
        (0, 0.1, 0.2, 0),
        (0, 0.9, 0.95, 0),
        (0, 1.0, 1.2, 0),
        (3, 0, 5, 0),
        (5, 0, 5, 0),
        (6, 0, 5, 1),
        (0, 2, 3, -1),
        (0, 2.4, 3, -1),
        (0, 2.6, 3, -2),
        (3 * 86400, 0, 1, 3 * 86400 - 1),
        (-86400, 0, 600, -86399),
        # As little as the two moments allow: it may have happened at any time between them.
        (100, 0, 90, 10),
    ],
)
def test_offset_is_what_the_dates_prove(
    dated: float, began: float, ended: float, offset: int
) -> None:
    clock = PoolClock("prod")

    found = clock.compare(NOON + seconds(dated), NOON + seconds(began), NOON + seconds(ended))

    assert found == offset
    assert clock.offset == offset


def test_clock_thirty_years_ahead_is_measured() -> None:
    ahead = NOON.replace(year=2056)

    assert PoolClock("prod").compare(ahead, NOON, NOON) == int((ahead - NOON).total_seconds())


@pytest.mark.parametrize(
    "dated", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
)
def test_clock_at_the_end_of_all_time_is_measured(dated: datetime) -> None:
    assert abs(PoolClock("prod").compare(dated, NOON, NOON)) > 10**9


def told(*ahead_s: int) -> list[dict[str, object]]:
    """Return what the log tells of a clock that is ahead so far, look by look."""
    clock = PoolClock("prod")
    with capture_logs() as logs:
        for ahead in ahead_s:
            clock.compare(NOON + seconds(ahead), NOON, NOON)
    return [{key: value for key, value in line.items() if key != "log_level"} for line in logs]


def test_clock_that_is_right_is_no_matter() -> None:
    assert told(0, 29, 0, -20, 5) == []


@pytest.mark.parametrize(("ahead", "said"), [(30, 30), (3600, 3600), (-31, -30)])
def test_clock_that_is_off_is_told_once(ahead: int, said: int) -> None:
    off = {"event": "pool.clock_off", "pool": "prod", "ahead_s": said}

    assert told(ahead, ahead, ahead + 1) == [off]


def test_clock_that_jumps_is_told_each_time() -> None:
    jumps = told(0, 3600, 3610, 0)

    assert jumps == [
        {"event": "pool.clock_jumped", "pool": "prod", "ahead_s": 3600, "before_s": 0},
        {"event": "pool.clock_jumped", "pool": "prod", "ahead_s": 0, "before_s": 3610},
    ]
