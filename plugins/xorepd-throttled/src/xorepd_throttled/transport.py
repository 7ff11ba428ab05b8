"""The transport: another one, with a target that waits.

    reader ─► inner transport ─► throttled target ─► target
                                  job ─► pool ─► link

The levels are passed from the narrowest to the widest, and none is held while waiting for the next:
a slow job never stands in the way of the others on its link. What the inner transport sends past
the target's writer is paid for too, before it leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from xorepd.plugin import (
    Extent,
    Reader,
    Surroundings,
    Target,
    TargetDisk,
    Transport,
    Verifier,
    Writer,
)
from xorepd_throttled.link import Passage, ThrottledLink
from xorepd_throttled.options import read_options
from xorepd_throttled.timetable import Tariff


class Throttled:
    def __init__(self, inner: Transport, levels: Sequence[ThrottledLink]) -> None:
        self._inner, self._levels = inner, levels

    async def carry(self, reader: Reader, target: Target) -> None:
        with ExitStack() as stack:
            passages = [stack.enter_context(level.joined()) for level in self._levels]
            await self._inner.carry(reader, ThrottledTarget(target, passages))


class ThrottledVerifier(Throttled):
    """One whose inner transport reads back what it wrote; so few bytes pass that they are free."""

    def __init__(
        self, inner: Transport, verifier: Verifier, levels: Sequence[ThrottledLink]
    ) -> None:
        super().__init__(inner, levels)
        self._verifier = verifier

    async def digest(self, target: Target, extents: Sequence[Extent]) -> str:
        return await self._verifier.digest(target, extents)


class ThrottledTarget:
    """A target that takes no more than its levels admit."""

    def __init__(self, target: Target, passages: Sequence[Passage]) -> None:
        self._target, self._passages = target, passages

    @property
    def disk(self) -> TargetDisk:
        return self._target.disk

    @asynccontextmanager
    async def open(self, virtual_size: int, extents: Iterable[Extent]) -> AsyncIterator[Writer]:
        async with self._target.open(virtual_size, extents) as writer:
            yield ThrottledWriter(writer, self._passages)

    async def pay(self, size: int) -> None:
        for passage in self._passages:
            left = size
            while left:
                admitted = await passage.admit(left)
                passage.settle(admitted, admitted)
                left -= admitted
        await self._target.pay(size)

    def left(self, size: int) -> None:
        self._target.left(size)

    def confirmed(self, offset: int) -> None:
        self._target.confirmed(offset)


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
    api = 3

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
        levels = (
            level(f"job:{surroundings.job}", read.job_tariff),
            level(f"pool:{surroundings.target}", read.pool_tariff),
            level(link, read.link_tariff),
        )
        if isinstance(inner, Verifier):
            return ThrottledVerifier(inner, inner, levels)
        return Throttled(inner, levels)


transport = ThrottledFactory()
