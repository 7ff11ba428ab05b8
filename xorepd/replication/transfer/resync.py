"""Reading both sides of a disk to find out what differs, where no base tells it.

A disk is compared in windows. What differs in one is sent before the next one is looked at:

    0 ────────── at ─────────────────────────── end ──────────────────────────► end of the disk
      equal, or  │  compare both sides, send what  │  not looked at yet
      made equal │  differs, have it confirmed     │

So a comparison that is interrupted, even by the end of the daemon, continues at its window: the
staging disk records where that begins, as for any transfer. The length of a window is a compromise:
each window costs some attaches of both disks, and an interruption loses one window.

Only NBD reads from any place. Where either side has to be exported, which begins at the front, the
rest of the disk is one window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import structlog

from xorepd.config.models import Verify
from xorepd.data.blocks import BlockMap
from xorepd.data.compare import find_differences
from xorepd.data.nbd.reader import NbdReader
from xorepd.data.reader import Reader
from xorepd.data.remainder import Beyond, Rest
from xorepd.extents import Extent, total
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Assignment
from xorepd.replication.context.board import DiskProgress
from xorepd.replication.deciding.reader_choice import Facts
from xorepd.replication.transfer.fingerprint_maps import DiskMap
from xorepd.replication.transfer.readers import open_whole
from xorepd.units import GiB, MiB
from xorepd.xapi.records import Vdi

log = structlog.get_logger(__name__)

FIRST_WINDOW = 4 * GiB
SHORTEST_WINDOW, LONGEST_WINDOW = 1 * GiB, 64 * GiB
"""Bytes to read on either side."""

WINDOW_S = 300.0
"""How long the comparison of a window should take. Beginning and ending one takes
five attaches, five to ten seconds on a real host: two or three percent of it."""

ALIGNMENT = 2 * MiB
"""Windows end between two blocks of a VHD: what is written into one allocates nothing behind it."""


@dataclass(frozen=True, slots=True)
class CompareWindow:
    """A part of a disk of which it is known what differs."""

    start: int
    end: int
    found: BlockMap
    """Units of 64 KiB, all within the window."""


class Comparison:
    """Both sides of a disk, over all tries of a run.

    The staging disk itself is read, not what it was cloned from: whatever it holds and however it
    came there, it is equal to its source once all windows have been passed. Where the map of what
    it was cloned from is kept, that is relied on instead, and only the source is read.

    Args:
        content: disk of the source snapshot.
        known: where it tells what the staging disk holds, only the source is read.
        start: what lies below it is taken for equal.
    """

    def __init__(
        self,
        a: Assignment,
        content: Vdi,
        staging: Ref,
        progress: DiskProgress,
        what: str,
        known: DiskMap,
        *,
        start: int = 0,
    ) -> None:
        self._a, self._content, self._staging, self._known = a, content, staging, known
        self._progress, self._what = progress, what
        self._window: CompareWindow | None = None
        self._size = min(FIRST_WINDOW, LONGEST_WINDOW)
        self.at = start
        """Both sides are equal below it."""

    async def window(self) -> CompareWindow | None:
        """Return the next window; the same one until it has been passed. None: there is no more.

        Raises:
            DataError: one of the sides could not be read.
        """
        if self._window is None and self.at < self._content.virtual_size:
            self._window = await self._compare()
        return self._window

    def passed(self) -> None:
        """Take note that what differed in the window has been sent and is confirmed."""
        assert self._window is not None
        self.at, self._window = self._window.end, None

    async def _compare(self) -> CompareWindow:
        start, clock = self.at, asyncio.get_running_loop().time
        read_before = self._progress.compared_bytes or 0
        began = clock()
        compared = await self._compare_with_map(start) or await self._compare_sides(start)
        seconds = clock() - began
        found, end = compared
        log.info(
            "disk.compared",
            what=self._what,
            start=start,
            end=end,
            read_bytes=(self._progress.compared_bytes or 0) - read_before,
            differ=found.size,
        )
        self._progress.changed_bytes = (self._progress.changed_bytes or 0) + found.size
        self._size = next_size(self._size, seconds)
        return CompareWindow(start, end, found)

    async def _compare_with_map(self, start: int) -> tuple[BlockMap, int] | None:
        """Compare the source with what is known of the target's disk, if that is all of it."""
        if self._a.job.verify is Verify.FULL or not self._known.tells:
            return None
        opening = open_whole(
            self._a.pair.source,
            self._a.carrier,
            self._content,
            f"{self._what}, comparing, source",
        )
        async with opening as (source, _):
            end = self._narrow([source], start)
            if not await self._known.knows(start, end):
                return None
            found = await self._known.find_differences(
                _from(source, start), start, end, self._count
            )
            return None if found is None else (found, end)

    async def _compare_sides(self, start: int) -> tuple[BlockMap, int]:
        """Read and compare both sides."""
        a = self._a
        await a.pair.target.refresh()
        disk = a.pair.target.cache.vdis.get(self._staging)
        if disk is None:
            raise a.pair.target.gone("VDI", self._staging)
        async with AsyncExitStack() as stack:
            sides = []
            pools = ((a.pair.source, self._content, "source"), (a.pair.target, disk, "target"))
            for pool, each, name in pools:
                opening = open_whole(pool, a.carrier, each, f"{self._what}, comparing, {name}")
                reader, _ = await stack.enter_async_context(opening)
                sides.append(reader)
            end = self._narrow(sides, start)
            source, target = sides
            drawn = self._known.drawn(_from(source, start), start, end, is_blank=True)
            return await find_differences(drawn, target, start=start, compared=self._count), end

    def _narrow(self, sides: Sequence[Reader], start: int) -> int:
        """Let readers give one window, as far as they can; return where it ends.

        Args:
            sides: the source first.
        """
        end = self._content.virtual_size
        all_of_it = total(Beyond(sides[0].extents, start))
        self._a.progress.compares(self._progress.device, all_of_it)
        if all(isinstance(side, NbdReader) for side in sides):
            end = end_of_window([side.extents for side in sides], start, self._size, end)
        for side in sides:
            if isinstance(side, NbdReader):
                side.narrow(_Between(side.extents, start, end))
        return end

    def _count(self, size: int) -> None:
        self._a.progress.compared(self._progress.device, size)


def _from(reader: Reader, start: int) -> Reader:
    """Return what a reader gives from an offset on."""
    return Rest(reader, start, lambda offset, data: None) if start else reader


def end_of_window(
    sides: Iterable[Iterable[Extent]], start: int, size: int, virtual_size: int
) -> int:
    """Return where the window ends in which no side has much more than `size` bytes to read."""
    end = min(_reach(extents, start, size, virtual_size) for extents in sides)
    return min(-(-end // ALIGNMENT) * ALIGNMENT, virtual_size)


def _reach(extents: Iterable[Extent], start: int, size: int, virtual_size: int) -> int:
    """Return how far one can go from `start` until `size` bytes have been read."""
    for extent in Beyond(extents, start):
        if extent.length >= size:
            return extent.offset + size
        size -= extent.length
    return virtual_size


def next_size(size: int, seconds: float) -> int:
    """Return how long the next window is after one of `size` bytes took so long."""
    wanted = size * WINDOW_S / max(seconds, 0.001)
    return int(min(max(wanted, SHORTEST_WINDOW), LONGEST_WINDOW))


class _Between:
    """What lies between two offsets in some extents; as often iterable as they are."""

    def __init__(self, extents: Iterable[Extent], start: int, end: int) -> None:
        self._extents, self._start, self._end = extents, start, end

    def __iter__(self) -> Iterator[Extent]:
        for extent in Beyond(self._extents, self._start):
            if extent.offset >= self._end:
                return
            yield Extent(extent.offset, min(extent.end, self._end) - extent.offset)


def told_by(facts: Facts, found: BlockMap) -> Facts:
    """Return what the source pool offers, once it is known what differs."""
    return replace(facts, is_delta=True, changes=found, without_changes="")
