"""Build the fingerprint map of a disk during its transfer, and leave out what the target has.

map of the base ────┐
reader ────────────►┴─► the units that differ, or that are unknown
                    └─► draft of the new map
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing

import structlog

from xorepd.data.blocks import BlockMap
from xorepd.data.fingerprints import (
    ENTRY,
    NOTHING_KNOWN,
    PAGE,
    SLOTS,
    UNITS,
    UNKNOWN,
    UNKNOWN_PAGE,
    Draft,
    Hashing,
    Pages,
)
from xorepd.data.reader import Piece, Reader
from xorepd.data.zeroes import UNIT
from xorepd.errors import StateError

log = structlog.get_logger(__name__)

AHEAD = 64
"""Pages to read at once: 256 KiB for 1 GiB of disk."""
OUTBOX = 64
"""Pages to write at once."""
OUTBOX_S = 5.0
"""Seconds after which fewer pages are written, so that a crash loses little."""

BEAT_S = 5.0
"""Seconds after which an unchanged unit is sent all the same. A proxy would end an import without
data for hours, and only written data lets the pool confirm the progress."""


class MapBuilder:
    """Builds the map of a disk from its content in ascending order.

    It never fails: if the map cannot be stored, it is abandoned and all data passes.

    Args:
        base: The map of the old content of the target disk; None if there is none.
        leaves_out: Whether data that the base has may be left out now.
    """

    def __init__(
        self,
        hashing: Hashing,
        virtual_size: int,
        draft: Draft,
        base: Pages | None,
        leaves_out: Callable[[], bool] = lambda: False,
    ) -> None:
        self._hashing, self._virtual_size = hashing, virtual_size
        self._draft, self._base, self._leaves_out = draft, base, leaves_out
        self._is_blank = False
        self._start = self._end = 0
        self._page = self._next = 0
        self._is_open = False
        """Whether there is a current page, `_page`; `_next` is the page after the last one."""
        self._old = NOTHING_KNOWN
        self._new = bytearray(NOTHING_KNOWN)
        self._behind = 0
        """End of the data so far."""
        self._outbox: dict[int, bytes] = {}
        self._ahead: dict[int, bytes] = {}
        self._ahead_to = 0
        self._beat = self._written_at = 0.0
        self._differing: BlockMap | None = None
        self.left_out = BlockMap(virtual_size if base else 0, UNIT)
        self.unchanged_bytes = 0
        self.has_failed = self.is_finished = False

    @property
    def tells(self) -> bool:
        """Whether the old content of the target disk is known."""
        return self._base is not None and not self.has_failed

    @property
    def differing(self) -> BlockMap:
        """The units that differ from the base or are unknown, after a whole range was seen."""
        assert self._differing is not None
        return self._differing

    async def knows(self, start: int, end: int) -> bool:
        """Return whether the base has a fingerprint of every unit between two offsets."""
        answers: list[bool] = []

        async def look() -> None:
            assert self._base is not None
            behind = -(-end // PAGE)
            for first in range(start // PAGE, behind, AHEAD):
                count = min(AHEAD, behind - first)
                pages = await self._base.read(first, count)
                known = (UNKNOWN not in self._opened(page) for page in pages.values())
                answers.append(len(pages) == count and all(known))

        if self.tells:
            await self._attempt(look)
        return self.tells and all(answers)

    async def begin(self, start: int, end: int, *, is_blank: bool) -> None:
        """Begin with the range between two offsets. What is known from its start on is discarded.

        Args:
            is_blank: Whether data that does not come is zero, as in a full or a comparison. Else
                it is the same as in the base.
        """
        await self._attempt(lambda: self._begin(start, end, is_blank))

    async def turn_to(self, page: int) -> None:
        """Make a page the current one, before its first data."""
        if not self.has_failed and not (self._is_open and page == self._page):
            await self._attempt(lambda: self._turn_to(page))

    def take(self, offset: int, data: memoryview) -> Iterator[Piece]:
        """Take data of the current page, and yield the parts that must be sent."""
        if self.has_failed:
            yield offset, data
            return
        start = position = 0
        while position < len(data):
            at = offset + position
            size = min(UNIT - at % UNIT, len(data) - position)
            if self._is_same(at, data[position : position + size]) and self._may_leave_out():
                if start < position:
                    yield offset + start, data[start:position]
                start = position + size
                self.left_out.add(at // UNIT)
                self.unchanged_bytes += size
            position += size
        self._behind = offset + len(data)
        if start < position:
            self._beat = asyncio.get_running_loop().time()
            yield offset + start, data[start:position]

    async def finish(self) -> None:
        """Complete the map: all data has come."""
        await self._attempt(self._finish)

    async def flush(self) -> None:
        """Write what is known so far, so that a later process can continue."""
        await self._attempt(lambda: self._flush(with_current=True))

    # -- inside ------------------------------------------------------------------------------

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> None:
        if self.has_failed:
            return
        try:
            await work()
        except StateError as error:
            self.has_failed = True
            self._outbox.clear()
            log.warning("map.abandoned", reason=str(error))

    def _is_same(self, at: int, data: memoryview) -> bool:
        """Note a unit or a part of one; return whether it is the same as in the base."""
        slot = at // UNIT % UNITS * ENTRY
        is_whole = at % UNIT == 0 and (len(data) == UNIT or at + len(data) == self._virtual_size)
        entry = self._hashing.of(data) if is_whole else UNKNOWN
        self._new[slot : slot + ENTRY] = entry
        return entry == self._old[slot : slot + ENTRY] and entry != UNKNOWN

    def _may_leave_out(self) -> bool:
        if self._is_blank or not self._leaves_out():
            return False
        return asyncio.get_running_loop().time() - self._beat < BEAT_S

    async def _begin(self, start: int, end: int, is_blank: bool) -> None:
        await self._flush(with_current=True)
        self._is_blank, self._start, self._end, self._is_open = is_blank, start, end, False
        self.is_finished = False
        if is_blank and self._draft.is_change:
            await self._draft.detach()
        if is_blank and self._base is not None:
            self._differing = BlockMap(self._virtual_size, UNIT)
        if self._draft.drawn_to < start:
            await self._draft.write(await self._gap(self._draft.drawn_to, start), start)
        first = start // PAGE
        slots = -(-start // UNIT) - first * UNITS
        own = await self._own(first)
        await self._draft.cut(first)
        self._next, self._behind, self._ahead, self._ahead_to = first, start, {}, first
        self._beat = asyncio.get_running_loop().time()
        if slots:
            await self._turn_to(first)
            self._new[: slots * ENTRY] = own[: slots * ENTRY]

    async def _gap(self, start: int, end: int) -> dict[int, bytes]:
        """Return the pages that an earlier process has seen and not written."""
        first, slots = start // PAGE, start // UNIT % UNITS
        known = (await self._own(first))[: slots * ENTRY]
        pages = dict.fromkeys(range(first, -(-end // PAGE)), UNKNOWN_PAGE)
        return pages | {first: known + NOTHING_KNOWN[len(known) :]}

    async def _own(self, page: int) -> bytes:
        return self._opened((await self._draft.read(page, 1)).get(page))

    async def _turn_to(self, page: int) -> None:
        self._close()
        if self._is_blank:
            while self._next < page:
                await self._skip_zeroes()
        await self._flush_if_due()
        self._old = self._opened(await self._of_base(page))
        self._new[:] = self._hashing.page_of_zeroes if self._is_blank else self._old
        self._page, self._next, self._is_open = page, page + 1, True

    async def _skip_zeroes(self) -> None:
        """Note that the next page is all zeroes."""
        page = self._next
        self._outbox[page] = b""
        if self._base is not None and (old := await self._of_base(page)) != b"":
            self._compare(page, self._opened(old), self._hashing.page_of_zeroes)
        self._next = page + 1
        self._behind = self._next * PAGE
        await self._flush_if_due()

    def _close(self) -> None:
        """Queue the current page for writing."""
        if self._is_open:
            self._outbox[self._page] = self._packed()
            if self._is_blank and self._base is not None:
                self._compare(self._page, self._old, self._new)
        self._is_open = False

    def _compare(self, page: int, old: bytes, new: bytes | bytearray) -> None:
        if old == new and UNKNOWN not in old:
            return
        for unit, slot in enumerate(SLOTS, start=page * UNITS):
            entry = new[slot : slot + ENTRY]
            if entry == old[slot : slot + ENTRY] and entry != UNKNOWN:
                continue
            if self._start < (unit + 1) * UNIT and unit * UNIT < self._end:
                self.differing.add(unit)

    async def _finish(self) -> None:
        self._close()
        if self._is_blank:
            while self._next * PAGE < self._end:
                await self._skip_zeroes()
        self._behind = self._end
        await self._flush(with_current=False)
        self.is_finished = self._end == self._virtual_size

    async def _flush_if_due(self) -> None:
        late = asyncio.get_running_loop().time() - self._written_at >= OUTBOX_S
        if len(self._outbox) >= OUTBOX or (self._outbox and late):
            await self._flush(with_current=False)

    async def _flush(self, *, with_current: bool) -> None:
        pages = dict(self._outbox)
        if with_current and self._is_open:
            pages[self._page] = self._packed()
        if pages or self._behind > self._draft.drawn_to:
            await self._draft.write(pages, self._behind)
        self._outbox.clear()
        self._written_at = asyncio.get_running_loop().time()

    async def _of_base(self, page: int) -> bytes | None:
        if self._base is None:
            return None
        if page >= self._ahead_to:
            self._ahead = dict(await self._base.read(page, AHEAD))
            self._ahead_to = page + AHEAD
        return self._ahead.pop(page, None)

    def _opened(self, page: bytes | None) -> bytes:
        """Return the fingerprints of a stored page; none if it has a wrong size."""
        if page == b"":
            return self._hashing.page_of_zeroes
        return NOTHING_KNOWN if page is None or len(page) != UNITS * ENTRY else page

    def _packed(self) -> bytes:
        return b"" if self._new == self._hashing.page_of_zeroes else bytes(self._new)


class Mapped:
    """A reader whose data builds a map, without the data that the target already has.

    Args:
        start, end: The range of the disk.
        is_blank: Whether the data that the reader does not give is zero.
    """

    def __init__(
        self,
        reader: Reader,
        builder: MapBuilder,
        *,
        start: int = 0,
        end: int | None = None,
        is_blank: bool,
    ) -> None:
        self._reader, self._builder = reader, builder
        self._start, self._end, self._is_blank = start, end, is_blank
        self.virtual_size, self.extents = reader.virtual_size, reader.extents

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        end = self.virtual_size if self._end is None else self._end
        await self._builder.begin(self._start, end, is_blank=self._is_blank)
        async with aclosing(self._reader.pieces()) as pieces:
            async for offset, data in pieces:
                at = 0
                while at < len(data):
                    page = (offset + at) // PAGE
                    size = min((page + 1) * PAGE - offset - at, len(data) - at)
                    await self._builder.turn_to(page)
                    for part in self._builder.take(offset + at, data[at : at + size]):
                        yield part
                    at += size
        await self._builder.finish()
