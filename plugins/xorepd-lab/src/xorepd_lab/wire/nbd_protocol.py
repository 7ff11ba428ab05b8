"""NBD as xapi-nbd speaks it: fixed newstyle, of the options EXPORT_NAME only, and READ only.

    server                              client
    NBDMAGIC IHAVEOPT flags    ►
                               ◄        flags
                               ◄        IHAVEOPT option length data     again and again
    magic option reply length  ►
                               ◄        EXPORT_NAME, with the export's name
    size flags 124 zeroes      ►
                               ◄        magic command handle offset length
    magic error handle [data]  ►

All numbers are big-endian. Nothing here does I/O.

Source: the NBD protocol, doc/proto.md; xapi-project/nbd: lib/protocol.ml, lib/server.ml.
"""

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final
from urllib.parse import parse_qs, unquote

OPTION_MAGIC: Final = 0x49484156454F5054
REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698

FIXED_NEWSTYLE: Final = 1
"""The one handshake flag of this server, and the one that it wants to see before TLS. A client may
say that it can do without the 124 zeroes, but gets them all the same."""
GREETING: Final = struct.pack(">8sQH", b"NBDMAGIC", OPTION_MAGIC, FIXED_NEWSTYLE)
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_EXPORT: Final = struct.Struct(">QH124x")
_READ_ONLY_EXPORT: Final = 0x0001 | 0x0002
REQUEST: Final = struct.Struct(">IIQQI")
_SIMPLE_REPLY: Final = struct.Struct(">IIQ")

LONGEST_NAME: Final = 4096
"""Bytes of an export's name, by the protocol."""
SIGNED_LIMIT: Final = 1 << 31
"""The server keeps lengths as signed 32-bit numbers: from here on they are negative and fail."""
SECTOR: Final = 512
PIECE: Final = 512 * 1024
"""Bytes that the server reads from the disk, and sends, at a time."""


class ProtocolError(Exception):
    """What the client sent is not NBD, or more than is taken; the connection ends."""


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5


class Reply(IntEnum):
    ACK = 1
    UNSUPPORTED = (1 << 31) + 1
    POLICY = (1 << 31) + 2
    INVALID = (1 << 31) + 3
    TLS_REQUIRED = (1 << 31) + 5


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISCONNECT = 2


class Errno(IntEnum):
    """NBD's error numbers, which are those of Linux."""

    EPERM = 1
    EINVAL = 22


class Next(Enum):
    """What follows an option."""

    ANOTHER = "another option"
    ENCRYPT = "the TLS handshake"
    SERVE = "the export, or the end"
    CLOSE = "the end"


@dataclass(frozen=True, slots=True)
class Request:
    command: int
    """All 32 bits of it: with a flag set, a command is one that the server does not know."""
    handle: int
    offset: int
    length: int


def parse_option(header: bytes) -> tuple[int, int]:
    """Return an option's number and how many bytes of data follow.

    Raises:
        ProtocolError: The magic is wrong, the data too long.
    """
    magic, option, length = OPTION.unpack(header)
    if magic != OPTION_MAGIC:
        raise ProtocolError("an option without its magic")
    if length >= SIGNED_LIMIT or (option == Option.EXPORT_NAME and length > LONGEST_NAME):
        raise ProtocolError(f"{length} bytes of data for option {option}")
    return option, length


def answer_option(option: int, *, plain: bool, tls: bool) -> tuple[Reply | None, Next]:
    """Decide what is said to an option, and what comes after it.

    Args:
        plain: The connection is not encrypted yet.
        tls: The server wants it to be.
    """
    if plain and tls:
        match option:
            case Option.STARTTLS:
                return Reply.ACK, Next.ENCRYPT
            case Option.EXPORT_NAME | Option.ABORT:
                return None, Next.CLOSE
            case _:
                return Reply.TLS_REQUIRED, Next.ANOTHER
    match option:
        case Option.EXPORT_NAME:
            return None, Next.SERVE
        case Option.ABORT:
            return Reply.ACK, Next.CLOSE
        case Option.LIST:
            return Reply.POLICY, Next.ANOTHER
        case Option.STARTTLS:
            return (Reply.POLICY if plain else Reply.INVALID), Next.ANOTHER
        case _:
            return Reply.UNSUPPORTED, Next.ANOTHER


def pack_option_reply(option: int, reply: Reply) -> bytes:
    return _OPTION_REPLY.pack(REPLY_MAGIC, option, reply, 0)


def pack_export(size: int) -> bytes:
    """Return the answer to EXPORT_NAME: a disk of that size, for reading only."""
    return _EXPORT.pack(size, _READ_ONLY_EXPORT)


def parse_export_name(name: bytes) -> tuple[str, str | None]:
    """Return the VDI's UUID and the session of `/<uuid>?session_id=<ref>`; neither is checked."""
    path, _, query = name.decode("utf-8", "replace").partition("?")
    sessions = parse_qs(query).get("session_id")
    return unquote(path)[1:], sessions[0] if sessions else None


def parse_request(header: bytes) -> Request:
    """Return a request; ProtocolError when its magic is wrong."""
    magic, command, handle, offset, length = REQUEST.unpack(header)
    if magic != REQUEST_MAGIC:
        raise ProtocolError("a request without its magic")
    return Request(command, handle, offset, length)


def refusal(request: Request) -> Errno | None:
    """Return the error that answers a request and ends the connection, None for a good READ."""
    match request.command:
        case Command.READ:
            aligned = request.offset % SECTOR == 0 and request.length % SECTOR == 0
            return None if aligned else Errno.EINVAL
        case Command.WRITE:
            return Errno.EPERM
        case _:
            return Errno.EINVAL


def pack_reply(handle: int, error: int = 0) -> bytes:
    return _SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, handle)
