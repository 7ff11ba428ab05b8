"""NBD as XAPI's server speaks it: fixed newstyle, STARTTLS, one export by its name, reads only.

    server                                  client
    NBDMAGIC IHAVEOPT flags          ──►
                                     ◄──    flags
                                     ◄──    IHAVEOPT STARTTLS
    reply ACK                        ──►
                      ═══ TLS 1.2 handshake ═══
                                     ◄──    IHAVEOPT EXPORT_NAME /<uuid>?session_id=<secret>
    size, flags, 124 zero bytes      ──►
                                     ◄──    READ cookie offset length      (many at once)
    reply error cookie, data         ──►                                   (one after the other)

The server supports nothing else (no GO, no structured replies). On any problem it closes the
connection without an error: so we see a dead session, a disk that cannot be attached, or the limit
of 16 connections of a host.

Source: the NBD protocol, doc/proto.md; xapi: ocaml/nbd/src/main.ml; nbd: lib/server.ml.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from xorepd.data.nbd.exports import NbdExport
from xorepd.errors import AddressFailed, DataError, ProtocolViolation, StreamCut
from xorepd.extents import Extent
from xorepd.stream import ByteStream, Ended, Stalled
from xorepd.units import KiB

ALIGNMENT = 512
"""Offsets and lengths of reads must be multiples of this."""
GREETING_S = 10.0
"""Longest wait for a connection, its greeting and its TLS handshake: there is no disk in it yet."""
ATTACH_S = 180.0
"""Longest wait for the disk to be attached: XAPI attaches one after the other, under load for
minutes."""
STALL_S = 60.0
"""A connection whose disk is attached, and which moves no byte for this long, is given up."""
LONGEST_NAME = 4096
"""Bytes of an export's name (doc/proto.md, "The NBD_OPT_EXPORT_NAME")."""
DETACH_S = 10.0
"""Longest wait for a disk to be detached after its last read."""
LARGEST_READ = 32 * 1024 * 1024
"""What every NBD server must take in one request."""

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_EXPORT = struct.Struct(">QH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_OPTION_MAGIC = b"IHAVEOPT"
_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC, _SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION_EXPORT_NAME, _OPTION_STARTTLS = 1, 5
_ACK = 1
_COMMAND_READ, _COMMAND_DISCONNECT = 0, 2
_HAS_FLAGS = 1
_PADDING = 124


class NbdConnection:
    """One connection to one export; make it with `open_nbd`.

    Reads are asked for with `ask` and taken with `take`, in the same order: the server answers one
    after the other, and what it sent ahead waits in the socket, where it costs us nothing. The head
    of the next answer is received together with the data of the one before.
    """

    def __init__(self, stream: ByteStream, size: int, what: str) -> None:
        self._stream, self.size, self._what = stream, size, what
        self._asked: deque[tuple[int, int]] = deque()
        self._cookie = 0
        self._head = memoryview(bytearray(_REPLY.size))
        self._has_head = False
        self.on_stall: Callable[[DataError], None] = lambda error: None
        """Called when the server no longer answers."""

    @property
    def outstanding(self) -> int:
        """How many reads have been asked for and not taken."""
        return len(self._asked)

    @property
    def is_behind(self) -> bool:
        """Whether nothing of the next answer waits for us: more could have been asked for."""
        return self._stream.waiting == 0

    async def ask(self, *extents: Extent) -> None:
        """Ask for ranges, multiples of 512 bytes inside the export, in one go.

        Raises:
            DataError: the connection is gone.
        """
        requests = b"".join(self._request(extent.offset, extent.length) for extent in extents)
        try:
            await self._stream.write(requests)
        except OSError as error:
            raise broken(self._what, error) from error

    def _request(self, offset: int, length: int) -> bytes:
        if offset % ALIGNMENT or length % ALIGNMENT or not 0 < length <= LARGEST_READ:
            raise ValueError(f"NBD cannot read {length} bytes at {offset}")
        if offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are beyond the {self.size} of the export")
        self._cookie += 1
        self._asked.append((self._cookie, length))
        return _REQUEST.pack(_REQUEST_MAGIC, 0, _COMMAND_READ, self._cookie, offset, length)

    async def take(self, target: memoryview) -> None:
        """Wait for the answer to the oldest read, as long as `target`, and put it there.

        Raises:
            DataError: the server failed, contradicts the protocol, or is gone.
        """
        cookie, length = self._asked[0]
        if len(target) != length:
            raise ValueError(f"{length} bytes were asked for, not {len(target)}")
        try:
            if not self._has_head:
                await self._stream.read_into(self._head)
            self._check(cookie)
            self._has_head = len(self._asked) > 1
            await self._stream.read_into(target, *((self._head,) if self._has_head else ()))
        except Ended as error:
            if not self._has_head or error.received < length:
                raise StreamCut(self._what, error.received, length) from error
            self._has_head = False  # this answer came; the next take finds the end
        except OSError as error:
            failure = broken(self._what, error)
            if isinstance(error, Stalled):
                self.on_stall(failure)
            raise failure from error
        self._asked.popleft()

    def _check(self, cookie: int) -> None:
        magic, error_number, answered = _REPLY.unpack(self._head)
        if magic != _SIMPLE_REPLY_MAGIC:
            raise ProtocolViolation(self._what, f"an NBD reply begins with {magic:#x}")
        if answered != cookie:
            raise ProtocolViolation(
                self._what, f"NBD answers request {answered} where {cookie} is next"
            )
        if error_number:
            raise ProtocolViolation(self._what, f"NBD fails with error {error_number}")

    async def disconnect(self) -> None:
        """Say goodbye, and wait a moment for the server to let go of the disk.

        XAPI's server closes the connection when the disk is detached. Until then the disk cannot be
        destroyed (VDI_IN_USE).
        """
        goodbye = _REQUEST.pack(_REQUEST_MAGIC, 0, _COMMAND_DISCONNECT, 0, 0, 0)
        rest = memoryview(bytearray(64 * KiB))
        with suppress(OSError):  # it may be gone already, or take too long
            async with asyncio.timeout(DETACH_S):
                await self._stream.write(goodbye)
                while await self._stream.read_some(rest):
                    pass  # answers that are no longer needed


@asynccontextmanager
async def open_nbd(export: NbdExport, what: str, *, stall: float) -> AsyncIterator[NbdConnection]:
    """Open one connection to an export.

    Args:
        what: the disk, for messages.
        stall: seconds without a byte of the disk after which the server is given up.

    Raises:
        AddressFailed: there is no NBD server that can be used, or it says nothing.
        DataError: the disk is not served there.
    """
    try:
        stream = await ByteStream.connect(
            export.address, export.port, stall=ATTACH_S, within=GREETING_S
        )
    except OSError as error:
        raise _failed(export, what, error) from error
    except ValueError as error:
        raise AddressFailed(what, f"the pool gave an invalid address for NBD ({error})") from error
    async with stream:
        try:
            async with asyncio.timeout(GREETING_S):
                padding = await _greet(stream, export, what)
            async with asyncio.timeout(ATTACH_S):
                size = await _enter(stream, export, padding, what)
        except Ended as error:
            raise ProtocolViolation(
                what,
                f"the NBD server of {export.address} ended the connection; the disk cannot be "
                "attached, its 16 connections are taken, or its network has no purpose nbd",
            ) from error
        except OSError as error:
            raise _failed(export, what, error) from error
        except ValueError as error:
            reason = f"the pool gave an invalid certificate or subject for NBD ({error})"
            raise AddressFailed(what, reason) from error
        stream.stall = stall
        connection = NbdConnection(stream, size, what)
        yield connection
        await connection.disconnect()


def broken(what: str, error: OSError) -> DataError:
    """Return the error for an NBD connection that broke, without the export's name."""
    reason = error.strerror or str(error) or type(error).__name__
    return ProtocolViolation(what, f"the NBD connection broke ({reason})")


def _failed(export: NbdExport, what: str, error: OSError) -> AddressFailed:
    """Return the error for an address at which no NBD server could be used."""
    said = error.strerror or str(error)
    reason = f"the NBD connection broke ({said or 'no answer in time'})"
    return AddressFailed(what, f"{reason} at {export.address}:{export.port}")


def _context() -> ssl.SSLContext:
    """Return TLS settings that trust only the certificate that the pool has given.

    The pool master gave the certificate over a verified connection, so its name and validity period
    do not matter. `_check` compares it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _check(export: NbdExport, certificate: bytes | None) -> None:
    """Compare the server's certificate (DER) with the one from the pool.

    Raises:
        ssl.SSLError: it is another.
    """
    if certificate != ssl.PEM_cert_to_DER_cert(export.certificate):
        raise ssl.SSLError("its certificate is not the one that the pool gave")


async def _greet(stream: ByteStream, export: NbdExport, what: str) -> int:
    """Go through greeting and TLS; return how many zeroes follow the size of the export."""
    magic, option_magic, flags = _GREETING.unpack(await _receive(stream, _GREETING.size))
    if magic != b"NBDMAGIC" or option_magic != _OPTION_MAGIC:
        raise AddressFailed(what, "the greeting is not that of a newstyle NBD server")
    if not flags & _FIXED_NEWSTYLE:
        raise AddressFailed(what, "the NBD server does not speak fixed newstyle")
    await stream.write(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
    if export.certificate:
        await stream.write(_OPTION.pack(_OPTION_MAGIC, _OPTION_STARTTLS, 0))
        reply = _OPTION_REPLY.unpack(await _receive(stream, _OPTION_REPLY.size))
        if reply != (_REPLY_MAGIC, _OPTION_STARTTLS, _ACK, 0):
            raise AddressFailed(what, f"the NBD server refuses TLS (reply {reply[2]:#x})")
        if stream.waiting:
            raise AddressFailed(what, "the NBD server sends data before the TLS handshake")
        await stream.start_tls(_context(), export.subject, partial(_check, export))
    return 0 if flags & _NO_ZEROES else _PADDING


async def _enter(stream: ByteStream, export: NbdExport, padding: int, what: str) -> int:
    """Ask for the export; return its size once the disk is attached."""
    name = export.name.encode()
    await stream.write(_OPTION.pack(_OPTION_MAGIC, _OPTION_EXPORT_NAME, len(name)), name)
    size, export_flags = _EXPORT.unpack(await _receive(stream, _EXPORT.size))
    await _receive(stream, padding)
    if not export_flags & _HAS_FLAGS or size % ALIGNMENT:
        raise ProtocolViolation(what, f"NBD offers {size} bytes with flags {export_flags:#x}")
    return int(size)


async def _receive(stream: ByteStream, size: int) -> bytes:
    buffer = bytearray(size)
    await stream.read_into(memoryview(buffer))
    return bytes(buffer)
