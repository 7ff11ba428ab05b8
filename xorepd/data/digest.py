"""The digest of the content of a disk in transit, to compare with the data read back.

Two readers may split the same content differently, and one may omit zeroes that the other gives. So
the digest depends only on the content: each unit of 64 KiB that is not zero counts with its offset
and its hash, and unread ranges count as zeroes.

xxh3 detects accidents, not forgeries, at the speed of memory.
"""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing

import xxhash

from xorepd.data.blocks import BlockMap, parts_of, size_of
from xorepd.data.reader import Piece, Reader
from xorepd.data.subset import Sieve
from xorepd.data.zeroes import UNIT, hash_of_unit
from xorepd.extents import Extent
from xorepd.units import MiB

Meter = Callable[[int], None]
"""Called with the number of bytes each time some have moved."""

SPOT = 1 * MiB
"""Size of one place of a sample that is spread over a disk."""

_ENTRY = struct.Struct("<QQ")


class Units:
    """Splits data in ascending order into whole units.

    Args:
        took: Called with the offset and bytes of each unit; the bytes are valid until it returns.
    """

    def __init__(self, took: Callable[[int, memoryview], None]) -> None:
        self._took = took
        self._unit = -1
        self._scratch = bytearray(UNIT)

    def take(self, offset: int, data: memoryview) -> None:
        head = min(-offset % UNIT, len(data))
        body = (len(data) - head) // UNIT * UNIT
        if head:
            self._keep(offset, data[:head])
        if body:
            self.flush()
            for at in range(head, head + body, UNIT):
                self._took(offset + at, data[at : at + UNIT])
        if head + body < len(data):
            self._keep(offset + head + body, data[head + body :])

    def flush(self) -> None:
        """Emit the incomplete unit; its missing parts are zero."""
        if self._unit >= 0:
            self._took(self._unit, memoryview(self._scratch))
            self._scratch[:] = bytes(UNIT)
            self._unit = -1

    def _keep(self, offset: int, part: memoryview) -> None:
        """Keep a part of a unit until the rest has come."""
        at = offset % UNIT
        if offset - at != self._unit:
            self.flush()
            self._unit = offset - at
        self._scratch[at : at + len(part)] = part


class Digest:
    """Takes the content of a disk in ascending order.

    Args:
        within: Sorted, disjoint extents; data outside is ignored. None: all data.
    """

    def __init__(self, within: Iterable[Extent] | None = None) -> None:
        self._sieve = None if within is None else Sieve(within)
        self._hash = xxhash.xxh3_128()
        self._units = Units(self._count)

    def update(self, offset: int, data: memoryview) -> None:
        if self._sieve is None:
            self._units.take(offset, data)
            return
        for part in self._sieve.parts(offset, data):
            self._units.take(*part)

    @property
    def is_complete(self) -> bool:
        """Whether all of its extents have been passed."""
        return self._sieve is not None and self._sieve.is_done

    def hexdigest(self) -> str:
        """Return the digest. No more data may follow."""
        self._units.flush()
        return self._hash.hexdigest()

    def _count(self, unit: int, data: memoryview) -> None:
        digest = hash_of_unit(data)
        if digest is not None:
            self._hash.update(_ENTRY.pack(unit, digest))


class Observed:
    """A reader that counts and hashes the data that passes."""

    def __init__(self, reader: Reader, digest: Digest, moved: Meter) -> None:
        self._reader, self._digest, self._moved = reader, digest, moved
        self.virtual_size, self.extents = reader.virtual_size, reader.extents

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._reader.pieces()) as pieces:
            async for offset, data in pieces:
                self._digest.update(offset, data)
                yield offset, data
                self._moved(len(data))


async def read_back(reader: Reader, within: Iterable[Extent]) -> Digest:
    """Return the digest of these extents as another reader gives them.

    The other reader may give more data; it is read only up to the last of the extents.
    """
    digest = Digest(within)
    async with aclosing(reader.pieces()) as pieces:
        async for offset, data in pieces:
            digest.update(offset, data)
            if digest.is_complete:
                break
    return digest


def head_of(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """Yield the first `size` bytes of some extents, for readers without random access."""
    for extent in extents:
        if size <= 0:
            return
        yield Extent(extent.offset, min(extent.length, size))
        size -= extent.length


def sample_of(extents: Iterable[Extent], size: int, seed: str) -> Iterator[Extent]:
    """Yield about `size` bytes of some extents, in places of 1 MiB spread at random.

    A place is 1 MiB of what the extents hold: where they are fragments, several of them.

    Args:
        extents: disjoint, sorted, iterable again and again.
        seed: decides the places.
    """
    spots = -(-size_of(extents) // SPOT)
    wanted = min(-(-size // SPOT), spots)
    chosen = sorted(random.Random(seed).sample(range(spots), wanted))
    places = [Extent(spot * SPOT, SPOT) for spot in chosen]
    if isinstance(extents, BlockMap):
        yield from extents.parts(places)
    else:
        yield from parts_of(extents, places)
