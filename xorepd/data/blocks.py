"""Which blocks of a disk are meant: one bit each, so that a map of 2 TiB takes 128 KiB.

A list of extents would be short for most disks and hundreds of megabytes for a fragmented one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Self

from xorepd.extents import Extent, total

_NOT_ZERO = re.compile(rb"[^\x00]")


class BlockMap:
    """A set of blocks that reads as sorted, disjoint extents, as often as it is iterated.

    Args:
        virtual_size: bytes of disk; the last block ends there.
        block_size: bytes of a block.
    """

    def __init__(self, virtual_size: int, block_size: int) -> None:
        self.virtual_size, self.block_size = virtual_size, block_size
        self._bits = bytearray(-(-virtual_size // block_size // 8) + 1)

    @classmethod
    def of_bits(cls, virtual_size: int, block_size: int, bits: bytes) -> Self:
        """Return the map of these bits, the least significant of a byte first."""
        made = cls(virtual_size, block_size)
        made._bits[: len(bits)] = bits
        return made

    def add(self, block: int) -> None:
        self._bits[block // 8] |= 1 << block % 8

    def within(self, other: BlockMap) -> BlockMap:
        """Return those blocks of which the other map has the beginning."""
        both = BlockMap(self.virtual_size, self.block_size)
        for block in self.blocks():
            if other.has(block * self.block_size // other.block_size):
                both.add(block)
        return both

    def has(self, block: int) -> bool:
        return block // 8 < len(self._bits) and bool(self._bits[block // 8] >> block % 8 & 1)

    def blocks(self) -> Iterator[int]:
        """Return the indexes of the blocks in it, ascending."""
        for found in _NOT_ZERO.finditer(self._bits):  # 9 times as fast as a loop, where few are set
            first, bits = found.start() * 8, found[0][0]
            yield from (first + bit for bit in range(8) if bits >> bit & 1)

    @property
    def size(self) -> int:
        """Bytes of disk in it, without going through its blocks."""
        count = -(-self.virtual_size // self.block_size)
        behind_the_end = count * self.block_size - self.virtual_size if self.has(count - 1) else 0
        return int.from_bytes(self._bits, "little").bit_count() * self.block_size - behind_the_end

    def __iter__(self) -> Iterator[Extent]:
        start = end = -1
        for block in self.blocks():
            if block != end:
                if start >= 0:
                    yield self._extent(start, end)
                start = block
            end = block + 1
        if start >= 0:
            yield self._extent(start, end)

    def _extent(self, start: int, end: int) -> Extent:
        offset = start * self.block_size
        return Extent(offset, min(end * self.block_size, self.virtual_size) - offset)


def size_of(extents: Iterable[Extent]) -> int:
    """Return the bytes of disjoint extents: of a map at once, however fragmented it is."""
    return extents.size if isinstance(extents, BlockMap) else total(extents)
