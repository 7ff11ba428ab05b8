"""One disk at the relay: what comes over its channel is written, and what is offered is looked up.

OFFER ─► zero?  sent before?  on the base? ──► written at once ─┐
                                   no ─► WANT ─► DATA ─────────►├─► chunked import ─► CONFIRMED
DATA, ZERO ────────────────────────────────────────────────────►┘
FINISH ─► the import's task succeeded ─► DONE
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass

from xorepd.data.writer import Writer
from xorepd.data.zeroes import UNIT
from xorepd.relay.base import Base
from xorepd.relay.cache import BlockCache
from xorepd.relay.index import Index
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.blocks import hash_of, unpack_block
from xorepd.relay.protocol.channel import Channel
from xorepd.relay.protocol.frames import LARGEST_BLOCK, WireError
from xorepd.relay.protocol.ledger import Ledger, Unit

NOTES = 4096
"""Units that are put into the index at a time."""

_ZEROES = memoryview(bytes(LARGEST_BLOCK))


@dataclass(frozen=True, slots=True)
class References:
    """Where units may be found without sending them."""

    cache: BlockCache
    base: Base
    index: Index
    stream: str
    disk: str
    """UUID of the source disk: its index serves the next run."""


class DiskWriter:
    """Writes one disk from its channel.

    Args:
        ledger: Updated here, and read at the end of each segment.
    """

    def __init__(
        self, channel: Channel, ledger: Ledger, writer: Writer, references: References
    ) -> None:
        self._channel, self._ledger, self._writer = channel, ledger, writer
        self._references = references
        self._notes: list[tuple[int, bytes]] = []
        self._confirmed = self._told = 0
        self._received = self._cached = self._from_base = 0

    def segment_ended(self) -> None:
        """Note that the pool has confirmed all data so far."""
        self._confirmed = self._ledger.floor

    async def run(self) -> wire.Done:
        """Write until the client has finished and the pool has confirmed the data.

        Raises:
            WireError: the client violates the protocol.
            DataError: the pool refuses, or the connection is lost.
        """
        while True:
            message = await self._channel.receive()
            match message:
                case wire.Offer():
                    await self._answer(message)
                case wire.Data():
                    await self._take(message)
                case wire.Zero():
                    self._ledger.skip(message)
                    for offset, part in _zeroes(message.offset, message.end):
                        await self._writer.write(offset, part)
                    self._ledger.handled()
                case wire.Finish():
                    if self._ledger.owes:
                        raise WireError("it finishes without sending what was wanted")
                    await self._writer.finish()
                    await self._note(0)
                    return wire.Done(
                        received=self._received,
                        cached=self._cached,
                        from_base=self._from_base,
                        written=self._writer.sent,
                    )
                case _:
                    raise WireError(f"{message.kind.name} does not belong to a disk being written")
            if self._confirmed > self._told:
                self._told = self._confirmed
                await self._channel.send(wire.Confirmed(self._told))

    async def _answer(self, offer: wire.Offer) -> None:
        units = self._ledger.units_of(offer)
        found = await self._find_on_base(units)
        wanted = set()
        for index, unit in enumerate(units):
            if unit.offset in found:
                continue
            if unit.hash == wire.ZEROES:
                await self._writer.write(unit.offset, _ZEROES[: unit.length])
            elif (kept := self._references.cache.get(unit.hash, unit.length)) is not None:
                await self._writer.write(unit.offset, memoryview(kept))
                self._cached += unit.length
                self._notes.append((unit.offset, unit.hash))
            elif self._ledger.want(unit):
                wanted.add(index)
        self._ledger.handled()
        await self._note(NOTES)
        await self._channel.send(wire.Want(offer.offset, len(units), frozenset(wanted)))

    async def _find_on_base(self, units: list[Unit]) -> set[int]:
        """Settle what the base holds; return the offsets of these units.

        A unit that is where it was needs nothing: the disk is a clone.
        """
        refs = self._references
        if not refs.base.may_help:
            return set()
        known = [(unit.offset, unit.hash) for unit in units if unit.hash != wire.ZEROES]
        places = await refs.index.places(refs.stream, refs.disk, known)
        asked = [(unit, places[unit.offset]) for unit in units if unit.offset in places]
        found = set()
        async with aclosing(refs.base.read(asked)) as read:
            async for unit, place, data in read:
                if place != unit.offset:
                    await self._writer.write(unit.offset, data)
                    self._notes.append((unit.offset, unit.hash))
                self._from_base += unit.length
                found.add(unit.offset)
        return found

    async def _take(self, data: wire.Data) -> None:
        block = unpack_block(data)
        paid = self._ledger.take(data)
        for unit in paid:
            start = unit.offset - data.offset
            if hash_of(block[start : start + unit.length]) != unit.hash:
                raise WireError(f"the unit at {unit.offset} is not what was offered")
        await self._writer.write(data.offset, block)
        self._received += data.length
        for unit in paid:
            start = unit.offset - data.offset
            part = block[start : start + unit.length]
            self._references.cache.put(unit.hash, part)
            self._notes.append((unit.offset, unit.hash))
            for copy in self._ledger.copies_of(unit):
                if copy.length != unit.length:
                    raise WireError(f"the unit at {copy.offset} is not what was offered")
                await self._writer.write(copy.offset, part)
                self._cached += copy.length
                self._notes.append((copy.offset, copy.hash))
        self._ledger.handled(len(paid))
        await self._note(NOTES)

    async def _note(self, least: int) -> None:
        """Put what has been written into the index, once there is enough of it."""
        if len(self._notes) > least:
            notes, self._notes = self._notes, []
            await self._references.index.note(self._references.stream, self._references.disk, notes)


def _zeroes(offset: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Cut a range of zeroes into pieces, at multiples of their size."""
    while offset < end:
        size = min(end - offset, LARGEST_BLOCK - offset % UNIT)
        yield offset, _ZEROES[:size]
        offset += size
