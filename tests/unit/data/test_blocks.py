from __future__ import annotations

import pytest

from xorepd.data.blocks import BlockMap, size_of
from xorepd.extents import Extent, total
from xorepd.units import KiB, TiB


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
    for wanted in ([], blocks, blocks[:1], blocks[-1:], blocks[::2], blocks[1::3]):
        found = BlockMap(virtual_size, 100)
        for block in wanted:
            found.add(block)

        assert found.size == size_of(found) == size_of(list(found)) == total(found)


def test_an_empty_disk_has_an_empty_map() -> None:
    assert (BlockMap(0, 100).size, list(BlockMap(0, 100))) == (0, [])
