"""The protocol of what reads a disk; see `writer` for the other end.

Both know the extents in advance. Data travels as (offset, bytes) in ascending order, in pieces of
any size. A piece is valid until the next one is requested.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Protocol

from xorepd.extents import Extent

Piece = tuple[int, memoryview]
"""Offset on the disk in bytes, and the bytes."""


class Reader(Protocol):
    """One disk, or its changes, open for reading once from front to back."""

    @property
    def virtual_size(self) -> int:
        """Size of the whole disk in bytes."""

    @property
    def extents(self) -> Iterable[Extent]:
        """The extents that will be read: sorted, disjoint, iterable several times."""

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the data of all extents, then check that it was complete.

        Close it (`contextlib.aclosing`) if the last piece may not be reached.

        Raises:
            DataError: the stream ended early, is invalid, or failed according to its pool.
        """
