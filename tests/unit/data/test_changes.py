from __future__ import annotations

import base64
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xorepd.data.nbd.changed_blocks import BLOCK, parse_changes
from xorepd.extents import Extent
from xorepd.units import TiB


def encoded(*bits: str) -> str:
    return base64.b64encode(bytes(int(b, 2) for b in bits)).decode()


def test_the_most_significant_bit_is_the_first_block() -> None:
    changes = parse_changes(encoded("10000000", "00000001"), 16 * BLOCK)
    assert list(changes) == [Extent(0, BLOCK), Extent(15 * BLOCK, BLOCK)]


def test_neighbours_are_one_extent() -> None:
    changes = parse_changes(encoded("01110000"), 8 * BLOCK)
    assert list(changes) == [Extent(BLOCK, 3 * BLOCK)]


def test_the_last_block_ends_with_the_disk() -> None:
    changes = parse_changes(encoded("00100000"), 2 * BLOCK + 512)
    assert list(changes) == [Extent(2 * BLOCK, 512)]


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        (encoded("00000000"), 9 * BLOCK, "has 1 bytes"),
        (encoded("00000000", "00000000"), 8 * BLOCK, "has 2 bytes"),
        (encoded("00010000"), 3 * BLOCK, "beyond the end"),
        ("?", BLOCK, "not base64"),
        ("", BLOCK, "has 0 bytes"),
    ],
)
def test_what_is_no_bitmap_of_the_disk_is_refused(text: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_changes(text, size)


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_every_bit_is_its_block(bits: list[bool]) -> None:
    padded = bits + [False] * (-len(bits) % 8)
    octets = ["".join("01"[bit] for bit in padded[i : i + 8]) for i in range(0, len(padded), 8)]
    changes = parse_changes(encoded(*octets), len(bits) * BLOCK)
    assert list(changes.blocks()) == [index for index, bit in enumerate(bits) if bit]


def test_a_bitmap_of_4_tib_takes_little_memory_and_time() -> None:
    size = 4 * TiB
    bits = bytearray(size // BLOCK // 8)
    bits[0], bits[len(bits) // 2], bits[-1] = 0x80, 0xFF, 0x01
    text = base64.b64encode(bits).decode()

    tracemalloc.start()
    try:
        changes = parse_changes(text, size)
        found = list(changes)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert found == [Extent(0, BLOCK), Extent(2 * TiB, 8 * BLOCK), Extent(size - BLOCK, BLOCK)]
    assert most < 6 * len(bits)


def test_a_bitmap_of_4_tib_is_refused_for_any_other_size() -> None:
    text = base64.b64encode(bytes(4 * TiB // BLOCK // 8)).decode()

    for size in (4 * TiB - 8 * BLOCK, 4 * TiB + 1, 2 * TiB):
        with pytest.raises(ValueError, match="bytes has"):
            parse_changes(text, size)
