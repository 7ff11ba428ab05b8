"""One disk at the relay: what comes over its channel is written, and what is offered is looked up.

OFFER ─► zero?  sent before? ──► written at once ─┐
                     no ─► WANT ─► DATA ─────────►├─► chunked import ─► CONFIRMED
DATA, ZERO ──────────────────────────────────────►┘
FINISH ─► the import's task succeeded ─► DONE
"""

from __future__ import annotations

from collections.abc import Iterator

from xorepd.data.writer import Writer
from xorepd.data.zeroes import UNIT
from xorepd.relay.cache import BlockCache
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.blocks import hash_of, unpack_block
from xorepd.relay.protocol.channel import Channel
from xorepd.relay.protocol.frames import LARGEST_BLOCK, WireError
from xorepd.relay.protocol.ledger import Ledger

_ZEROES = memoryview(bytes(LARGEST_BLOCK))


class DiskWriter:
    """Writes one disk from its channel.

    Args:
        ledger: Updated here, and read at the end of each segment.
        cache: Units that the client has sent before, on this disk or another.
    """

    def __init__(self, channel: Channel, ledger: Ledger, writer: Writer, cache: BlockCache) -> None:
        self._channel, self._ledger, self._writer = channel, ledger, writer
        self._cache = cache
        self._confirmed = self._told = 0
        self._received = self._cached = 0

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
                    return wire.Done(
                        received=self._received,
                        cached=self._cached,
                        written=self._writer.sent,
                    )
                case _:
                    raise WireError(f"{message.kind.name} does not belong to a disk being written")
            if self._confirmed > self._told:
                self._told = self._confirmed
                await self._channel.send(wire.Confirmed(self._told))

    async def _answer(self, offer: wire.Offer) -> None:
        units = self._ledger.units_of(offer)
        wanted = set()
        for index, unit in enumerate(units):
            if unit.hash == wire.ZEROES:
                await self._writer.write(unit.offset, _ZEROES[: unit.length])
            elif (kept := self._cache.get(unit.hash, unit.length)) is not None:
                await self._writer.write(unit.offset, memoryview(kept))
                self._cached += unit.length
            elif self._ledger.want(unit):
                wanted.add(index)
        self._ledger.handled()
        await self._channel.send(wire.Want(offer.offset, len(units), frozenset(wanted)))

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
            self._cache.put(unit.hash, part)
            for copy in self._ledger.copies_of(unit):
                if copy.length != unit.length:
                    raise WireError(f"the unit at {copy.offset} is not what was offered")
                await self._writer.write(copy.offset, part)
                self._cached += copy.length
        self._ledger.handled(len(paid))


def _zeroes(offset: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Cut a range of zeroes into pieces, at multiples of their size."""
    while offset < end:
        size = min(end - offset, LARGEST_BLOCK - offset % UNIT)
        yield offset, _ZEROES[:size]
        offset += size
