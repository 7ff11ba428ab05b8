"""Find the differences between two disks without records of changes: read and compare both.

    source ─► fingerprints of 64 KiB ─► queue ─╮
                                               ├─► map of the units that differ
    target ─► fingerprints of 64 KiB ─► queue ─╯

The differences are read once more when they are sent. So their size is known before the first byte
leaves, no import stays open during long equal stretches, and they are sent like any other delta. A
long comparison works in windows (`replication/transfer/resync`). A unit that neither side gives is
zero on both. Memory: the map, one bit for 64 KiB of disk.

Each comparison has a random seed, so that data cannot be crafted to look unchanged.
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
memory. So neither side waits for each short pause of the other."""

_Batch = list[tuple[int, int]]
"""Offset and fingerprint of the units that are not zero, ascending."""


async def find_differences(
    source: Reader, target: Reader, *, start: int = 0, compared: Meter = lambda size: None
) -> BlockMap:
    """Return the units of 64 KiB in which a source disk differs from a target disk.

    Args:
        target: If it is smaller than the source, the rest counts as zeroes.
        start: Units that end at or before this offset are ignored.
        compared: Called with the number of bytes each time the source was read.

    Raises:
        DataError: one of the disks could not be read to its end.
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
        """Go to the next unit. After the last one `entry` is None; do not call it again."""
        while (entry := next(self._batch, None)) is None:
            batch = await self._queue.get()
            if batch is None:
                break
            self._batch = iter(batch)
        self.entry = entry


async def _fingerprints(reader: Reader, seed: int, meter: Meter) -> AsyncGenerator[_Batch, None]:
    """Yield the fingerprints of the data of a reader, a piece at a time."""
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
