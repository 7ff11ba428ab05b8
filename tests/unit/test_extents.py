from __future__ import annotations

from xorepd.extents import Extent, clip, merge, split, total


def test_end_is_the_first_byte_behind() -> None:
    assert Extent(64, 128).end == 192


def test_overlapping_extents_are_joined() -> None:
    assert merge([Extent(0, 10), Extent(5, 10)]) == [Extent(0, 15)]


def test_touching_extents_are_joined() -> None:
    assert merge([Extent(10, 10), Extent(0, 10)]) == [Extent(0, 20)]


def test_extent_inside_another_disappears() -> None:
    assert merge([Extent(0, 100), Extent(10, 10), Extent(50, 60)]) == [Extent(0, 110)]


def test_extents_apart_stay_apart_and_come_in_order() -> None:
    assert merge([Extent(20, 5), Extent(0, 5)]) == [Extent(0, 5), Extent(20, 5)]


def test_empty_extents_are_left_out() -> None:
    assert merge([Extent(5, 0), Extent(10, 1)]) == [Extent(10, 1)]


def test_clip_shortens_the_last_and_drops_what_is_beyond() -> None:
    assert clip([Extent(0, 10), Extent(20, 10), Extent(40, 10)], 25) == [
        Extent(0, 10),
        Extent(20, 5),
    ]


def test_total_of_nothing_is_nothing() -> None:
    assert total([]) == 0


def test_split_cuts_at_multiples_not_at_lengths() -> None:
    assert list(split(Extent(5, 20), 10)) == [Extent(5, 5), Extent(10, 10), Extent(20, 5)]


def test_split_leaves_an_extent_within_its_bounds_whole() -> None:
    assert list(split(Extent(10, 10), 10)) == [Extent(10, 10)]
