"""Restrict the data of a reader to some extents, or fill it up to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

from xorepd.data.blocks import BlockMap
from xorepd.data.reader import Piece, Reader
from xorepd.extents import Extent
from xorepd.units import MiB

_ZEROES = memoryview(bytes(MiB))


class Sieve:
    """Takes pieces in ascending order and yields the parts inside some extents.

    Args:
        within: Sorted, disjoint.
    """

    def __init__(self, within: Iterable[Extent]) -> None:
        self._rest = iter(within)
        self._wanted = next(self._rest, None)

    @property
    def is_done(self) -> bool:
        """Whether all extents have been passed."""
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


class Remaining:
    """Some extents from an offset on, without some units; iterable as often as the extents.

    Args:
        extents: Sorted, disjoint.
        start: Offset in bytes.
        without: Units of 64 KiB to leave out.
    """

    def __init__(self, extents: Iterable[Extent], start: int, without: BlockMap) -> None:
        self._extents, self._start, self._without = extents, start, without

    def __iter__(self) -> Iterator[Extent]:
        size = self._without.block_size
        for extent in self._extents:
            begin = at = max(extent.offset, self._start)
            while at < extent.end:
                end = min((at // size + 1) * size, extent.end)
                if self._without.has(at // size):
                    if begin < at:
                        yield Extent(begin, at - begin)
                    begin = end
                at = end
            if begin < extent.end:
                yield Extent(begin, extent.end - begin)


class Narrowed:
    """The data of another reader in some blocks. The other reader reads everything all the same.

    Args:
        within: Blocks among the extents of the reader.
    """

    def __init__(self, reader: Reader, within: BlockMap) -> None:
        self._reader = reader
        self.virtual_size, self.extents = reader.virtual_size, within

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        sieve = Sieve(self.extents)
        async with aclosing(self._reader.pieces()) as pieces:
            async for offset, data in pieces:
                for part in sieve.parts(offset, data):
                    yield part


class Filled:
    """The data of another reader in some extents, with zeroes for the gaps in it.

    Args:
        within: Sorted, disjoint, iterable several times.
    """

    def __init__(self, reader: Reader, within: Iterable[Extent]) -> None:
        self._reader = reader
        self.virtual_size, self.extents = reader.virtual_size, within

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        sieve, gaps = Sieve(self.extents), _Gaps(self.extents)
        async with aclosing(self._reader.pieces()) as pieces:
            async for offset, data in pieces:
                for start, part in sieve.parts(offset, data):
                    for zeroes in gaps.until(start):
                        yield zeroes
                    yield start, part
                    gaps.passed(len(part))
        for zeroes in gaps.until(self.virtual_size):
            yield zeroes


class _Gaps:
    """Walks along some extents and yields zeroes for the data that does not come."""

    def __init__(self, within: Iterable[Extent]) -> None:
        self._rest = iter(within)
        self._extent = Extent(0, 0)
        self._at = 0

    def until(self, offset: int) -> Iterator[Piece]:
        """Yield zeroes for everything before an offset that has not come."""
        while True:
            end = min(self._extent.end, offset)
            while self._at < end:
                size = min(len(_ZEROES), end - self._at)
                yield self._at, _ZEROES[:size]
                self._at += size
            if self._extent.end > offset:
                return
            following = next(self._rest, None)
            if following is None:
                return
            self._extent, self._at = following, following.offset

    def passed(self, size: int) -> None:
        self._at += size
