"""Keeps a transport to what it promises, whoever wrote it.

    reader ─► guarded reader ─► transport ─► guarded writer ─► writer

What failed first at either end is what the run fails with, whatever the transport makes of it. One
that returns without having given everything on, or before the target confirmed it, has failed. One
that does not end when it is cancelled is cut off from both ends and left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress

import structlog

from xorepd.data.reader import Piece, Reader
from xorepd.data.writer import Writer
from xorepd.errors import TransportFailed, XorepdError
from xorepd.extents import Extent
from xorepd.tidying import settled, to_the_end
from xorepd.transports.base import OpenWriter, Transport

log = structlog.get_logger(__name__)

CANCEL_S = 10.0
"""An honest transport ends at its next await."""
CLOSE_S = 10.0

_stuck: set[asyncio.Task[None]] = set()
"""Tasks that were left behind; the loop itself would not hold them."""


class Guarded:
    """A transport that can be relied on; see the module.

    Args:
        cancel_s: seconds that it has to end when it is cancelled; `CANCEL_S` by default.
    """

    def __init__(self, name: str, inner: Transport, *, cancel_s: float | None = None) -> None:
        self._name, self._inner = name, inner
        self._cancel_s = CANCEL_S if cancel_s is None else cancel_s

    async def carry(self, reader: Reader, open_writer: OpenWriter) -> None:
        ends = _Ends(self._name, reader, open_writer)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._carry(ends), name=f"transport {self._name}")
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await settled(task, self._cancel_s)
            raise
        finally:
            if not task.done():
                log.error("transport.stuck", transport=self._name)
                _stuck.add(task)
                task.add_done_callback(_forget)
            await to_the_end(ends.close(), 2 * CLOSE_S)
            if task.done() and not task.cancelled():
                task.exception()  # it is seen: below, or not at all after a cancellation
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if ends.failure is not None:
            raise ends.failure
        if isinstance(failure, XorepdError):
            raise failure
        if failure is not None:
            reason = f"{type(failure).__name__}: {failure}" if str(failure) else repr(failure)
            raise TransportFailed(self._name, reason) from failure
        ends.check()

    async def _carry(self, ends: _Ends) -> None:
        try:
            await self._inner.carry(ends, ends.open_writer)
        except SystemExit as error:  # it would end the daemon
            raise TransportFailed(self._name, "it called exit") from error


def _forget(task: asyncio.Task[None]) -> None:
    _stuck.discard(task)
    if not task.cancelled():
        task.exception()


class _Ends:
    """Reader and writer as one carrying sees them."""

    def __init__(self, name: str, reader: Reader, open_writer: OpenWriter) -> None:
        self._name, self._reader, self._open_writer = name, reader, open_writer
        self._open = AsyncExitStack()
        self._closed = False
        self._writers: list[_Writer] = []
        self._given = 0
        self.failure: Exception | None = None
        """What failed first at either end."""

    @property
    def virtual_size(self) -> int:
        return self._reader.virtual_size

    @property
    def extents(self) -> Iterable[Extent]:
        return self._reader.extents

    def pieces(self) -> AsyncGenerator[Piece, None]:
        pieces = self._pieces()
        self._open.push_async_callback(_close_pieces, pieces)
        return pieces

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        self.require()
        try:
            async with aclosing(self._reader.pieces()) as pieces:
                async for piece in pieces:
                    self._given += len(piece[1])
                    yield piece
                    self.require()
        except Exception as error:
            self.failed(error)
            raise

    @asynccontextmanager
    async def open_writer(
        self, virtual_size: int, extents: Iterable[Extent]
    ) -> AsyncIterator[Writer]:
        self.require()
        opened = AsyncExitStack()
        try:
            target = self._open_writer(virtual_size, extents)
            writer = _Writer(self, await opened.enter_async_context(target))
        except Exception as error:
            self.failed(error)
            raise
        self._writers.append(writer)
        # Whoever comes first closes it: the transport here, or `close` for one that is stuck.
        self._open.push_async_exit(opened)
        async with opened:
            yield writer

    def failed(self, error: Exception) -> None:
        self.failure = self.failure or error

    def require(self) -> None:
        """Refuse whoever goes on after the end."""
        if self._closed:
            raise TransportFailed(self._name, "it went on after its end")

    async def close(self) -> None:
        """Close what the transport has left open; it gets nothing more from here on."""
        self._closed = True
        cut = TransportFailed(self._name, "it was cut off")
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._open.__aexit__(type(cut), cut, None)
        except Exception as error:
            # The run has failed already where this matters: a writer that is open was not finished.
            log.warning("transport.not_closed", transport=self._name, reason=str(error))

    def check(self) -> None:
        """Raise `TransportFailed` unless everything was written and confirmed.

        A transport that writes elsewhere (a relay at the other site) opens no writer here.
        """
        for writer in self._writers:
            if writer.written != self._given:
                raise TransportFailed(
                    self._name, f"it gave on {writer.written} of {self._given} bytes"
                )
            if not writer.finished:
                raise TransportFailed(self._name, "it ended before the target confirmed the data")


async def _close_pieces(pieces: AsyncGenerator[Piece, None]) -> None:
    with suppress(RuntimeError):  # somebody who is stuck is reading from it
        await pieces.aclose()


class _Writer:
    def __init__(self, ends: _Ends, writer: Writer) -> None:
        self._ends, self._writer = ends, writer
        self.written = 0
        self.finished = False

    @property
    def sent(self) -> int:
        return self._writer.sent

    async def write(self, offset: int, data: memoryview) -> None:
        self._ends.require()
        try:
            await self._writer.write(offset, data)
        except Exception as error:
            self._ends.failed(error)
            raise
        self.written += len(data)

    async def finish(self) -> None:
        self._ends.require()
        try:
            await self._writer.finish()
        except Exception as error:
            self._ends.failed(error)
            raise
        self.finished = True
