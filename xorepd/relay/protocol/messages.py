"""What the frames between a daemon and its relay say. Pure: bytes to values and back.

    client (the daemon)                        relay
                                        ◄──    HELLO     nonce
    HELLO    answers the nonce          ──►
    OPEN     which disk, window         ──►
                                        ◄──    ACCEPT    window    (or REFUSE)
    OFFER    hashes of units of 64 KiB  ──►
                                        ◄──    WANT      those it cannot supply itself
    DATA, ZERO                          ──►
                                        ◄──    WINDOW, CONFIRMED
    FINISH                              ──►
                                        ◄──    DONE      (or FAILED)
    CLOSE                               ──►

docs/relay-protocol.md is the specification. Everything is checked here that a frame by itself can
show; what depends on what came before is checked where that is known.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar, Self, TypeVar

from xorepd.data.zeroes import UNIT
from xorepd.extents import Extent
from xorepd.relay.protocol.frames import (
    LARGEST_BLOCK,
    LARGEST_SENTENCE,
    MOST_EXTENTS,
    MOST_OFFERED,
    SMALLEST_DATA_WINDOW,
    SMALLEST_WINDOW,
    Kind,
    WireError,
)

MAGIC = b"XOREPDRL"
VERSION = 1
NONCE = 16
HASH = 16
"""Bytes of a unit's SHA-256 that are sent."""
ZEROES = bytes(HASH)
"""In place of the hash of a unit that is all zeroes."""
LARGEST_DISK = 1 << 62
SECTOR = 512

Body = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of each end. The relay speaks first."""

    kind: ClassVar[Kind] = Kind.HELLO
    nonce: bytes
    """Random bytes of this connection."""
    answer: bytes
    """From the client: the relay's nonce. From the relay: zeroes."""
    channels: int
    """How many disks the other end may have open here at once; none at a client."""
    silence_ms: int
    """After so long without a byte this end gives up: the other pings three times as often."""
    name: str
    """Who this is, for people."""
    software: str
    version: int = VERSION

    _HEAD: ClassVar[struct.Struct] = struct.Struct(">8sHH16s16sII")

    def pack(self) -> bytes:
        head = self._HEAD.pack(
            MAGIC, self.version, 0, self.nonce, self.answer, self.channels, self.silence_ms
        )
        return head + _text(self.name, 256) + _text(self.software, 256)

    @classmethod
    def parse(cls, body: Body) -> Self:
        magic, version, _, nonce, answer, channels, silence_ms = cls._HEAD.unpack_from(body)
        if magic != MAGIC:
            raise WireError("it does not speak the relay's protocol")
        if version != VERSION:
            raise WireError(
                f"it speaks version {version} of the relay's protocol, and this end {VERSION}"
            )
        texts = _Texts(body, cls._HEAD.size, 256)
        made = cls(nonce, answer, channels, silence_ms, texts.next(), texts.next(), version)
        texts.end()
        if silence_ms < 100:
            raise WireError(f"a silence of {silence_ms} ms cannot be kept")
        return made


class Code(IntEnum):
    """Why something ended, for programs; the sentence beside it is for people."""

    NORMAL = 0
    VIOLATION = 1
    """The peer did what the wire does not allow."""
    NOT_ALLOWED = 2
    """This client, or anybody, may not do this to this disk."""
    BUSY = 3
    """No place at the moment; later it may have one."""
    POOL = 4
    """The pool failed or refused."""
    CANCELLED = 5
    """The client asked for it, or the relay is being stopped."""


C = TypeVar("C", bound="_Reason")


@dataclass(frozen=True, slots=True)
class _Reason:
    code: Code
    sentence: str = ""

    def pack(self) -> bytes:
        return struct.pack(">H", self.code) + self.sentence.encode()[:LARGEST_SENTENCE]

    @classmethod
    def parse(cls: type[C], body: Body) -> C:
        (number,) = struct.unpack_from(">H", body)
        try:
            code = Code(number)
        except ValueError:
            raise WireError(f"there is no code {number}") from None
        return cls(code, bytes(body[2:]).decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Bye(_Reason):
    """The connection ends; nothing follows."""

    kind: ClassVar[Kind] = Kind.BYE


@dataclass(frozen=True, slots=True)
class Refuse(_Reason):
    """The relay does not open this disk."""

    kind: ClassVar[Kind] = Kind.REFUSE


@dataclass(frozen=True, slots=True)
class Failed(_Reason):
    """What was sent is worth nothing, or could not be read back."""

    kind: ClassVar[Kind] = Kind.FAILED


@dataclass(frozen=True, slots=True)
class Ping:
    kind: ClassVar[Kind] = Kind.PING
    token: int

    def pack(self) -> bytes:
        return struct.pack(">Q", self.token)

    @classmethod
    def parse(cls, body: Body) -> Self:
        return cls(*struct.unpack(">Q", body))


@dataclass(frozen=True, slots=True)
class Pong(Ping):
    """The answer to a Ping, with its token."""

    kind: ClassVar[Kind] = Kind.PONG


@dataclass(frozen=True, slots=True)
class Window:
    """So many more bytes of frames may come on this channel."""

    kind: ClassVar[Kind] = Kind.WINDOW
    credit: int

    def pack(self) -> bytes:
        return struct.pack(">I", self.credit)

    @classmethod
    def parse(cls, body: Body) -> Self:
        return cls(*struct.unpack(">I", body))


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a channel: which disk of the target pool, and what for."""

    kind: ClassVar[Kind] = Kind.OPEN
    virtual_size: int
    window: int
    """Bytes of frames that may come back before more is granted."""
    pool: str
    """UUID of the target pool."""
    vdi: str
    """UUID of the staging disk."""
    base: str
    """UUID of the restore point's disk that it is a clone of; empty where it is all zeroes."""
    stream: str
    """`<source pool>/<vm>/<sr>`, as in the disk's mark."""
    run: str
    what: str
    """The disk, for messages and logs."""
    read_only: bool = False
    """To read it back (DIGEST), not to write it."""

    _HEAD: ClassVar[struct.Struct] = struct.Struct(">QII")
    _READ_ONLY: ClassVar[int] = 1

    def pack(self) -> bytes:
        flags = self._READ_ONLY if self.read_only else 0
        texts = (self.pool, self.vdi, self.base, self.stream, self.run, self.what)
        head = self._HEAD.pack(self.virtual_size, self.window, flags)
        return head + b"".join(_text(text, 1024) for text in texts)

    @classmethod
    def parse(cls, body: Body) -> Self:
        virtual_size, window, kept = cls._HEAD.unpack_from(body)
        if kept & ~cls._READ_ONLY:
            raise WireError(f"OPEN has flags {kept:#x} that version {VERSION} does not know")
        if not 0 < virtual_size <= LARGEST_DISK or virtual_size % SECTOR:
            raise WireError(f"a disk cannot have {virtual_size} bytes")
        if window < SMALLEST_WINDOW:
            raise WireError(f"a window of {window} bytes is smaller than {SMALLEST_WINDOW}")
        texts = _Texts(body, cls._HEAD.size, 1024)
        pool, vdi, base, stream, run, what = (texts.next() for _ in range(6))
        texts.end()
        read_only = bool(kept & cls._READ_ONLY)
        return cls(virtual_size, window, pool, vdi, base, stream, run, what, read_only)


class Feature(IntFlag):
    """What a relay can do for a disk."""

    REFERENCES = 1
    """It supplies units itself: offers may spare data."""


@dataclass(frozen=True, slots=True)
class Accept:
    """The disk is open."""

    kind: ClassVar[Kind] = Kind.ACCEPT
    window: int
    features: Feature

    def pack(self) -> bytes:
        return struct.pack(">II", self.window, self.features)

    @classmethod
    def parse(cls, body: Body) -> Self:
        window, features = struct.unpack(">II", body)
        if window < SMALLEST_DATA_WINDOW:
            raise WireError(f"a window of {window} bytes is smaller than {SMALLEST_DATA_WINDOW}")
        return cls(window, Feature(features & Feature.REFERENCES))


@dataclass(frozen=True, slots=True)
class Offer:
    """The hashes of neighbouring units; the last one of a disk may be shorter than 64 KiB."""

    kind: ClassVar[Kind] = Kind.OFFER
    offset: int
    hashes: tuple[bytes, ...]

    def pack(self) -> bytes:
        return struct.pack(">QI", self.offset, len(self.hashes)) + b"".join(self.hashes)

    @classmethod
    def parse(cls, body: Body) -> Self:
        offset, count = struct.unpack_from(">QI", body)
        if not 0 < count <= MOST_OFFERED or len(body) != 12 + count * HASH:
            raise WireError(f"an offer of {count} units cannot have {len(body)} bytes")
        if offset % UNIT or offset > LARGEST_DISK:
            raise WireError(f"no unit begins at {offset}")
        data = bytes(body[12:])
        return cls(offset, tuple(data[i : i + HASH] for i in range(0, len(data), HASH)))


@dataclass(frozen=True, slots=True)
class Want:
    """The answer to an Offer: which of its units the client has to send."""

    kind: ClassVar[Kind] = Kind.WANT
    offset: int
    count: int
    wanted: frozenset[int]
    """Indexes of units, counted from the offer's first."""

    def pack(self) -> bytes:
        bits = bytearray(-(-self.count // 8))
        for index in self.wanted:
            bits[index // 8] |= 1 << index % 8
        return struct.pack(">QI", self.offset, self.count) + bits

    @classmethod
    def parse(cls, body: Body) -> Self:
        offset, count = struct.unpack_from(">QI", body)
        bits = bytes(body[12:])
        if not 0 < count <= MOST_OFFERED or len(bits) != -(-count // 8):
            raise WireError(f"an answer for {count} units cannot have {len(bits)} bytes of bits")
        known = int.from_bytes(bits, "little")
        if known >> count:
            raise WireError("an answer wants units that were not offered")
        return cls(offset, count, frozenset(i for i in range(count) if known >> i & 1))


class Encoding(IntEnum):
    RAW = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Data:
    """A block of a disk; `blocks` makes it and takes it apart."""

    kind: ClassVar[Kind] = Kind.DATA
    offset: int
    length: int
    """Bytes of disk; `payload` is as long or, compressed, shorter."""
    encoding: Encoding
    checksum: int
    """xxh3 (64 bits) of the bytes of disk."""
    payload: Body

    HEAD: ClassVar[struct.Struct] = struct.Struct(">QIB3xQ")

    @property
    def end(self) -> int:
        return self.offset + self.length

    def pack(self) -> bytes:
        return self.head() + bytes(self.payload)

    def head(self) -> bytes:
        """Return all but the payload, which is sent from where it lies."""
        return self.HEAD.pack(self.offset, self.length, self.encoding, self.checksum)

    @classmethod
    def parse(cls, body: Body) -> Self:
        offset, length, encoding, checksum = cls.HEAD.unpack_from(body)
        payload = memoryview(body)[cls.HEAD.size :]
        if not 0 < length <= LARGEST_BLOCK or offset > LARGEST_DISK:
            raise WireError(f"a block of {length} bytes at {offset} cannot be sent")
        if offset % SECTOR or length % SECTOR:
            raise WireError(f"a block of {length} bytes at {offset} is not made of sectors")
        match encoding:
            case Encoding.RAW:
                fits = len(payload) == length
            case Encoding.ZSTD:
                fits = len(payload) < length
            case _:
                raise WireError(f"there is no encoding {encoding}")
        if not fits:
            raise WireError(f"{len(payload)} bytes cannot be {length} bytes of disk")
        return cls(offset, length, Encoding(encoding), checksum, payload)


@dataclass(frozen=True, slots=True)
class Zero:
    """A range that holds zeroes."""

    kind: ClassVar[Kind] = Kind.ZERO
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def pack(self) -> bytes:
        return struct.pack(">QQ", self.offset, self.length)

    @classmethod
    def parse(cls, body: Body) -> Self:
        offset, length = struct.unpack(">QQ", body)
        if not length or offset % SECTOR or length % SECTOR or offset + length > LARGEST_DISK:
            raise WireError(f"{length} zeroes at {offset} are no range of a disk")
        return cls(offset, length)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The pool has confirmed all that the client announced below this offset."""

    kind: ClassVar[Kind] = Kind.CONFIRMED
    offset: int

    def pack(self) -> bytes:
        return struct.pack(">Q", self.offset)

    @classmethod
    def parse(cls, body: Body) -> Self:
        return cls(*struct.unpack(">Q", body))


@dataclass(frozen=True, slots=True)
class Done:
    """The pool has confirmed everything: what it cost."""

    kind: ClassVar[Kind] = Kind.DONE
    received: int = 0
    """Bytes of disk that came as DATA."""
    cached: int = 0
    """Bytes that the relay took from what it had received before."""
    written: int = 0
    """Bytes that went to the pool."""

    def pack(self) -> bytes:
        return struct.pack(">QQQ", self.received, self.cached, self.written)

    @classmethod
    def parse(cls, body: Body) -> Self:
        return cls(*struct.unpack(">QQQ", body))


@dataclass(frozen=True, slots=True)
class DigestOf:
    """A part of the extents whose digest is wanted; the last part says so."""

    kind: ClassVar[Kind] = Kind.DIGEST
    bounds: array[int]
    """Offset, length, offset, length …"""
    is_last: bool

    @classmethod
    def parts_of(cls, extents: Iterable[Extent]) -> Iterator[Self]:
        """Cut a list of extents into frames."""
        bounds = array("Q")
        for extent in extents:
            if len(bounds) == 2 * MOST_EXTENTS:
                yield cls(bounds, is_last=False)
                bounds = array("Q")
            bounds.extend((extent.offset, extent.length))
        yield cls(bounds, is_last=True)

    def pack(self) -> bytes:
        return struct.pack(f">B{len(self.bounds)}Q", self.is_last, *self.bounds)

    @classmethod
    def parse(cls, body: Body) -> Self:
        if body[0] > 1 or (len(body) - 1) % 16:
            raise WireError(f"a list of extents cannot have {len(body)} bytes")
        numbers = struct.unpack_from(f">{(len(body) - 1) // 8}Q", body, 1)
        end = 0
        for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
            if offset < end or not length or offset + length > LARGEST_DISK:
                raise WireError(f"the extent of {length} bytes at {offset} is out of order")
            end = offset + length
        return cls(array("Q", numbers), bool(body[0]))


@dataclass(frozen=True, slots=True)
class Digested:
    """The digest of the extents that were asked for (`data.digest.Digest`)."""

    kind: ClassVar[Kind] = Kind.DIGESTED
    digest: bytes

    def pack(self) -> bytes:
        return self.digest

    @classmethod
    def parse(cls, body: Body) -> Self:
        return cls(bytes(body))


class _Bare:
    """A frame that says all by its kind."""

    __slots__ = ()

    def pack(self) -> bytes:
        return b""

    @classmethod
    def parse(cls, body: Body) -> Self:
        return cls()


@dataclass(frozen=True, slots=True)
class Finish(_Bare):
    """Everything has been sent."""

    kind: ClassVar[Kind] = Kind.FINISH


@dataclass(frozen=True, slots=True)
class Cancel(_Bare):
    """Give it up; the answer is FAILED, or DONE if that was on its way."""

    kind: ClassVar[Kind] = Kind.CANCEL


@dataclass(frozen=True, slots=True)
class Close(_Bare):
    """The client has seen the verdict: the channel is no more."""

    kind: ClassVar[Kind] = Kind.CLOSE


Message = (
    Hello | Bye | Ping | Pong | Window | Open | Accept | Refuse | Close | Offer | Want | Data
    | Zero | Confirmed | Finish | Cancel | Done | Failed | DigestOf | Digested
)  # fmt: skip
Verdict = Refuse | Done | Failed | Digested

_BY_KIND: dict[Kind, type[Message]] = {
    each.kind: each
    for each in (
        Hello, Bye, Ping, Pong, Window, Open, Accept, Refuse, Close, Offer, Want, Data,
        Zero, Confirmed, Finish, Cancel, Done, Failed, DigestOf, Digested,
    )
}  # fmt: skip


def parse(kind: Kind, flags: int, body: Body) -> Message:
    """Return what a body says, whose length `frames.parse_header` has allowed.

    Raises:
        WireError: it contradicts itself.
    """
    if flags:
        raise WireError(f"a frame {kind.name} has flags that version {VERSION} does not know")
    try:
        return _BY_KIND[kind].parse(body)
    except struct.error as error:
        raise WireError(f"a frame {kind.name} is cut short") from error


def _text(text: str, most: int) -> bytes:
    encoded = text.encode()
    if len(encoded) > most:
        raise ValueError(f"{text[:40]!r}… is longer than {most} bytes")
    return struct.pack(">H", len(encoded)) + encoded


class _Texts:
    """Takes the texts at the end of a body, each after its length."""

    def __init__(self, body: Body, start: int, most: int) -> None:
        self._body, self._at, self._most = body, start, most

    def next(self) -> str:
        (length,) = struct.unpack_from(">H", self._body, self._at)
        start = self._at + 2
        self._at = start + length
        if length > self._most or self._at > len(self._body):
            raise WireError(f"a text of {length} bytes does not fit")
        try:
            return bytes(self._body[start : self._at]).decode()
        except UnicodeDecodeError:
            raise WireError("a text is not UTF-8") from None

    def end(self) -> None:
        if self._at != len(self._body):
            raise WireError(f"{len(self._body) - self._at} bytes follow the last text")
