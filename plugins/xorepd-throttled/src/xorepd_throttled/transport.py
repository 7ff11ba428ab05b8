"""The transport: another one, with a writer that waits.

    reader ─► inner transport ─► throttled writer ─► writer
                                  job ─► pool ─► link

The levels are passed from the narrowest to the widest, and none is held while waiting for the next:
a slow job never stands in the way of the others on its link.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from xorepd.data.reader import Reader
from xorepd.data.writer import Writer
from xorepd.extents import Extent
from xorepd.transports.base import OpenWriter, Surroundings, Transport
from xorepd_throttled.link import Passage, ThrottledLink
from xorepd_throttled.options import read_options
from xorepd_throttled.timetable import Tariff


class Throttled:
    def __init__(self, inner: Transport, levels: Sequence[ThrottledLink]) -> None:
        self._inner, self._levels = inner, levels

    async def carry(self, reader: Reader, open_writer: OpenWriter) -> None:
        @asynccontextmanager
        async def open_throttled(
            virtual_size: int, extents: Iterable[Extent]
        ) -> AsyncIterator[Writer]:
            async with open_writer(virtual_size, extents) as writer:
                with ExitStack() as stack:
                    passages = [stack.enter_context(level.joined()) for level in self._levels]
                    yield ThrottledWriter(writer, passages)

        await self._inner.carry(reader, open_throttled)


class ThrottledWriter:
    """A writer that takes no more than its levels admit."""

    def __init__(self, writer: Writer, passages: Sequence[Passage]) -> None:
        self._writer, self._passages = writer, passages

    @property
    def sent(self) -> int:
        return self._writer.sent

    async def write(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            admitted: list[tuple[Passage, int]] = []
            sent = 0
            try:
                size = len(data) - done
                for passage in self._passages:
                    size = await passage.admit(size)
                    admitted.append((passage, size))
                before = self._writer.sent
                await self._writer.write(offset + done, data[done : done + size])
                sent = self._writer.sent - before
            finally:
                # A later level may have admitted less, and zeroes are left out.
                for passage, booked in admitted:
                    passage.settle(booked, sent)
            done += size

    async def finish(self) -> None:
        await self._writer.finish()


class ThrottledFactory:
    name = "throttled"
    api = 2

    def open(self, options: Mapping[str, Any], surroundings: Surroundings) -> Throttled:
        read = read_options(options)
        clock = surroundings.clock

        def level(name: str, terms: Tariff | None) -> ThrottledLink:
            return surroundings.links.share(name, lambda: ThrottledLink(terms, clock))

        try:
            inner = surroundings.open(read.through, read.through_options)
        except ValueError as error:
            raise ValueError(f"through: {error}") from error
        link = read.link or f"{surroundings.source}-{surroundings.target}"
        return Throttled(
            inner,
            (
                level(f"job:{surroundings.job}", read.job_tariff),
                level(f"pool:{surroundings.target}", read.pool_tariff),
                level(link, read.link_tariff),
            ),
        )


transport = ThrottledFactory()
