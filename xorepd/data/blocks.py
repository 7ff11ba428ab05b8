"""A set of blocks of a disk, one bit each, so that the map of a 2 TiB disk takes 128 KiB.

A list of extents would be short for most disks, but hundreds of megabytes for a fragmented one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Self

from xorepd.extents import Extent, total

_SET = re.compile(rb"\xff+|[^\x00\xff]")
"""A run of bytes with all bits set, or one byte with some bits set."""
_RUNS_OF = [
    [found.span() for found in re.finditer("1+", f"{byte:08b}"[::-1])] for byte in range(256)
]
"""Runs of set bits in each byte value: (first, one past the last)."""
SPAN = 256
"""Bytes of a map that are counted together to find a block by its rank."""


class BlockMap:
    """A set of blocks that reads as sorted, disjoint extents, as often as it is iterated.

    Args:
        virtual_size: Size of the disk in bytes; the last block ends there.
        block_size: Size of a block in bytes.
    """

    def __init__(self, virtual_size: int, block_size: int) -> None:
        self.virtual_size, self.block_size = virtual_size, block_size
        self._bits = bytearray(-(-virtual_size // block_size // 8) + 1)

    @classmethod
    def of_bits(cls, virtual_size: int, block_size: int, bits: bytes) -> Self:
        """Return the map of these bits, the least significant bit of a byte first."""
        made = cls(virtual_size, block_size)
        made._bits[: len(bits)] = bits
        return made

    def add(self, block: int) -> None:
        self._bits[block // 8] |= 1 << block % 8

    def within(self, other: BlockMap) -> BlockMap:
        """Return the blocks that lie in the blocks of another map.

        Raises:
            ValueError: the block size of the other map is not a multiple of ours.
        """
        each, rest = divmod(other.block_size, self.block_size)
        if rest or not each:
            raise ValueError(f"blocks of {other.block_size} are not made of {self.block_size}")
        ones = (1 << each) - 1
        widened = [  # each byte of the other map, in blocks of this one
            sum(ones << bit * each for bit in range(8) if byte >> bit & 1).to_bytes(each, "little")
            for byte in range(256)
        ]
        theirs = b"".join(map(widened.__getitem__, other._bits))[: len(self._bits)]
        both = int.from_bytes(self._bits, "little") & int.from_bytes(theirs, "little")
        bits = both.to_bytes(len(self._bits), "little")
        return BlockMap.of_bits(self.virtual_size, self.block_size, bits)

    def has(self, block: int) -> bool:
        return block // 8 < len(self._bits) and bool(self._bits[block // 8] >> block % 8 & 1)

    def blocks(self) -> Iterator[int]:
        """Yield the indexes of the blocks, ascending."""
        for start, end in self._runs(0):
            yield from range(start, end)

    @property
    def size(self) -> int:
        """Bytes of disk in the map, without iterating its blocks."""
        count = -(-self.virtual_size // self.block_size)
        behind_the_end = count * self.block_size - self.virtual_size if self.has(count - 1) else 0
        return int.from_bytes(self._bits, "little").bit_count() * self.block_size - behind_the_end

    def __iter__(self) -> Iterator[Extent]:
        return self._extents(self._runs(0))

    def parts(self, places: Iterable[Extent]) -> Iterator[Extent]:
        """Yield parts of the content of the map; their offsets count only bytes that it contains.

        Args:
            places: Sorted and disjoint.
        """
        spans = [self._bits[at : at + SPAN] for at in range(0, len(self._bits), SPAN)]
        behind = list(accumulate(int.from_bytes(span, "little").bit_count() for span in spans))
        for place in places:
            block, skipped = divmod(place.offset, self.block_size)
            span = bisect_right(behind, block)
            before = behind[span - 1] if span else 0
            extents = self._extents(self._runs(span * SPAN))
            start = (block - before) * self.block_size + skipped
            yield from parts_of(extents, [Extent(start, place.length)])

    def _runs(self, at: int) -> Iterator[tuple[int, int]]:
        """Yield runs of blocks from a byte on: (first, one past the last). Runs may touch."""
        for found in _SET.finditer(self._bits, at):  # one step for each run, not for each block
            first = found.start() * 8
            if found[0][0] == 0xFF:
                yield first, found.end() * 8
            else:
                for start, end in _RUNS_OF[found[0][0]]:
                    yield first + start, first + end

    def _extents(self, runs: Iterator[tuple[int, int]]) -> Iterator[Extent]:
        start = end = -1
        for first, behind in runs:
            if first != end:
                if start >= 0:
                    yield self._extent(start, end)
                start = first
            end = behind
        if start >= 0:
            yield self._extent(start, end)

    def _extent(self, start: int, end: int) -> Extent:
        offset = start * self.block_size
        return Extent(offset, min(end * self.block_size, self.virtual_size) - offset)


def parts_of(extents: Iterable[Extent], places: Iterable[Extent]) -> Iterator[Extent]:
    """Yield parts of the content of extents; their offsets count only bytes in the extents.

    Args:
        extents, places: Sorted and disjoint; places behind the last extent are ignored.
    """
    rest = iter(places)
    place = next(rest, None)
    passed = 0
    for extent in extents:
        while place is not None and place.offset < passed + extent.length:
            start = max(place.offset - passed, 0)
            end = min(place.end - passed, extent.length)
            yield Extent(extent.offset + start, end - start)
            if place.end > passed + extent.length:
                break
            place = next(rest, None)
        if place is None:
            return
        passed += extent.length


def size_of(extents: Iterable[Extent]) -> int:
    """Return the total size of disjoint extents; quick for a map, even a fragmented one."""
    return extents.size if isinstance(extents, BlockMap) else total(extents)
