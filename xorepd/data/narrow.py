"""Only some extents of what a reader gives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

from xorepd.data.blocks import BlockMap
from xorepd.data.reader import Piece, Reader
from xorepd.extents import Extent


class Sieve:
    """Takes pieces in ascending order and gives the parts that lie inside some extents.

    Args:
        within: sorted, disjoint.
    """

    def __init__(self, within: Iterable[Extent]) -> None:
        self._rest = iter(within)
        self._wanted = next(self._rest, None)

    @property
    def is_done(self) -> bool:
        """Whether all of the extents have been passed."""
        return self._wanted is None

    def parts(self, offset: int, data: memoryview) -> Iterator[Piece]:
        end = offset + len(data)
        while self._wanted is not None and self._wanted.offset < end:
            start = max(offset, self._wanted.offset)
            stop = min(end, self._wanted.end)
            if start < stop:
                yield start, data[start - offset : stop - offset]
            if self._wanted.end > end:
                return
            self._wanted = next(self._rest, None)


class Narrowed:
    """What another reader gives of some blocks; all of it is read all the same.

    Args:
        within: blocks that the reader has.
    """

    def __init__(self, reader: Reader, within: BlockMap) -> None:
        self._reader, self._within = reader, within

    @property
    def virtual_size(self) -> int:
        return self._reader.virtual_size

    @property
    def extents(self) -> BlockMap:
        return self._within

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        sieve = Sieve(self._within)
        async with aclosing(self._reader.pieces()) as pieces:
            async for offset, data in pieces:
                for part in sieve.parts(offset, data):
                    yield part
