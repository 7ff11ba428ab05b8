"""A fingerprint of data on its way, to compare with what can be read back at the other end.

It covers offsets and bytes in order, up to a limit, and does not depend on how they were cut into
pieces. xxh3 finds accidents, not forgeries, at the speed of memory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

import xxhash

from xorepd.data.reader import Piece, Reader
from xorepd.extents import Extent

Meter = Callable[[int], None]
"""Told the number of bytes whenever some have moved."""


class Digest:
    """Takes pieces in ascending order.

    Args:
        limit: bytes of data after which everything else is ignored; None takes all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.size = 0
        self._next = -1
        self._hash = xxhash.xxh3_128()

    def update(self, offset: int, data: memoryview) -> None:
        if self.limit is not None:
            data = data[: self.limit - self.size]
        if not data:
            return
        if offset != self._next:
            self._hash.update(offset.to_bytes(8, "big"))
        self._hash.update(data)
        self._next = offset + len(data)
        self.size += len(data)

    @property
    def is_full(self) -> bool:
        """Whether nothing more would be taken in."""
        return self.limit is not None and self.size >= self.limit

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class Observed:
    """A reader whose data is counted and hashed on the way through."""

    def __init__(self, reader: Reader, digest: Digest, moved: Meter) -> None:
        self._reader, self._digest, self._moved = reader, digest, moved

    @property
    def virtual_size(self) -> int:
        return self._reader.virtual_size

    @property
    def extents(self) -> Iterable[Extent]:
        return self._reader.extents

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._reader.pieces()) as pieces:
            async for offset, data in pieces:
                self._digest.update(offset, data)
                yield offset, data
                self._moved(len(data))


async def read_back(reader: Reader, extents: Iterable[Extent], limit: int | None) -> Digest:
    """Return the digest of these extents as another reader gives them.

    The other reader may give more: what lies outside the extents is not looked at.
    """
    digest = Digest(limit)
    wanted = iter(extents)
    extent = next(wanted, None)
    async with aclosing(reader.pieces()) as pieces:
        async for start, data in pieces:
            offset = start
            while data and extent is not None:
                if offset >= extent.end:
                    extent = next(wanted, None)
                    continue
                skip = max(0, extent.offset - offset)
                offset, data = offset + skip, data[skip:]
                inside = data[: extent.end - offset]
                if inside:
                    digest.update(offset, inside)
                offset, data = offset + len(inside), data[len(inside) :]
            if digest.is_full:
                break
    return digest
