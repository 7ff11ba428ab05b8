from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest

from xorepd.data.blocks import SPAN, BlockMap, parts_of, size_of
from xorepd.data.digest import sample_of
from xorepd.extents import Extent, split, total
from xorepd.units import KiB, MiB, TiB


def test_empty_map_has_no_extents() -> None:
    assert list(BlockMap(1024, 100)) == []


def test_neighbours_make_one_extent() -> None:
    found = BlockMap(1000, 100)

    for block in (1, 2, 3, 7, 8):
        found.add(block)

    assert list(found) == [Extent(100, 300), Extent(700, 200)]


def test_blocks_may_be_added_in_any_order_and_twice() -> None:
    found = BlockMap(1000, 100)

    for block in (5, 1, 5, 0):
        found.add(block)

    assert list(found.blocks()) == [0, 1, 5]


def test_last_extent_ends_with_the_disk() -> None:
    found = BlockMap(950, 100)

    found.add(9)

    assert list(found) == [Extent(900, 50)]


def test_map_can_be_iterated_again_and_again() -> None:
    found = BlockMap(1000, 100)
    found.add(3)

    assert list(found) == list(found) == [Extent(300, 100)]


def test_last_block_of_each_byte_has_its_place() -> None:
    found = BlockMap(17 * 512, 512)

    for block in range(17):
        found.add(block)

    assert list(found) == [Extent(0, 17 * 512)]


@pytest.mark.parametrize("size", [1, 99, 100, 101, 799, 800, 801])
def test_full_map_holds_exactly_the_disk(size: int) -> None:
    found = BlockMap(size, 100)

    for block in range(-(-size // 100)):
        found.add(block)

    assert total(found) == size


def test_extents_of_a_huge_disk_come_one_at_a_time() -> None:
    found = BlockMap(2 * TiB, 64 * KiB)
    found.add(0)
    found.add(2 * TiB // (64 * KiB) - 1)

    extents = iter(found)

    assert next(extents) == Extent(0, 64 * KiB)
    assert next(extents).end == 2 * TiB


@pytest.mark.parametrize("virtual_size", [1, 99, 100, 101, 799, 800, 801, 950, 1600])
def test_its_size_is_that_of_its_extents(virtual_size: int) -> None:
    blocks = range(-(-virtual_size // 100))
    wholes: list[Sequence[int]] = [[], blocks, blocks[:1], blocks[-1:], blocks[::2], blocks[1::3]]
    for wanted in wholes:
        found = BlockMap(virtual_size, 100)
        for block in wanted:
            found.add(block)

        assert found.size == size_of(found) == size_of(list(found)) == total(found)


def test_an_empty_disk_has_an_empty_map() -> None:
    assert (BlockMap(0, 100).size, list(BlockMap(0, 100))) == (0, [])


def lines_of(work: Callable[[], object]) -> int:
    """Return how many lines of Python a piece of work runs through, calls included."""
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("ratio", [1, 2, 7, 32])
def test_blocks_within_larger_ones_are_those_that_lie_in_them(ratio: int) -> None:
    rng = random.Random(ratio)
    small, large = BlockMap(99_990, 100), BlockMap(99_990, 100 * ratio)
    for block in rng.sample(range(1000), 500):
        small.add(block)
    for block in rng.sample(range(1000 // ratio), 400 // ratio):
        large.add(block)

    both = small.within(large)

    assert list(both.blocks()) == [b for b in small.blocks() if large.has(b // ratio)]


def test_blocks_within_a_map_of_a_shorter_disk_end_with_it() -> None:
    small, large = BlockMap(6400, 100), BlockMap(1600, 1600)
    for block in range(64):
        small.add(block)
    large.add(0)

    assert list(small.within(large)) == [Extent(0, 1600)]


def test_blocks_that_do_not_fit_into_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="not made of"):
        BlockMap(1000, 100).within(BlockMap(1000, 50))


def test_places_of_a_map_are_those_of_its_extents() -> None:
    rng = random.Random(1)
    blocks = SPAN * 8 * 3
    found = BlockMap(blocks * 100 - 50, 100)
    for block in rng.sample(range(blocks), blocks // 2):
        found.add(block)
    found.add(blocks - 1)
    places = list(split(Extent(0, found.size + 5000), 7777))[::3]

    assert list(found.parts(places)) == list(parts_of(list(found), places))


def test_places_go_on_in_the_next_extent() -> None:
    extents = [Extent(10, 10), Extent(50, 30), Extent(90, 10)]

    assert list(parts_of(extents, [Extent(0, 5), Extent(8, 4), Extent(35, 100)])) == [
        Extent(10, 5),
        Extent(18, 2),
        Extent(50, 2),
        Extent(75, 5),
        Extent(90, 10),
    ]


@pytest.mark.parametrize("pattern", [b"\xff", b"\x55"])
def test_a_full_map_of_a_large_disk_is_not_gone_through_block_by_block(pattern: bytes) -> None:
    bits = pattern * (4 * TiB // (64 * KiB) // 8)
    changed = BlockMap.of_bits(4 * TiB, 64 * KiB, bits)
    allocated = BlockMap.of_bits(4 * TiB, 2 * MiB, b"\xff" * (4 * TiB // (2 * MiB) // 8))

    lines = lines_of(lambda: list(sample_of(changed.within(allocated), 4 * MiB, "seed")))

    assert lines < len(bits) // 50  # it has eight times as many blocks as bytes
