"""The listening socket of a relay, and its new connections."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from xorepd.errors import Refused
from xorepd.stream import LARGEST_TLS_READ, ByteStream

log = structlog.get_logger(__name__)

BACKLOG = 64
HANDSHAKE_S = 10.0
"""Longest handshake of a connection that has not authenticated yet."""
_PAUSE_S = 1.0
"""Pause after a failed accept, which lacks file descriptors."""


class SecuredStream(ByteStream):
    """A connection after its handshake."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._largest = LARGEST_TLS_READ
        secured: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self.certificate = secured.getpeercert(binary_form=True)
        """The certificate of the client in DER form, which the CA has signed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A new connection without a handshake yet; call `secure` or `hang_up`."""

    host: str
    """Address without port."""
    port: int
    connection: socket.socket
    silence: float
    """Seconds without a byte after which it is given up."""

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    async def secure(self, context: ssl.SSLContext) -> SecuredStream:
        """Do the handshake, as the server.

        Raises:
            OSError: it failed, or the authority did not sign the client's certificate.
        """
        loop = asyncio.get_running_loop()
        stream = SecuredStream(self.silence)  # uvloop returns its own protocol instead
        try:
            # Not `start_tls`: uvloop reads before it, and loses what a quick client has sent.
            await loop.connect_accepted_socket(
                lambda: stream,
                self.connection,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        except BaseException:
            self.connection.close()
            raise
        return stream

    def hang_up(self) -> None:
        self.connection.close()


@asynccontextmanager
async def listening(
    address: str, port: int, came: Callable[[Caller], None], *, silence: float
) -> AsyncIterator[int]:
    """Accept connections while a block lasts, and provide the port.

    Args:
        address: IPv4 or IPv6.
        port: 0 lets the system choose.
        came: Called with each connection; it takes the connection over, and must not wait.
        silence: Seconds without a byte after which a connection is closed.

    Raises:
        Refused: the relay cannot listen on the address.
    """
    is_v6 = ipaddress.ip_address(address).version == 6
    with socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(BACKLOG)
        except OSError as error:
            said = error.strerror or str(error)
            raise Refused(
                f"{address}:{port} cannot be listened on ({said}); check listen"
            ) from error
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        accepting = loop.create_task(_accept(listener, came, silence), name="accepting")
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            await asyncio.wait({accepting})


async def _accept(listener: socket.socket, came: Callable[[Caller], None], silence: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, address = await loop.sock_accept(listener)
        except OSError as error:
            log.warning("relay.accept_failed", error=error.strerror or str(error))
            await asyncio.sleep(_PAUSE_S)
            continue
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        came(Caller(address[0], address[1], accepted, silence))
