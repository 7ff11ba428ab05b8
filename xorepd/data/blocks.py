"""Which blocks of a disk are meant: one bit each, so that a map of 2 TiB takes 128 KiB.

A list of extents would be short for most disks and hundreds of megabytes for a fragmented one.
"""

from __future__ import annotations

from collections.abc import Iterator

from xorepd.extents import Extent


class BlockMap:
    """A set of blocks that reads as sorted, disjoint extents, as often as it is iterated.

    Args:
        virtual_size: bytes of disk; the last block ends there.
        block_size: bytes of a block.
    """

    def __init__(self, virtual_size: int, block_size: int) -> None:
        self.virtual_size, self.block_size = virtual_size, block_size
        self._bits = bytearray(-(-virtual_size // block_size // 8) + 1)

    def add(self, block: int) -> None:
        self._bits[block // 8] |= 1 << block % 8

    def blocks(self) -> Iterator[int]:
        """Return the indexes of the blocks in it, ascending."""
        for index, bits in enumerate(self._bits):
            if bits:
                yield from (index * 8 + bit for bit in range(8) if bits >> bit & 1)

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
