"""The body of an upload, received into two buffers that take turns.

asyncio's streams copy every byte twice before anybody sees it. Here the socket's bytes (or those
that TLS deciphered) land where they are used from: while a thread works on one buffer, the event
loop fills the other, and stops reading when both are full.

    fill A │ fill B      │ fill A      │ …
           │ work with A │ work with B │
"""

import asyncio
from typing import Final

SIZE: Final = 2 << 20
"""Of each buffer, in bytes."""


class Inflow(asyncio.BufferedProtocol):
    """What a connection receives from now on.

    Args:
        transport: Whose protocol this becomes, as soon as it is made.
        outer: The protocol it had; it goes on taking care of writing and closing.
        early: What had been received already.
        ended: Whether the other side has said that it is done.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        outer: asyncio.Protocol,
        early: bytes,
        ended: bool,
    ) -> None:
        self._transport = transport
        self._outer = outer
        self._early = early
        self._ended = ended
        self._error: Exception | None = None
        self._filling = bytearray(SIZE)
        self._lent = bytearray(SIZE)
        self._filled = 0
        self._wanted = 0
        self._arrived: asyncio.Future[None] | None = None
        transport.set_protocol(self)
        transport.resume_reading()

    async def read(self, at_least: int) -> memoryview:
        """Return what has come, at least so many bytes unless the buffer or the stream ends.

        The bytes stand where they are until the next call, which takes that place for others.

        Raises:
            OSError: The connection broke.
        """
        if self._early:
            early, self._early = self._early, b""
            return memoryview(early)
        self._wanted = min(max(at_least, 1), SIZE)
        if not self._is_enough():
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        if not self._filled and self._error is not None:
            raise self._error
        count, self._filled = self._filled, 0
        self._filling, self._lent = self._lent, self._filling
        self._transport.resume_reading()
        return memoryview(self._lent)[:count]

    def _is_enough(self) -> bool:
        return self._ended or self._filled >= self._wanted

    def _notice(self) -> None:
        if self._arrived is not None and not self._arrived.done() and self._is_enough():
            self._arrived.set_result(None)

    # -- what the transport calls -------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._filling)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == SIZE:
            self._transport.pause_reading()
        self._notice()

    def eof_received(self) -> bool | None:
        self._ended = True
        self._notice()
        return self._outer.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._error = True, exc
        self._notice()
        self._outer.connection_lost(exc)

    def pause_writing(self) -> None:
        self._outer.pause_writing()

    def resume_writing(self) -> None:
        self._outer.resume_writing()
