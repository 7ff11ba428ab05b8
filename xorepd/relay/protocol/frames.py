"""A frame of the relay's wire: a fixed header and a bounded body. Pure.

    0     1     2         4           8            12           16
    ╭─────┬─────┬─────────┬───────────┬────────────┬────────────┬──────────────╮
    │ kind│flags│ 0       │ channel   │ sequence   │ length     │ body         │
    ╰─────┴─────┴─────────┴───────────┴────────────┴────────────┴──────────────╯

Numbers are big-endian. Channel 0 is the connection itself; each other channel is one disk. Each end
counts its frames from 0: a frame that is lost, doubled or from another connection is seen at once.
A header is checked before anything is allocated for its body. What the bodies hold is in `wire`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from xorepd.units import KiB, MiB

HEADER = struct.Struct(">BBHIII")
LARGEST_BLOCK = 1 * MiB
"""Bytes of disk in one frame of data, before compression."""
LARGEST_BODY = LARGEST_BLOCK + 24
LARGEST_SENTENCE = 2000
"""Bytes of UTF-8 that tell a person why something was refused."""
SMALLEST_WINDOW = 64 * KiB
"""What a client must take on a channel: one answer to an offer fits easily."""
SMALLEST_DATA_WINDOW = 2 * MiB
"""What a relay must take on a channel it writes: the largest frame fits into what it gives back."""


class WireError(ValueError):
    """The peer sent what the wire does not allow: the connection ends with this sentence."""


class Kind(IntEnum):
    """What a frame is; its limits are in `LIMITS`."""

    HELLO = 1
    BYE = 2
    PING = 3
    PONG = 4
    WINDOW = 5
    OPEN = 16
    ACCEPT = 17
    REFUSE = 18
    CLOSE = 19
    OFFER = 32
    WANT = 33
    DATA = 34
    ZERO = 35
    CONFIRMED = 36
    FINISH = 37
    CANCEL = 38
    DONE = 39
    FAILED = 40
    DIGEST = 48
    DIGESTED = 49


MOST_OFFERED = 4096
"""Units in one offer: 256 MiB of disk for 64 KiB of frame."""
MOST_EXTENTS = 4096
"""Extents in one frame of a digest's request."""

LIMITS: dict[Kind, tuple[int, int]] = {
    Kind.HELLO: (56, 52 + 2 * 258),
    Kind.BYE: (2, 2 + LARGEST_SENTENCE),
    Kind.PING: (8, 8),
    Kind.PONG: (8, 8),
    Kind.WINDOW: (4, 4),
    Kind.OPEN: (16 + 6 * 2, 16 + 6 * (2 + 1024)),
    Kind.ACCEPT: (8, 8),
    Kind.REFUSE: (2, 2 + LARGEST_SENTENCE),
    Kind.CLOSE: (0, 0),
    Kind.OFFER: (12 + 16, 12 + 16 * MOST_OFFERED),
    Kind.WANT: (13, 12 + MOST_OFFERED // 8),
    Kind.DATA: (25, LARGEST_BODY),
    Kind.ZERO: (16, 16),
    Kind.CONFIRMED: (8, 8),
    Kind.FINISH: (0, 0),
    Kind.CANCEL: (0, 0),
    Kind.DONE: (24, 24),
    Kind.FAILED: (2, 2 + LARGEST_SENTENCE),
    Kind.DIGEST: (1, 1 + 16 * MOST_EXTENTS),
    Kind.DIGESTED: (16, 16),
}
"""Bytes of body, from and to."""

COUNTED = frozenset({Kind.OFFER, Kind.WANT, Kind.DATA, Kind.ZERO, Kind.CONFIRMED, Kind.DIGEST})
"""What the window of a channel counts, header and body. Of the rest, each channel has a handful."""

OF_CONNECTION = frozenset({Kind.HELLO, Kind.BYE, Kind.PING, Kind.PONG})
"""What travels on channel 0, and nothing else does."""

FROM_CLIENT = frozenset(
    {Kind.OPEN, Kind.CLOSE, Kind.OFFER, Kind.DATA, Kind.ZERO, Kind.FINISH, Kind.CANCEL}
    | {Kind.DIGEST, Kind.WINDOW}
)
FROM_RELAY = frozenset(
    {Kind.ACCEPT, Kind.REFUSE, Kind.WANT, Kind.CONFIRMED, Kind.DONE, Kind.FAILED}
    | {Kind.DIGESTED, Kind.WINDOW}
)
VERDICTS = frozenset({Kind.REFUSE, Kind.DONE, Kind.FAILED, Kind.DIGESTED})
"""With one of these a relay ends its side of a channel; the client ends its own with CLOSE."""


@dataclass(frozen=True, slots=True)
class Header:
    kind: Kind
    flags: int
    channel: int
    sequence: int
    length: int

    @property
    def cost(self) -> int:
        """Bytes that it takes from its channel's window."""
        return HEADER.size + self.length if self.kind in COUNTED else 0

    def pack(self) -> bytes:
        return HEADER.pack(self.kind, self.flags, 0, self.channel, self.sequence, self.length)


def parse_header(head: bytes | bytearray | memoryview) -> Header:
    """Return what the 16 bytes before a body say.

    Raises:
        WireError: no such frame, or a body of a length that it cannot have.
    """
    number, flags, zero, channel, sequence, length = HEADER.unpack(head)
    try:
        kind = Kind(number)
    except ValueError:
        raise WireError(f"there is no frame of kind {number}") from None
    least, most = LIMITS[kind]
    if zero or not least <= length <= most:
        raise WireError(f"a frame {kind.name} cannot have a body of {length} bytes")
    if (channel == 0) != (kind in OF_CONNECTION):
        raise WireError(f"a frame {kind.name} does not belong on channel {channel}")
    return Header(kind, flags, channel, sequence, length)
