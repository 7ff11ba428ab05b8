"""Lists of extents as sets of bytes: a model that is slow and obvious."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from xorepd.data.blocks import BlockMap
from xorepd.extents import Extent, clip, merge, split, total

EXTENTS = st.lists(st.builds(Extent, st.integers(0, 200), st.integers(0, 50)), max_size=20)


def bytes_of(extents: list[Extent]) -> set[int]:
    return {place for extent in extents for place in range(extent.offset, extent.end)}


@given(EXTENTS)
def test_merge_keeps_the_set_of_bytes(extents: list[Extent]) -> None:
    assert bytes_of(merge(extents)) == bytes_of(extents)


@given(EXTENTS)
def test_merged_extents_are_sorted_and_do_not_touch(extents: list[Extent]) -> None:
    assert all(one.end < other.offset for one, other in pairwise(merge(extents)))


@given(EXTENTS.flatmap(lambda extents: st.tuples(st.just(extents), st.permutations(extents))))
def test_merge_does_not_depend_on_the_order(both: tuple[list[Extent], list[Extent]]) -> None:
    extents, shuffled = both

    assert merge(shuffled) == merge(extents)


@given(EXTENTS)
def test_merging_twice_changes_nothing(extents: list[Extent]) -> None:
    assert merge(merge(extents)) == merge(extents)


@given(EXTENTS)
def test_total_counts_the_bytes(extents: list[Extent]) -> None:
    assert total(merge(extents)) == len(bytes_of(extents))


@given(EXTENTS, st.integers(0, 260))
def test_clip_keeps_what_lies_below(extents: list[Extent], size: int) -> None:
    merged = merge(extents)

    assert bytes_of(clip(merged, size)) == {place for place in bytes_of(merged) if place < size}


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 64))
def test_split_cuts_at_every_multiple_and_loses_nothing(
    offset: int, length: int, granularity: int
) -> None:
    pieces = list(split(Extent(offset, length), granularity))

    assert sum(piece.length for piece in pieces) == length
    assert all(one.end == other.offset for one, other in pairwise(pieces))
    assert all(piece.offset % granularity == 0 for piece in pieces[1:])
    assert all(piece.offset // granularity == (piece.end - 1) // granularity for piece in pieces)


@given(st.sets(st.integers(0, 99)), st.integers(991, 1000))
def test_block_map_is_the_merge_of_its_blocks(blocks: set[int], size: int) -> None:
    found = BlockMap(size, 10)

    for block in blocks:
        found.add(block)

    assert list(found) == clip(merge(Extent(block * 10, 10) for block in blocks), size)
    assert list(found.blocks()) == sorted(blocks)
