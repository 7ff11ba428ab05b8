"""Continue an interrupted transfer: read a disk from an offset on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing

from xorepd.data.digest import Digest
from xorepd.data.nbd.reader import NbdReader
from xorepd.data.reader import Piece, Reader
from xorepd.extents import Extent


def go_on(reader: Reader, start: int, sample: Iterable[Extent], digest: Digest) -> Reader:
    """Return a reader from an offset on, which updates a digest with the sample before it.

    Data before the offset is read if it is in the sample, or if the reader cannot skip it.

    Args:
        sample: Extents among those of the reader.
        digest: Updated with the part of the sample before the offset.
    """
    if not start:
        return reader
    if isinstance(reader, NbdReader):
        reader.narrow(_Needed(sample, reader.extents, start))
    return Rest(reader, start, digest.update)


class Rest:
    """The data of another reader from an offset on: the rest of an interrupted transfer.

    Args:
        start: Offset in bytes.
        seen: Called with the data before it, which was already sent.
    """

    def __init__(self, reader: Reader, start: int, seen: Callable[[int, memoryview], None]) -> None:
        self._reader, self._start, self._seen = reader, start, seen
        self.virtual_size, self.extents = reader.virtual_size, Beyond(reader.extents, start)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._reader.pieces()) as pieces:
            async for offset, data in pieces:
                before = min(max(self._start - offset, 0), len(data))
                if before:
                    self._seen(offset, data[:before])
                if before < len(data):
                    yield offset + before, data[before:]


class Beyond:
    """The part of some extents behind an offset; iterable as often as they are."""

    def __init__(self, extents: Iterable[Extent], start: int) -> None:
        self._extents, self._start = extents, start

    def __iter__(self) -> Iterator[Extent]:
        for extent in self._extents:
            if extent.end > self._start:
                offset = max(extent.offset, self._start)
                yield Extent(offset, extent.end - offset)


class _Needed:
    """A sample before an offset, and everything behind it."""

    def __init__(self, sample: Iterable[Extent], extents: Iterable[Extent], start: int) -> None:
        self._sample, self._extents, self._start = sample, extents, start

    def __iter__(self) -> Iterator[Extent]:
        for extent in self._sample:
            if extent.offset >= self._start:
                break
            yield Extent(extent.offset, min(extent.end, self._start) - extent.offset)
        yield from Beyond(self._extents, self._start)
