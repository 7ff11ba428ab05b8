"""What a client has announced for one disk, what it still owes, and how far that is whole. Pure.

    0                    floor            reached                      virtual size
    ├────── settled ───────┤█ wanted, owed █├──────── not announced ────────┤

A client announces the disk from front to back: with an OFFER, or with DATA and ZERO that it did not
offer. What the relay wants of an offer follows in its order, while later offers are on their way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from xorepd.data.zeroes import UNIT
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.frames import WireError

MOST_OWED = 1 << 16
"""Units that a client may owe: 4 GiB of disk, and some ten megabytes of books here."""


@dataclass(frozen=True, slots=True)
class Unit:
    """64 KiB of a disk, or what there is of them at its end."""

    offset: int
    length: int
    hash: bytes


class Ledger:
    """The books of one disk."""

    def __init__(self, virtual_size: int) -> None:
        self._size = virtual_size
        self._reached = 0
        self._busy: int | None = None
        self._owed: deque[Unit] = deque()
        self._outstanding = 0
        self._copies: dict[bytes, list[Unit]] = {}
        """Units that become whole when one with their hash comes, by that hash."""

    @property
    def floor(self) -> int:
        """Return up to where everything that was announced has been handled."""
        if self._owed:
            return self._owed[0].offset
        return self._reached if self._busy is None else self._busy

    @property
    def owes(self) -> bool:
        """Whether the client has to send something that was wanted."""
        return bool(self._owed)

    def units_of(self, offer: wire.Offer) -> list[Unit]:
        """Note an offer and return its units; `handled` follows.

        Raises:
            WireError: it overlaps what was announced, or leaves the disk.
        """
        last = offer.offset + (len(offer.hashes) - 1) * UNIT
        if last >= self._size:
            raise WireError(f"a unit at {last} is beyond the end of the disk at {self._size}")
        self._announce(offer.offset, min(last + UNIT, self._size))
        return list(self._cut(offer))

    def _cut(self, offer: wire.Offer) -> Iterator[Unit]:
        for index, found in enumerate(offer.hashes):
            offset = offer.offset + index * UNIT
            yield Unit(offset, min(UNIT, self._size - offset), found)

    def want(self, unit: Unit) -> bool:
        """Note that the relay does not have a unit; return whether it has to be sent.

        Not if another one with its hash has been asked for: that one serves for both.

        Raises:
            WireError: the client offers on and on and sends nothing.
        """
        self._outstanding += 1
        if self._outstanding > MOST_OWED:
            raise WireError(f"more than {MOST_OWED} units are wanted, and do not come")
        copies = self._copies.get(unit.hash)
        if copies is not None:
            copies.append(unit)
            return False
        self._copies[unit.hash] = []
        self._owed.append(unit)
        return True

    def take(self, data: wire.Data) -> list[Unit]:
        """Note a block and return the units that it pays, none if it was not offered.

        `handled` follows.

        Raises:
            WireError: it is neither what is owed next nor announced in order.
        """
        if data.offset >= self._reached:
            self._announce(data.offset, data.end)
            return []
        paid: list[Unit] = []
        end = data.offset
        for unit in self._owed:
            if end == data.end:
                break
            if unit.offset != end or unit.offset + unit.length > data.end:
                break
            paid.append(unit)
            end = unit.offset + unit.length
        if end != data.end:
            raise WireError(f"the {data.length} bytes at {data.offset} are not what is wanted next")
        return paid

    def skip(self, zero: wire.Zero) -> None:
        """Note a range of zeroes; `handled` follows.

        Raises:
            WireError: it was announced before, or leaves the disk.
        """
        self._announce(zero.offset, zero.end)

    def copies_of(self, unit: Unit) -> list[Unit]:
        """Return the units that a paid one serves besides itself, and forget about them."""
        copies = self._copies.pop(unit.hash, [])
        self._outstanding -= len(copies)
        return copies

    def handled(self, paid: int = 0) -> None:
        """Note that what was announced or paid last has been written."""
        self._busy = None
        for _ in range(paid):
            self._owed.popleft()
            self._outstanding -= 1

    def _announce(self, offset: int, end: int) -> None:
        if offset < self._reached:
            raise WireError(f"what begins at {offset} was announced before, up to {self._reached}")
        if end > self._size:
            raise WireError(f"{end} is beyond the end of the disk at {self._size}")
        self._busy, self._reached = offset, end
