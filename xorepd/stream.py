"""A connection that moves the bytes of disks: large reads and writes, without copies, in bounds.

    socket ─► [TLS] ─► the caller's own buffer, as far as it waits for one
                  └──► a spill of 256 KiB for what comes before it is asked for, then a pause

asyncio's streams copy each byte three times and allocate for each read; what they cost against this
is measured by `make bench-relay`. A buffer handed to `write` may be used again when it returns:
everything has gone to the kernel by then, which is also what makes back-pressure exact.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Self, cast

SPILL = 256 * 1024
LARGEST_READ = 1024 * 1024
"""Bytes taken from a plain socket at a time. More brings nothing, and one read stops the loop for
as long as it copies."""
LARGEST_TLS_READ = 256 * 1024
"""The same for TLS, where a byte takes six times as long."""
SMALLEST_WRITE = 64 * 1024
"""Parts are handed on together up to this size: a call of the system for each short one costs more
than its bytes. Above it they go one by one, so that no more than one waits in memory."""
HANDSHAKE_S = 30.0
"""Longest TLS handshake; asyncio's own limit is twice that."""

CheckPeer = Callable[[bytes | None], None]
"""Looks at the peer's certificate (DER) after the handshake; raises ssl.SSLError to refuse it."""


class Stalled(TimeoutError):
    """No byte moved for the time that was allowed."""


class Ended(EOFError):
    """The peer closed before it had sent what was waited for; `received` bytes of it came."""

    def __init__(self, received: int) -> None:
        super().__init__(f"the connection ended after {received} bytes")
        self.received = received


class ByteStream(asyncio.BufferedProtocol):
    """One connection, used by one reader and one writer at a time. Make it with `connect`.

    Args:
        stall: seconds without a byte after which a read or write gives up.
    """

    def __init__(self, stall: float) -> None:
        self._stall = stall
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._largest = LARGEST_READ
        self._spill = memoryview(bytearray(SPILL))
        self._spilled = self._taken = 0
        self._target = memoryview(b"")
        self._filled = 0
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._paused = False
        self._full = False
        self._lost: BaseException | None = None
        self._at_end = False
        self._enough = 0
        self._arrivals = 0
        self._broken = False
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self.guard: Callable[[], None] | None = None
        """Asked before each piece is sent; what it raises ends the write."""

    # -- opening and closing ------------------------------------------------------------------

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        stall: float,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        check_peer: CheckPeer | None = None,
        within: float = 30.0,
    ) -> Self:
        """Open a connection, with TLS when there is a context for it.

        Args:
            server_name: what the certificate must be for; the host when not given.
            within: seconds for connection and handshake together.

        Raises:
            OSError: refused, unreachable, too slow (TimeoutError), or not trusted (ssl.SSLError).
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(within):
            _, stream = await loop.create_connection(lambda: cls(stall), host, port)
            if tls is not None:
                await stream.start_tls(tls, server_name or host, check_peer)
        return stream

    async def start_tls(
        self, context: ssl.SSLContext, server_name: str, check_peer: CheckPeer | None = None
    ) -> None:
        """Secure the connection from here on.

        Raises:
            OSError: the handshake failed, or the peer is not who it should be.
            ValueError: `server_name` cannot be the name of a host.
        """
        secured: asyncio.Transport | None = None
        try:
            secured = await self._loop.start_tls(
                self._require(),
                self,
                context,
                server_hostname=server_name,
                ssl_handshake_timeout=min(self._stall, HANDSHAKE_S),
            )
            if secured is None:  # uvloop's word for a connection lost in the handshake
                raise ConnectionResetError("the connection was lost in the TLS handshake")
            self.connection_made(secured)
            self._largest = LARGEST_TLS_READ
            if check_peer is not None:
                check_peer(secured.get_extra_info("ssl_object").getpeercert(binary_form=True))
        except BaseException as error:
            self.abort()
            if secured is None:  # asyncio tells nobody when it loses a connection before it is made
                self.connection_lost(error if isinstance(error, OSError) else None)
            raise

    def abort(self) -> None:
        """Cut the connection at once; whoever waits in it fails."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Cut the connection and wait until the socket is gone."""
        self.abort()
        if self._transport is not None:
            await asyncio.shield(self._closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- reading and writing ------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many bytes have come that nobody has asked for yet."""
        return self._spilled - self._taken

    async def read_into(self, target: memoryview) -> None:
        """Fill a buffer.

        Raises:
            Ended: the peer closed before it was full.
            Stalled: no byte came for too long.
            OSError: the connection broke.
        """
        await self._read(target, len(target))
        if self._filled < len(target):
            raise Ended(self._filled)

    async def read_some(self, target: memoryview) -> int:
        """Read what there is, at least a byte; return how much. Zero means the end.

        Raises:
            Stalled, OSError: as `read_into`.
        """
        await self._read(target, 1)
        return self._filled

    async def read_until(self, mark: bytes, limit: int) -> bytes:
        """Read up to a mark and return everything including it.

        Raises:
            ValueError: it does not come within `limit` bytes (at most the size of the spill).
            Ended, Stalled, OSError: as `read_into`.
        """
        while True:
            seen = bytes(self._spill[self._taken : min(self._spilled, self._taken + limit)])
            found = seen.find(mark)
            if found >= 0:
                size = found + len(mark)
                self._drop(size)
                return seen[:size]
            if len(seen) >= limit:
                raise ValueError(f"{mark!r} does not come within {limit} bytes")
            if self._at_end:
                raise Ended(len(seen))
            self._compact()
            self._enough = 0
            await self._wait_for_bytes()

    async def write(self, *parts: bytes | memoryview) -> None:
        """Send these bytes; return when the kernel has them all, so that buffers may be reused.

        Raises:
            Stalled: the peer took no byte for too long.
            OSError: the connection broke.
        """
        together: list[bytes | memoryview] = []
        size = 0
        for part in parts:
            together.append(part)
            size += len(part)
            if size >= SMALLEST_WRITE:
                await self._write(together)
                together, size = [], 0
        if together:
            await self._write(together)

    # -- asyncio calls these ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # With TLS, asyncio pauses at this size and not above it: at zero it would never resume.
        secured = transport.get_extra_info("ssl_object") is not None
        self._transport.set_write_buffer_limits(high=1 if secured else 0, low=0)

    def get_buffer(self, sizehint: int) -> memoryview:
        rest = self._target[self._filled : self._filled + self._largest]
        return rest if rest else self._spill[self._spilled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._arrivals += 1
        if self._filled < len(self._target):
            self._filled += nbytes
            if self._filled < self._enough:
                return
        else:
            self._spilled += nbytes
            if self._spilled == SPILL:
                self._pause()
        self._wake(self._reading)

    def eof_received(self) -> bool:
        self._at_end = True
        self._wake(self._reading)
        return False

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake(self._writing)

    def connection_lost(self, exc: Exception | None) -> None:
        self._at_end = True
        self._lost = exc or ConnectionResetError("the connection was closed")
        self._full = False
        self._broken = exc is not None
        for waiter in (self._reading, self._writing, self._closed):
            self._wake(waiter)

    # -- inside -------------------------------------------------------------------------------

    def _require(self) -> asyncio.Transport:
        if self._transport is None or self._lost is not None:
            raise self._failure()
        return self._transport

    def _failure(self) -> OSError:
        if isinstance(self._lost, OSError):
            return self._lost
        return ConnectionResetError(str(self._lost or "the connection is not open"))

    async def _write(self, parts: list[bytes | memoryview]) -> None:
        transport = self._require()
        if self.guard is not None:
            self.guard()
        transport.writelines(parts)
        if self._full:
            await self._wait_for_room()
        if self._lost is not None:
            raise self._failure()

    async def _read(self, target: memoryview, enough: int) -> None:
        """Put at least `enough` bytes into a buffer, fewer at the end."""
        self._filled = self._take(target)
        self._target, self._enough = target, enough
        try:
            while self._filled < enough and not self._at_end:
                await self._wait_for_bytes()
        finally:
            self._target = memoryview(b"")

    def _take(self, target: memoryview) -> int:
        """Move what was spilled into a buffer; return how much."""
        size = min(len(target), self._spilled - self._taken)
        if size:
            target[:size] = self._spill[self._taken : self._taken + size]
            self._drop(size)
        return size

    def _drop(self, size: int) -> None:
        self._taken += size
        if self._taken == self._spilled:
            self._taken = self._spilled = 0
            self._resume()

    def _compact(self) -> None:
        """Move what is left to the front, so that more can follow it."""
        left = bytes(self._spill[self._taken : self._spilled])
        self._spill[: len(left)] = left
        self._taken, self._spilled = 0, len(left)
        self._resume()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._require().pause_reading()

    def _resume(self) -> None:
        if self._paused and self._spilled < SPILL:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait_for_bytes(self) -> None:
        if not self._broken:
            self._reading = self._loop.create_future()
            try:
                await self._patiently(self._reading, lambda: self._arrivals)
            finally:
                self._reading = None
        if self._broken:
            raise self._failure()

    async def _wait_for_room(self) -> None:
        transport = self._require()
        while self._full and self._lost is None:
            self._writing = self._loop.create_future()
            try:
                await self._patiently(self._writing, transport.get_write_buffer_size)
            finally:
                self._writing = None

    async def _patiently(self, waiter: asyncio.Future[None], moved: Callable[[], int]) -> None:
        """Wait for a future for as long as `moved` keeps changing."""
        timer: asyncio.TimerHandle

        def look(before: int) -> None:
            nonlocal timer
            now = moved()
            if now != before:
                timer = self._loop.call_later(self._stall, look, now)
            elif not waiter.done():
                waiter.set_exception(Stalled(f"no byte moved for {self._stall:g} s"))

        timer = self._loop.call_later(self._stall, look, moved())
        try:
            await waiter
        finally:
            timer.cancel()
