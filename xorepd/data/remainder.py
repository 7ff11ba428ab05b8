"""The second part of an interrupted transfer: what a reader gives from an offset on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing

from xorepd.data.digest import Digest
from xorepd.data.nbd.reader import NbdReader
from xorepd.data.reader import Piece, Reader
from xorepd.extents import Extent


def go_on(reader: Reader, start: int, sample: Iterable[Extent], digest: Digest) -> Reader:
    """Return a reader that goes on at an offset and shows the sample of what lies before it.

    What lies before the offset is read where it is in the sample, or where the reader cannot leave
    it out.

    Args:
        sample: extents among those of the reader.
        digest: shown that part of the sample.
    """
    if not start:
        return reader
    if isinstance(reader, NbdReader):
        reader.narrow(_Needed(sample, reader.extents, start))
    return Rest(reader, start, digest.update)


class Rest:
    """What another reader gives from an offset on: an interrupted transfer's second part.

    What comes before it has been sent already and is only looked at.

    Args:
        start: where the second part begins, in bytes.
        seen: told of what lies before it.
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
    """What lies behind an offset in some extents; as often iterable as they are."""

    def __init__(self, extents: Iterable[Extent], start: int) -> None:
        self._extents, self._start = extents, start

    def __iter__(self) -> Iterator[Extent]:
        for extent in self._extents:
            if extent.end > self._start:
                offset = max(extent.offset, self._start)
                yield Extent(offset, extent.end - offset)


class _Needed:
    """A sample below an offset, and everything behind it."""

    def __init__(self, sample: Iterable[Extent], extents: Iterable[Extent], start: int) -> None:
        self._sample, self._extents, self._start = sample, extents, start

    def __iter__(self) -> Iterator[Extent]:
        for extent in self._sample:
            if extent.offset >= self._start:
                break
            yield Extent(extent.offset, min(extent.end, self._start) - extent.offset)
        yield from Beyond(self._extents, self._start)
