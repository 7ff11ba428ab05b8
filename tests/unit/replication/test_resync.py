"""Where the windows of a comparison end. The comparison itself is tested against a lab."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xorepd.extents import Extent, total
from xorepd.replication.transfer.resync import (
    ALIGNMENT,
    LONGEST_WINDOW,
    SHORTEST_WINDOW,
    WINDOW_S,
    end_of_window,
    next_size,
)
from xorepd.units import GiB, MiB

SIZE = 100 * MiB


def between(extents: list[Extent], start: int, end: int) -> int:
    clipped = [(max(e.offset, start), min(e.end, end)) for e in extents]
    return total(Extent(at, to - at) for at, to in clipped if at < to)


@pytest.mark.parametrize(
    ("source", "target", "end"),
    [
        ([(0, 100)], [(0, 100)], 30),  # both have as much
        ([(0, 100)], [], 30),  # the source alone
        ([], [(0, 100)], 30),  # the target alone
        ([(0, 4), (90, 8)], [(2, 4)], 100),  # neither has much
        ([(0, 10), (50, 30)], [], 70),  # not before there is so much to read
        ([], [], 100),
    ],
)
def test_a_window_ends_where_one_side_has_enough_to_read(
    source: list[tuple[int, int]], target: list[tuple[int, int]], end: int
) -> None:
    sides = [[Extent(at * MiB, size * MiB) for at, size in side] for side in (source, target)]

    assert end_of_window(sides, 4 * MiB, 26 * MiB, SIZE) == end * MiB


EXTENTS = st.lists(st.integers(0, 49), unique=True).map(
    lambda at: [Extent(each * 2 * MiB, 2 * MiB) for each in sorted(at)]
)


@given(EXTENTS, EXTENTS, st.integers(1, 40))
def test_windows_cover_the_disk_and_none_is_much_too_long(
    source: list[Extent], target: list[Extent], size: int
) -> None:
    start, ends = 512 * 7, []
    while start < SIZE:
        end = end_of_window([source, target], start, size * MiB, SIZE)
        assert start < end <= SIZE
        assert end == SIZE or end % ALIGNMENT == 0
        for side in (source, target):
            assert between(side, start, end) <= size * MiB + ALIGNMENT
        ends.append(end)
        start = end
    assert ends[-1] == SIZE


def test_a_disk_that_ends_anywhere_has_a_last_window() -> None:
    odd = SIZE + 512

    assert end_of_window([[Extent(0, odd)]], SIZE - MiB, GiB, odd) == odd


def test_the_next_window_takes_its_time_and_stays_in_bounds() -> None:
    assert next_size(4 * GiB, WINDOW_S) == 4 * GiB
    assert next_size(4 * GiB, WINDOW_S / 2) == 8 * GiB
    assert next_size(4 * GiB, 100 * WINDOW_S) == SHORTEST_WINDOW
    assert next_size(4 * GiB, 0.0) == LONGEST_WINDOW
