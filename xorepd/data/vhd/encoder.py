"""Extents of a disk as a VHD stream whose length is known before its first byte. No I/O.

XAPI's VHD import needs the exact Content-Length and writes only the sectors whose bit is set in a
block's bitmap (xapi: ocaml/libs/vhd/vhd_format/f.ml), so a stream may carry any extents that are
aligned to sectors: sectors between them are sent as zeroes with their bit clear, and stay as they
are on the target.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from xorepd.data.vhd.layout import (
    ABSENT,
    BITMAP_SIZE,
    BLOCK_SIZE,
    FOOTER_SIZE,
    MAX_VIRTUAL_SIZE,
    SECTOR,
    TABLE_OFFSET,
    VhdError,
    block_count,
    make_footer,
    make_header,
    table_size,
)
from xorepd.extents import Extent, split

_TABLE_PIECE = 16384
"""Entries of the block table made at a time: 64 KiB."""

_ZEROES = memoryview(bytes(64 * 1024))


class VhdStreamEncoder:
    """Give the extents first, then exactly their data, in ascending order.

    Args:
        virtual_size: of the disk, a multiple of 512, at most `MAX_VIRTUAL_SIZE`.
        extents: sorted, disjoint, aligned to 512 bytes, within the disk; iterated several times.

    Raises:
        VhdError: the extents cannot be written as a VHD stream.
    """

    def __init__(self, virtual_size: int, extents: Iterable[Extent]) -> None:
        if virtual_size % SECTOR or not 0 < virtual_size <= MAX_VIRTUAL_SIZE:
            raise VhdError(f"a disk of {virtual_size} bytes does not fit a VHD")
        for extent in extents:
            if extent.offset % SECTOR or extent.length % SECTOR or extent.end > virtual_size:
                raise VhdError(f"extent {extent.offset}+{extent.length} is not aligned or outside")
        self.virtual_size = virtual_size
        self._extents = extents
        self._footer = make_footer(virtual_size)
        self._head_size = TABLE_OFFSET + table_size(block_count(virtual_size))
        present = sum(1 for _ in self._blocks())
        self.length = self._head_size + present * (BITMAP_SIZE + BLOCK_SIZE) + FOOTER_SIZE
        self._parts = self._layout()
        self._part: Extent | None = None
        self._written = 0

    def head(self) -> Iterator[bytes]:
        """Return everything before the first block, in bounded pieces."""
        yield self._footer + make_header(self.virtual_size) + bytes(SECTOR)
        sector = self._head_size // SECTOR
        entries = self._head_size - TABLE_OFFSET
        present = self._blocks()
        following = next(present, None)
        for first in range(0, entries // 4, _TABLE_PIECE):
            table = []
            for block in range(first, min(first + _TABLE_PIECE, entries // 4)):
                if block == following:
                    table.append(sector)
                    sector += (BITMAP_SIZE + BLOCK_SIZE) // SECTOR
                    following = next(present, None)
                else:
                    table.append(ABSENT)
            yield struct.pack(f">{len(table)}I", *table)

    def encode(self, offset: int, data: memoryview) -> Iterator[bytes | memoryview]:
        """Return the stream's bytes for the next data of the disk.

        Raises:
            VhdError: this is not what the extents announced.
        """
        while data:
            if self._part is None:
                yield from self._until_data()
                if self._part is None:
                    raise VhdError(f"data at {offset} is beyond the last extent")
            expected = self._part.offset + self._written
            if offset != expected:
                raise VhdError(f"data at {offset} came where {expected} is the next")
            piece = data[: self._part.length - self._written]
            yield piece
            offset, data = offset + len(piece), data[len(piece) :]
            self._written += len(piece)
            if self._written == self._part.length:
                self._part = None

    def tail(self) -> Iterator[bytes | memoryview]:
        """Return what follows the last data.

        Raises:
            VhdError: data of some extent never came.
        """
        if self._part is None:
            yield from self._until_data()
        if self._part is not None:
            raise VhdError(f"the data from {self._part.offset + self._written} never came")
        yield self._footer

    # The stream behind the head is a sequence of parts: a bitmap, or a gap of zeroes, or data.

    def _until_data(self) -> Iterator[bytes | memoryview]:
        """Pass bitmaps and gaps up to the next part that is data, or to the end."""
        for part in self._parts:
            if isinstance(part, Extent):
                self._part, self._written = part, 0
                return
            if isinstance(part, bytes):
                yield part
                continue
            for start in range(0, part, len(_ZEROES)):
                yield _ZEROES[: min(len(_ZEROES), part - start)]

    def _layout(self) -> Iterator[bytes | int | Extent]:
        """Return the parts: bitmaps as bytes, gaps as their length, data as extents."""
        block, pieces = -1, list[Extent]()
        for extent in self._extents:
            for piece in split(extent, BLOCK_SIZE):
                if piece.offset // BLOCK_SIZE != block:
                    yield from _block_parts(block, pieces)
                    block, pieces = piece.offset // BLOCK_SIZE, []
                pieces.append(piece)
        yield from _block_parts(block, pieces)

    def _blocks(self) -> Iterator[int]:
        """Return the indexes of the blocks that any extent touches, ascending."""
        last = -1
        for extent in self._extents:
            first = max(last + 1, extent.offset // BLOCK_SIZE)
            last = (extent.end - 1) // BLOCK_SIZE
            yield from range(first, last + 1)


def _block_parts(block: int, pieces: Sequence[Extent]) -> Iterator[bytes | int | Extent]:
    if not pieces:
        return
    start = block * BLOCK_SIZE
    bits = 0
    for piece in pieces:  # the most significant bit of the first byte is the first sector
        first, count = (piece.offset - start) // SECTOR, piece.length // SECTOR
        bits |= ((1 << count) - 1) << BITMAP_SIZE * 8 - first - count
    yield bits.to_bytes(BITMAP_SIZE, "big")
    position = start
    for piece in pieces:
        if piece.offset > position:
            yield piece.offset - position
        yield piece
        position = piece.end
    if position < start + BLOCK_SIZE:
        yield start + BLOCK_SIZE - position
