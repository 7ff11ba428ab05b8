"""How many VMs a pool gets to work on, by how fast it answers."""

from __future__ import annotations

from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xorepd.xapi.pace import ANSWERS, FREE, Allowance, Pace, next_allowance

SLOW, QUICK, BETWEEN = 3.0, 0.01, 0.7
LIMIT = 1.0


@pytest.mark.parametrize(
    ("now", "median_s", "at_work", "then"),
    [
        (FREE, QUICK, 8, FREE),
        (FREE, BETWEEN, 8, FREE),
        (FREE, SLOW, 8, Allowance(4, before=8)),
        (FREE, SLOW, 1, Allowance(1, before=1)),
        (FREE, SLOW, 0, Allowance(1, before=0)),
        (Allowance(4, 8), SLOW, 8, Allowance(2, 8)),
        (Allowance(4, 8), SLOW, 3, Allowance(1, 8)),
        (Allowance(1, 8), SLOW, 1, Allowance(1, 8)),
        (Allowance(1, 8), BETWEEN, 1, Allowance(1, 8)),
        (Allowance(1, 8), QUICK, 1, Allowance(2, 8)),
        (Allowance(7, 8), QUICK, 7, FREE),
        (Allowance(1, 1), QUICK, 1, FREE),
    ],
)
def test_half_when_slow_one_more_when_quick(
    now: Allowance, median_s: float, at_work: int, then: Allowance
) -> None:
    assert next_allowance(now, median_s, LIMIT, at_work) == then


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 64)), max_size=60),
    st.integers(1, 64),
)
def test_one_may_always_work_and_a_quick_pool_gets_everything_back(
    windows: list[tuple[float, int]], at_work: int
) -> None:
    allowance = FREE
    for median_s, there in [*windows, (SLOW, at_work)]:
        allowance = next_allowance(allowance, median_s, LIMIT, there)
        assert allowance.at_once is None or allowance.at_once >= 1

    for _ in range(64):
        allowance = next_allowance(allowance, QUICK, LIMIT, 1)
    assert allowance == FREE


def test_pool_is_judged_by_the_median_of_a_window_of_answers() -> None:
    pace, told = Pace("dr", LIMIT), []
    pace.at_work = lambda: 4
    pace.on_more = lambda: told.append(pace.at_once)

    pace.note([*repeat(QUICK, ANSWERS // 2 + 1), *repeat(60.0, ANSWERS // 2 - 1)])
    assert (pace.is_slow, pace.median_s) == (False, QUICK)
    pace.note(repeat(SLOW, ANSWERS - 1))
    assert not pace.is_slow
    pace.note([SLOW])
    assert (pace.is_slow, pace.at_once, pace.median_s) == (True, 2, SLOW)
    for _ in range(2):
        pace.note(repeat(QUICK, ANSWERS))

    assert not pace.is_slow
    assert told == [2, 3, None]
