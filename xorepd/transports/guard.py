"""Enforce the contract of a transport, because third parties write transports.

    reader ─► guarded reader ─► transport ─► guarded target ─► target

The run fails with the first error of either end, whatever the transport makes of it. A transport
that returns before it has passed on all data, or before the target has confirmed it, has failed.
One that does not end when it is cancelled is disconnected from both ends and abandoned.

A transport that writes elsewhere must have read to the end and report that the pool has confirmed
the whole disk; the guard cannot check more. Its data is read back as after any other transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

import structlog

from xorepd.data.reader import Piece, Reader
from xorepd.data.writer import Writer
from xorepd.errors import TransportFailed, XorepdError
from xorepd.extents import Extent
from xorepd.tidying import settled, to_the_end
from xorepd.transports.base import Target, TargetDisk, Transport, Verifier

log = structlog.get_logger(__name__)

CANCEL_S = 10.0
"""A correct transport ends at its next await."""
CLOSE_S = 10.0

T = TypeVar("T")

_stuck: set[asyncio.Task[Any]] = set()
"""Abandoned tasks; the event loop keeps only weak references."""


def guarded(name: str, inner: Transport, *, cancel_s: float | None = None) -> Transport:
    """Return a guarded transport; a verifier if the transport is one.

    Args:
        cancel_s: Seconds to end after a cancellation; default: `CANCEL_S`.
    """
    cancel_s = CANCEL_S if cancel_s is None else cancel_s
    if isinstance(inner, Verifier):
        return GuardedVerifier(name, inner, inner, cancel_s)
    return Guarded(name, inner, cancel_s)


class Guarded:
    """A transport under guard; see the module."""

    def __init__(self, name: str, inner: Transport, cancel_s: float) -> None:
        self._name, self._inner, self._cancel_s = name, inner, cancel_s

    async def carry(self, reader: Reader, target: Target) -> None:
        ends = _Ends(self._name, reader, target)
        await self._attempt(ends, lambda: self._inner.carry(ends, ends))
        ends.check()

    async def _attempt(self, ends: _Ends, work: Callable[[], Awaitable[T]]) -> T:
        """Run the work of a transport between these ends, and return its result."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._contained(work), name=f"transport {self._name}")
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
                task.exception()  # retrieve the error, also after a cancellation
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if ends.failure is not None:
            raise ends.failure
        if isinstance(failure, XorepdError):
            raise failure
        if failure is not None:
            reason = f"{type(failure).__name__}: {failure}" if str(failure) else repr(failure)
            raise TransportFailed(self._name, reason) from failure
        return task.result()

    async def _contained(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except SystemExit as error:  # it would end the daemon
            raise TransportFailed(self._name, "it called exit") from error


class GuardedVerifier(Guarded):
    """A guarded verifier."""

    def __init__(self, name: str, inner: Transport, verifier: Verifier, cancel_s: float) -> None:
        super().__init__(name, inner, cancel_s)
        self._verifier = verifier

    async def digest(self, target: Target, extents: Sequence[Extent]) -> str:
        ends = _Ends(self._name, _Nothing(), target)
        return await self._attempt(ends, lambda: self._verifier.digest(ends, extents))


def _forget(task: asyncio.Task[Any]) -> None:
    _stuck.discard(task)
    if not task.cancelled():
        task.exception()


class _Nothing:
    """Stands for the reader while a disk is only read back."""

    virtual_size = 0
    extents: Iterable[Extent] = ()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        return
        yield


class _Ends:
    """Guarded reader and target of one transfer."""

    def __init__(self, name: str, reader: Reader, target: Target) -> None:
        self._name, self._reader, self._target = name, reader, target
        self._open = AsyncExitStack()
        self._closed = False
        self._writers: list[_Writer] = []
        self._given = 0
        self._reached = 0
        """Where on the disk the reader is."""
        self._confirmed = 0
        self.failure: Exception | None = None
        """The first error of either end."""

    @property
    def virtual_size(self) -> int:
        return self._reader.virtual_size

    @property
    def extents(self) -> Iterable[Extent]:
        return self._reader.extents

    @property
    def disk(self) -> TargetDisk:
        return self._target.disk

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
                    self._reached = piece[0] + len(piece[1])
                    yield piece
                    self.require()
            self._reached = self.virtual_size
        except Exception as error:
            self.failed(error)
            raise

    @asynccontextmanager
    async def open(self, virtual_size: int, extents: Iterable[Extent]) -> AsyncIterator[Writer]:
        self.require()
        opened = AsyncExitStack()
        try:
            target = self._target.open(virtual_size, extents)
            writer = _Writer(self, await opened.enter_async_context(target))
        except Exception as error:
            self.failed(error)
            raise
        self._writers.append(writer)
        # Either the transport closes it here, or `close` does for one that is stuck.
        self._open.push_async_exit(opened)
        async with opened:
            yield writer

    async def pay(self, size: int) -> None:
        self.require()
        try:
            await self._target.pay(size)
        except Exception as error:
            self.failed(error)
            raise

    def left(self, size: int) -> None:
        self.require()
        self._target.left(size)

    def confirmed(self, offset: int) -> None:
        self.require()
        if not self._confirmed <= offset <= self._reached:
            raise TransportFailed(
                self._name, f"it confirmed {offset} bytes where {self._reached} had been read"
            )
        self._confirmed = offset
        self._target.confirmed(offset)

    def failed(self, error: Exception) -> None:
        self.failure = self.failure or error

    def require(self) -> None:
        """Refuse a transport that continues after its end."""
        if self._closed:
            raise TransportFailed(self._name, "it continued after its end")

    async def close(self) -> None:
        """Close what the transport has left open, and refuse all further use."""
        self._closed = True
        cut = TransportFailed(self._name, "it was cut off")
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._open.__aexit__(type(cut), cut, None)
        except Exception as error:
            # An open writer was not finished, so the run has already failed.
            log.warning("transport.not_closed", transport=self._name, reason=str(error))

    def check(self) -> None:
        """Raise `TransportFailed` unless everything was written and confirmed."""
        for writer in self._writers:
            if writer.written != self._given:
                raise TransportFailed(
                    self._name, f"it passed on {writer.written} of {self._given} bytes"
                )
        written_here = bool(self._writers) and all(writer.finished for writer in self._writers)
        written_elsewhere = not self._writers and self._confirmed == self.virtual_size
        if not written_here and not written_elsewhere:
            raise TransportFailed(self._name, "it ended before the target confirmed the data")


async def _close_pieces(pieces: AsyncGenerator[Piece, None]) -> None:
    with suppress(RuntimeError):  # a stuck transport is still reading from it
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
