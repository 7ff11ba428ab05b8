"""A connection that moves the bytes of disks: large reads and writes, without copies, in bounds.

    socket ─► [TLS] ─► the caller's own buffers, one after the other; then a pause
                  └──► a spill of 64 KiB for what comes before anything was asked for

Data that no caller waits for stays in the kernel: it takes no memory of ours and is copied once.
The streams of asyncio copy each byte three times and allocate for each read; `make bench-relay`
measures the difference. `write` returns when the kernel has all data. So the caller may reuse the
buffer, and back-pressure is exact.
"""

from __future__ import annotations

import asyncio
import fcntl
import ssl
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Self, cast

from xorepd.stall import Stalled, StallTimer

__all__ = ["ByteStream", "CheckPeer", "Ended", "Stalled"]

SPILL = 64 * 1024
"""Holds the largest head that is read with `read_until`, and what came with it."""
LARGEST_READ = 1024 * 1024
"""Bytes taken from a plain socket at a time. More brings nothing, and one read stops the loop for
as long as it copies."""
LARGEST_TLS_READ = 256 * 1024
"""The same for TLS, where a byte takes six times as long."""
SMALLEST_WRITE = 64 * 1024
"""Parts are handed on together up to this size: a call of the system for each short one costs more
than its bytes. Above it they go one by one, so that no more than one waits in memory."""
LARGEST_TLS_WRITE = 256 * 1024
"""Bytes encrypted at a time: OpenSSL keeps a buffer of that size for each connection, and the
processor's cache still holds what goes to the kernel then."""
HANDSHAKE_S = 30.0
"""Longest TLS handshake; asyncio's own limit is twice that."""
SLOWEST = 2
"""Bytes per second: a wait in which fewer move ends as if none had."""

CheckPeer = Callable[[bytes | None], None]
"""Looks at the peer's certificate (DER) after the handshake; raises ssl.SSLError to refuse it."""


class Ended(EOFError):
    """The peer closed before it had sent what was waited for; `received` bytes of it came."""

    def __init__(self, received: int) -> None:
        super().__init__(f"the connection ended after {received} bytes")
        self.received = received


class ByteStream(asyncio.BufferedProtocol):
    """One connection, used by one reader and one writer at a time. Make it with `connect`.

    Args:
        stall: Seconds after which a read or write fails if too few bytes have moved.
    """

    def __init__(self, stall: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._largest = LARGEST_READ
        self._spill = memoryview(bytearray(SPILL))
        self._spilled = self._taken = 0
        self._target = memoryview(b"")
        self._filled = 0
        self._targets: deque[memoryview] = deque()
        self._received = 0
        self._some = False
        self._reading = StallTimer(self._loop, stall, lambda: self._arrived, slowest=SLOWEST)
        self._writing = StallTimer(self._loop, stall, self._unsent, slowest=SLOWEST)
        self._paused = False
        self._full = False
        self._lost: BaseException | None = None
        self._at_end = False
        self._arrived = 0
        self._broken = False
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self.guard: Callable[[], None] | None = None
        """Called before each piece is sent; its error ends the write."""

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
                ssl_handshake_timeout=min(self.stall, HANDSHAKE_S),
            )
            if secured is None:  # uvloop's word for a connection lost in the handshake
                raise ConnectionResetError("the connection was lost in the TLS handshake")
            self._paused = False
            self.connection_made(secured)
            self._largest = LARGEST_TLS_READ
            if check_peer is not None:
                check_peer(secured.get_extra_info("ssl_object").getpeercert(binary_form=True))
        except BaseException as error:
            self.abort()
            if secured is None:  # asyncio does not report a loss in the handshake
                self.connection_lost(error if isinstance(error, OSError) else None)
            raise

    def abort(self) -> None:
        """Close the connection at once; pending reads and writes fail."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close the connection and wait until its socket and buffers are freed."""
        self.abort()
        if self._transport is not None:
            await asyncio.shield(self._closed)
        # The transport and this refer to each other: TLS alone would keep 0.5 MiB until the next
        # collection of such circles, which may be long after.
        self._transport, self._spill = None, memoryview(b"")
        self._spilled = self._taken = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def stall(self) -> float:
        """Seconds after which a read or write fails if too few bytes have moved."""
        return self._reading.stall

    @stall.setter
    def stall(self, seconds: float) -> None:
        self._reading.stall = self._writing.stall = seconds

    # -- reading and writing ------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Number of received bytes that were not read yet; with TLS before decryption."""
        unread = bytes(4)
        if self._transport is not None and not self._transport.is_closing():
            socket = self._transport.get_extra_info("socket")
            unread = fcntl.ioctl(socket.fileno(), termios.FIONREAD, unread)
        return self._spilled - self._taken + int(struct.unpack("i", unread)[0])

    async def read_into(self, *targets: memoryview) -> None:
        """Fill some buffers, one after the other.

        Raises:
            Ended: the peer closed before they were full.
            Stalled: no byte came for too long.
            OSError: the connection broke.
        """
        await self._read(targets)
        received = self._received + self._filled
        if received < sum(map(len, targets)):
            raise Ended(received)

    async def read_some(self, target: memoryview) -> int:
        """Read what there is, at least a byte; return how much. Zero means the end.

        Raises:
            Stalled, OSError: as `read_into`.
        """
        await self._read([target], some=True)
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
            await self._wait_for_bytes()

    async def write(self, *parts: bytes | memoryview) -> None:
        """Send these bytes; return when the kernel has them all, so that buffers may be reused.

        Raises:
            Stalled: the peer took no byte for too long.
            OSError: the connection broke.
        """
        together: list[bytes | memoryview] = []
        size = 0
        for part in self._bounded(parts):
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
        self._arrived += nbytes
        if self._filled < len(self._target):
            self._filled += nbytes
            if not self._some and self._turn():
                return
            self._pause()
        else:
            self._spilled += nbytes
            if self._spilled == SPILL:
                self._pause()
        self._reading.end()

    def eof_received(self) -> bool:
        self._at_end = True
        self._reading.end()
        return False

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._writing.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._at_end = True
        self._lost = exc or ConnectionResetError("the connection was closed")
        self._full = False
        self._broken = exc is not None
        self._reading.close()
        self._writing.close()
        if not self._closed.done():
            self._closed.set_result(None)

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

    def _bounded(self, parts: tuple[bytes | memoryview, ...]) -> Iterator[bytes | memoryview]:
        """Cut what is to be sent into pieces that TLS takes well."""
        for part in parts:
            if self._largest == LARGEST_READ or len(part) <= LARGEST_TLS_WRITE:
                yield part
                continue
            for start in range(0, len(part), LARGEST_TLS_WRITE):
                yield part[start : start + LARGEST_TLS_WRITE]

    async def _read(self, targets: Sequence[memoryview], *, some: bool = False) -> None:
        """Fill buffers, or put at least a byte into them; less at the end."""
        self._targets, self._some = deque(targets), some
        self._received = self._filled = 0
        try:
            wanting = self._turn() and not (some and self._filled)
            while wanting and not self._at_end:
                self._resume()
                await self._wait_for_bytes()
                wanting = not self._filled if some else self._filled < len(self._target)
        finally:
            self._target = memoryview(b"")
            self._targets.clear()

    def _turn(self) -> bool:
        """Take the next buffer if one is full; return whether there is any that is not."""
        while self._filled == len(self._target):
            if not self._targets:
                return False
            self._received += self._filled
            self._target = self._targets.popleft()
            self._filled = self._take(self._target)
        return True

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

    def _unsent(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    async def _wait_for_bytes(self) -> None:
        if not self._broken:
            await self._reading.wait()
        if self._broken:
            raise self._failure()

    async def _wait_for_room(self) -> None:
        while self._full and self._lost is None:
            await self._writing.wait()
