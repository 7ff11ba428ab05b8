"""What gives the data of a disk, and what takes it: the two ends of every copy.

Both know the extents in advance. Data travels as (offset, bytes) in ascending order, in pieces of
whatever size they arrive in; a piece is good until the next one is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Protocol

from xorepd.extents import Extent

Piece = tuple[int, memoryview]
"""Where it belongs on the disk, in bytes, and the bytes."""


class Reader(Protocol):
    """One disk, or what changed on it, open for reading once from front to back."""

    @property
    def virtual_size(self) -> int:
        """Bytes of the whole disk."""

    @property
    def extents(self) -> Iterable[Extent]:
        """What will come: sorted, disjoint, iterable again and again."""

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """Give the data of all extents, then prove that it was all and came whole.

        Close it (`contextlib.aclosing`) where the last piece may not be reached.

        Raises:
            DataError: the stream was cut, contradicts itself, or its pool says that it failed.
        """
