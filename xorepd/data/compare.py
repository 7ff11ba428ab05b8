"""Finding what differs between two disks of which nobody kept book: both are read and compared.

    source ─► fingerprints of 64 KiB ─► queue ─╮
                                               ├─► map of the units that differ
    target ─► fingerprints of 64 KiB ─► queue ─╯

What differs is read once more when it is sent. So its size is known before the first byte leaves,
no import stands open while long equal stretches go by, and it travels like any other delta. That
holds for each window of a long comparison (`replication/resync`). A unit that neither side gives is
zero on both. Memory: the map, one bit for 64 KiB of disk.

The fingerprints have a seed of their own each time: nobody can prepare data that looks unchanged.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import xxhash

from xorepd.data.blocks import BlockMap
from xorepd.data.digest import Meter, Units
from xorepd.data.reader import Reader
from xorepd.data.zeroes import UNIT, is_zero

AHEAD = 8
"""Pieces by which one side may be ahead of the other: 1 MiB of disk each, a few hundred bytes of
memory. Both are read at once all the same, and neither waits for every hiccup of the other."""

_Batch = list[tuple[int, int]]
"""Offset and fingerprint of units that are not zero, ascending."""


async def find_differences(
    source: Reader, target: Reader, *, start: int = 0, compared: Meter = lambda size: None
) -> BlockMap:
    """Return the units of 64 KiB in which a source disk differs from a target disk.

    Args:
        target: may be smaller than the source; it is all zeroes beyond its end then.
        start: units that end at or before this offset are not looked at.
        compared: told the number of bytes of the source that have been read, as they are.

    Raises:
        DataError: one of them could not be read to its end.
    """
    seed = random.getrandbits(64)
    found = BlockMap(source.virtual_size, UNIT)
    sides: list[asyncio.Queue[_Batch | None]] = [asyncio.Queue(AHEAD), asyncio.Queue(AHEAD)]

    async def read(reader: Reader, queue: asyncio.Queue[_Batch | None], meter: Meter) -> None:
        async with aclosing(_fingerprints(reader, seed, meter)) as batches:
            async for batch in batches:
                await queue.put(batch)
        await queue.put(None)

    async def merge() -> None:
        mine, theirs = (_Cursor(queue) for queue in sides)
        await mine.advance()
        await theirs.advance()
        while mine.entry is not None or theirs.entry is not None:
            if mine.entry == theirs.entry:
                await mine.advance()
                await theirs.advance()
                continue
            offset = min(cursor.entry[0] for cursor in (mine, theirs) if cursor.entry is not None)
            if start < offset + UNIT and offset < source.virtual_size:
                found.add(offset // UNIT)
            for cursor in (mine, theirs):
                if cursor.entry is not None and cursor.entry[0] == offset:
                    await cursor.advance()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(read(source, sides[0], compared), name="compare source")
            group.create_task(read(target, sides[1], lambda size: None), name="compare target")
            group.create_task(merge(), name="compare")
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return found


class _Cursor:
    """The next unit of one side."""

    def __init__(self, queue: asyncio.Queue[_Batch | None]) -> None:
        self._queue = queue
        self._batch: Iterator[tuple[int, int]] = iter(())
        self.entry: tuple[int, int] | None = None

    async def advance(self) -> None:
        """Go to the next one; past the last, `entry` is None and this is not called again."""
        while (entry := next(self._batch, None)) is None:
            batch = await self._queue.get()
            if batch is None:
                break
            self._batch = iter(batch)
        self.entry = entry


async def _fingerprints(reader: Reader, seed: int, meter: Meter) -> AsyncGenerator[_Batch, None]:
    """Yield what the reader gives, a piece at a time."""
    batch: _Batch = []

    def took(offset: int, data: memoryview) -> None:
        if not is_zero(data):
            batch.append((offset, xxhash.xxh3_128_intdigest(data, seed)))

    units = Units(took)
    async with aclosing(reader.pieces()) as pieces:
        async for offset, data in pieces:
            units.take(offset, data)
            meter(len(data))
            if batch:
                yield batch
                batch = []
    units.flush()
    if batch:
        yield batch
