"""A VHD stream as it arrives, in pieces of any size, checked to the last byte. No I/O.

Bytes are fed in; the disk's data comes out as (offset, memoryview) without being copied. The
parser holds one bit per block and a few hundred bytes, whatever the size of the disk.

XAPI writes the blocks in ascending order without gaps (xapi: ocaml/libs/vhd/vhd_format/f.ml), each
with all bits of its sector bitmap set. That is required here: it makes every entry of the block
table predictable, so that any cut, shifted, doubled or padded stream is found out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum, auto

from xorepd.data.blocks import BlockMap
from xorepd.data.vhd.layout import (
    ABSENT,
    BITMAP_SIZE,
    BLOCK_SIZE,
    DIFFERENCING,
    FOOTER_SIZE,
    HEADER_SIZE,
    SECTOR,
    Footer,
    Header,
    VhdError,
    parse_footer,
    parse_header,
    table_size,
)

_FULL_BITMAP = b"\xff" * BITMAP_SIZE


class _At(Enum):
    """What the next byte belongs to."""

    FOOTER_COPY = auto()
    HEADER = auto()
    GAP = auto()
    TABLE = auto()
    BITMAP = auto()
    DATA = auto()
    FOOTER = auto()
    END = auto()


class VhdStreamParser:
    """Feed it a stream; take the head's facts when `head_complete`, and the data as it comes.

    Args:
        differencing: whether the stream must be a delta (True) or a whole disk (False).
    """

    def __init__(self, *, differencing: bool) -> None:
        self._differencing = differencing
        self._at = _At.FOOTER_COPY
        self._held = bytearray()
        self._wanted = FOOTER_SIZE
        self._footer_copy = b""
        self._footer: Footer | None = None
        self._header: Header | None = None
        self._present: BlockMap | None = None
        self._blocks_seen = 0
        self._expected_sector = 0
        self._pending: Iterator[int] = iter(())
        self._block = 0
        self._in_block = 0
        self.received = 0
        self.length: int | None = None
        """Bytes that the whole stream must have: known once the head is complete."""

    @property
    def head_complete(self) -> bool:
        return self.length is not None

    @property
    def virtual_size(self) -> int:
        assert self._footer is not None
        return self._footer.virtual_size

    @property
    def is_complete(self) -> bool:
        return self._at is _At.END

    @property
    def extents(self) -> BlockMap:
        """Which bytes of the disk the stream holds."""
        assert self._present is not None
        return self._present

    def feed(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Take in the next bytes; yield the disk data among them as (offset, bytes).

        The yielded views are parts of `data`. Feed the next piece when the iterator is exhausted.

        Raises:
            VhdError: the stream is not what it claims to be.
        """
        self.received += len(data)
        position = 0
        while position < len(data):
            if self._at is _At.END:
                surplus = len(data) - position
                raise VhdError(f"{surplus} bytes or more follow the end of the VHD stream")
            if self._at is _At.DATA:
                piece = data[position : position + BLOCK_SIZE - self._in_block]
                position += len(piece)
                offset = self._block * BLOCK_SIZE + self._in_block
                self._in_block += len(piece)
                if self._in_block == BLOCK_SIZE:
                    self._next_block()
                inside = piece[: max(0, self.virtual_size - offset)]
                if inside:
                    yield offset, inside
                continue
            piece = data[position : position + self._wanted - len(self._held)]
            position += len(piece)
            self._held += piece
            if len(self._held) == self._wanted:
                held, self._held = bytes(self._held), bytearray()
                self._take(held)

    def next_read(self, piece: int) -> int:
        """Return how many bytes to read next, for data in pieces that end at multiples of `piece`.

        Args:
            piece: a divisor of the block size.
        """
        if self._at is _At.BITMAP:
            return self._wanted - len(self._held) + piece
        if self._at is _At.DATA:
            return piece - self._in_block % piece
        return self._wanted - len(self._held)

    def finish(self) -> None:
        """Declare the end of the stream.

        Raises:
            VhdError: it has not ended yet.
        """
        if self._at is not _At.END:
            of = f" of {self.length}" if self.length is not None else ""
            raise VhdError(f"the stream ended after {self.received}{of} bytes")

    def _expect(self, at: _At, size: int) -> None:
        self._at, self._wanted = at, size

    def _take(self, held: bytes) -> None:
        match self._at:
            case _At.FOOTER_COPY:
                self._footer_copy = held
                self._footer = parse_footer(held)
                self._check_kind(self._footer)
                self._expect(_At.HEADER, HEADER_SIZE)
            case _At.HEADER:
                assert self._footer is not None
                self._header = parse_header(held, self._footer)
                self._present = BlockMap(self._footer.virtual_size, BLOCK_SIZE)
                after = self._header.table_offset + table_size(self._header.blocks)
                self._expected_sector = after // SECTOR
                gap = self._header.table_offset - FOOTER_SIZE - HEADER_SIZE
                if gap:
                    self._expect(_At.GAP, gap)
                else:
                    self._expect(_At.TABLE, SECTOR)
            case _At.GAP:
                self._expect(_At.TABLE, SECTOR)
            case _At.TABLE:
                self._take_table_sector(held)
            case _At.BITMAP:
                if held != _FULL_BITMAP:
                    raise VhdError(f"block {self._block} is only partly present")
                self._at = _At.DATA
            case _At.FOOTER:
                if held != self._footer_copy:
                    raise VhdError("the footer at the end differs from its copy at the beginning")
                self._at = _At.END
            case _At.DATA | _At.END:
                raise AssertionError(self._at)

    def _check_kind(self, footer: Footer) -> None:
        is_differencing = footer.disk_type == DIFFERENCING
        if is_differencing and not self._differencing:
            raise VhdError("a whole disk was asked for and a delta came")
        if not is_differencing and self._differencing:
            raise VhdError("a delta was asked for and a whole disk came")

    def _take_table_sector(self, held: bytes) -> None:
        assert self._header is not None
        assert self._present is not None
        for (entry,) in struct.iter_unpack(">I", held):
            block = self._blocks_seen
            if block == self._header.blocks:
                break  # padding of the table's last sector
            self._blocks_seen += 1
            if entry == ABSENT:
                continue
            if entry != self._expected_sector:
                raise VhdError(
                    f"block {block} is said to be at sector {entry}, "
                    f"where {self._expected_sector} must be the next"
                )
            self._present.add(block)
            self._expected_sector += (BITMAP_SIZE + BLOCK_SIZE) // SECTOR
        if self._blocks_seen == self._header.blocks:
            self.length = self._expected_sector * SECTOR + FOOTER_SIZE
            self._pending = self._present.blocks()
            self._next_block()

    def _next_block(self) -> None:
        block = next(self._pending, None)
        if block is None:
            self._expect(_At.FOOTER, FOOTER_SIZE)
        else:
            self._block, self._in_block = block, 0
            self._expect(_At.BITMAP, BITMAP_SIZE)
