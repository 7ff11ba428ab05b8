"""Check the certificate of a pool against the configuration.

Three ways, best first: a CA file (or the host's own self-signed certificate as one), pinned
SHA-256 fingerprints, or the system's trust store. XAPI offers only TLS 1.2, so that is the minimum.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import select
import socket
import ssl
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from xorepd.errors import Refused
from xorepd.xapi.rpc.answers import PIECE, BoundedResponse, Bounds


class FingerprintMismatch(ssl.SSLError):
    """The peer's certificate is none of the pinned ones."""


def client_context(ca_file: Path | None, fingerprints: Collection[str]) -> ssl.SSLContext:
    """Return the TLS settings of connections to one pool.

    With fingerprints, chain and host name are not checked: the caller compares the certificate
    itself (`check_fingerprint`).

    Raises:
        Refused: the CA file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # the file does not exist
        raise Refused(f"ca_file {ca_file} cannot be used ({error.strerror or error})") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if fingerprints:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def check_fingerprint(certificate: bytes | None, fingerprints: Collection[str]) -> None:
    """Compare a DER certificate with the pinned SHA-256 fingerprints (64 hex digits each).

    Raises:
        FingerprintMismatch: the certificate matches none of them.
    """
    found = hashlib.sha256(certificate or b"").hexdigest()
    if not any(hmac.compare_digest(found, pinned) for pinned in fingerprints):
        raise FingerprintMismatch(f"its fingerprint is sha256:{found}")


class BreakableConnection(http.client.HTTPConnection):
    """An HTTP connection that another thread can abort at any time.

    A connection of the standard library cannot be aborted while it connects or in its handshake.
    """

    sock: socket.socket | None
    bounds: Bounds
    """Bounds of the current or next exchange."""
    _used: socket.socket | None = None
    _broken = False

    def connect(self) -> None:
        problem: OSError = ConnectionAbortedError("the connection is being closed")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            self.sock = self._used = socket.socket(family, kind, protocol)
            try:
                if self._broken:
                    raise ConnectionAbortedError("the connection is being closed")
                self.sock.settimeout(self.bounds.left())
                self.sock.connect(address)
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                problem = error
                self.close()
            else:
                return
        raise problem

    def send(self, data: Any) -> None:
        """Send bytes within the bounds."""
        if self.sock is None:
            self.connect()
        assert self.sock is not None
        for start in range(0, len(data), PIECE):
            self.sock.settimeout(self.bounds.left())
            self.sock.sendall(data[start : start + PIECE])

    def getresponse(self) -> http.client.HTTPResponse:
        self.response_class = partial(BoundedResponse, self.bounds)  # type: ignore[assignment]
        return super().getresponse()

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed the idle connection, or sent data without a request."""
        if self.sock is None:
            return False
        idle = select.poll()
        idle.register(self.sock, select.POLLIN)
        return bool(idle.poll(0))

    def break_off(self) -> None:
        """Abort the connection: a thread that waits in it fails."""
        self._broken = True
        sock = self._used  # `sock` is None while the last answer of a connection is read
        if sock is not None:
            with suppress(OSError):  # SSLSocket's own would remove the TLS under a reader
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class VerifiedConnection(BreakableConnection):
    """An HTTPS connection that compares the certificate before the first byte is sent."""

    default_port = http.client.HTTPS_PORT

    def __init__(
        self, host: str, *, context: ssl.SSLContext, fingerprints: Collection[str]
    ) -> None:
        super().__init__(host)
        self._context, self._fingerprints = context, fingerprints

    def connect(self) -> None:
        super().connect()
        assert self.sock is not None
        try:
            secured = self._context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock = self._used = secured  # from here on `break_off` reaches the handshake, too
            secured.settimeout(self.bounds.left())
            secured.do_handshake()
            if self._fingerprints:
                check_fingerprint(secured.getpeercert(binary_form=True), self._fingerprints)
        except (OSError, ValueError):
            self.close()
            raise
