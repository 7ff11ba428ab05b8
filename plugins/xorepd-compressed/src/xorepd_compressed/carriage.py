"""One disk on its way to the relay.

    reader ─► spans ─► cut, hash ─┬─► compress ─► OFFER, DATA, ZERO, in the order of the disk
              collect             │               announce
                                  └─► WANT ─────► compress ─► DATA
                                      listen      pack        send

What is not offered is sent in its place among the offers; what the relay wants of an offer follows
when it has said so, and the offers run ahead meanwhile: a round trip costs nothing. All that is
between reading and sending is held in `Room`, and given back when it has left, or when the relay
does not want it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from xorepd.plugin import UNIT, DataError, Extent, ProtocolViolation, Reader, Target, split
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.blocks import hash_of, pack_block
from xorepd.relay.protocol.channel import Channel, Over
from xorepd.relay.protocol.frames import HEADER
from xorepd_compressed import threads
from xorepd_compressed.cutting import SPAN, Run, Spans, cut, wanted_parts
from xorepd_compressed.errors import RelayRefused
from xorepd_compressed.offering import Offering
from xorepd_compressed.room import Room

AHEAD = 2 * threads.COUNT
"""Blocks that are compressed and wait to be sent: the link finds one whenever it has room."""


class Shared(Protocol):
    """What a disk uses of its link (`link.RelayLink`)."""

    def passed(self, size: int) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Outgoing:
    """What is sent next, when it is ready."""

    frame: asyncio.Future[wire.Data] | wire.Zero | wire.Offer
    end: int
    """Where on the disk it ends."""
    raw: int
    """Bytes of disk that are not held any more then."""


@dataclass(frozen=True, slots=True, eq=False)
class _Offered:
    """A run that the relay may have, and which units of it it wants."""

    run: Run
    wanted: asyncio.Future[frozenset[int]]


class Carriage:
    """Carries one disk over a channel that the relay has accepted.

    Args:
        level: of zstd.
        offers: whether the relay can supply anything itself.
        what: the disk and the relay, for messages.
    """

    def __init__(
        self,
        channel: Channel,
        target: Target,
        link: Shared,
        room: Room,
        *,
        level: int,
        offers: bool,
        what: str,
    ) -> None:
        self._channel, self._target, self._link, self._room = channel, target, link, room
        self._level, self._what = level, what
        self._fresh = not target.disk.base
        self._offering = Offering(possible=offers)
        self._turn = asyncio.Lock()
        self._announced: asyncio.Queue[_Outgoing | None] = asyncio.Queue(AHEAD)
        self._offered: asyncio.Queue[_Offered | None] = asyncio.Queue()
        self._unanswered: deque[_Offered] = deque()
        self._packed: asyncio.Queue[_Outgoing | None] = asyncio.Queue(AHEAD)
        self._announced_to = self._confirmed_to = 0
        self._finishing = False

    async def carry(self, reader: Reader) -> None:
        """Return when the relay says that the pool has confirmed everything.

        Raises:
            DataError: it is not; or whatever the reader raises.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._deliver(reader))
                group.create_task(self._listen())
        except BaseExceptionGroup as failures:
            raise _first(failures) from None

    # -- what works at the same time -------------------------------------------------------------

    async def _deliver(self, reader: Reader) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collect(reader))
            group.create_task(self._send_all(self._announced))
            group.create_task(self._pack())
            group.create_task(self._send_all(self._packed))
        self._finishing = True
        await self._put(wire.Finish())

    async def _collect(self, reader: Reader) -> None:
        spans = Spans()
        async with aclosing(reader.pieces()) as pieces:
            async for offset, data in pieces:
                for part in split(Extent(offset, len(data)), SPAN):
                    await self._room.take(part.length)
                    start = part.offset - offset
                    for span in spans.add((part.offset, data[start : start + part.length])):
                        await self._announce(*span)
        for span in spans.rest():
            await self._announce(*span)
        await self._announced.put(None)
        self._offered.put_nowait(None)

    async def _announce(self, offset: int, data: memoryview) -> None:
        """Cut a span into runs, and ask for those that the relay may have."""
        hashing = hash_of if self._offering.next() else None
        runs = await threads.begin(partial(cut, offset, data, hashing))
        for run in runs:
            if run.data is None and self._fresh:
                self._room.give(run.length)
            elif run.data is None:
                zero = wire.Zero(run.offset, run.length)
                await self._announced.put(_Outgoing(zero, run.end, run.length))
            elif run.hashes:
                offered = _Offered(run, asyncio.get_running_loop().create_future())
                self._unanswered.append(offered)
                self._offered.put_nowait(offered)
                offer = wire.Offer(run.offset, run.hashes)
                await self._announced.put(_Outgoing(offer, run.end, 0))
            else:
                await self._announced.put(self._begin(run.offset, run.data))

    async def _pack(self) -> None:
        while (offered := await self._offered.get()) is not None:
            wanted, spared = await offered.wanted, offered.run.length
            for offset, part in wanted_parts(offered.run, wanted):
                spared -= len(part)
                await self._packed.put(self._begin(offset, part))
            self._room.give(spared)
        await self._packed.put(None)

    async def _send_all(self, queue: asyncio.Queue[_Outgoing | None]) -> None:
        while (outgoing := await queue.get()) is not None:
            frame = outgoing.frame
            message = await frame if isinstance(frame, asyncio.Future) else frame
            self._announced_to = max(self._announced_to, outgoing.end)
            await self._put(message)
            self._room.give(outgoing.raw)

    async def _listen(self) -> None:
        while True:
            match await receive(self._channel, self._what):
                case wire.Want() as want:
                    self._answer(want)
                case wire.Confirmed(offset=offset):
                    self._confirm(offset)
                case wire.Done() if self._finishing:
                    return
                case strange:
                    raise out_of_place(self._what, strange)

    # -- inside ----------------------------------------------------------------------------------

    def _begin(self, offset: int, data: memoryview) -> _Outgoing:
        """Let a thread compress a block."""

        def pack() -> wire.Data:
            return pack_block(offset, data, threads.compressor(self._level))

        return _Outgoing(threads.begin(pack), offset + len(data), len(data))

    async def _put(self, message: wire.Message) -> None:
        """Send a frame when the target admits it."""
        size = size_of(message)
        await self._target.pay(size)
        try:
            async with self._turn:
                await self._channel.send(message)
        except Over:
            # The relay has ended it. `_listen` has read why, or is about to, and ends this too.
            await asyncio.Event().wait()
        self._target.left(size)
        self._link.passed(size)

    def _answer(self, want: wire.Want) -> None:
        """Take the answer to the oldest offer: what is not wanted, the relay supplies itself."""
        if not self._unanswered:
            raise out_of_place(self._what, want)
        offered = self._unanswered.popleft()
        if (want.offset, want.count) != (offered.run.offset, len(offered.run.hashes)):
            raise ProtocolViolation(self._what, "it answered another offer than the oldest")
        self._offering.saw(want.count * UNIT, (want.count - len(want.wanted)) * UNIT)
        if not offered.wanted.done():  # it is cancelled, if this ends just now
            offered.wanted.set_result(want.wanted)

    def _confirm(self, offset: int) -> None:
        if not self._confirmed_to <= offset <= self._announced_to:
            raise ProtocolViolation(
                self._what, f"it confirmed {offset} bytes where {self._announced_to} were announced"
            )
        self._confirmed_to = offset
        self._target.confirmed(offset)


def size_of(message: wire.Message) -> int:
    """Return what a message takes on the wire, before TLS."""
    if isinstance(message, wire.Data):
        return HEADER.size + len(message.head()) + len(message.payload)
    return HEADER.size + len(message.pack())


async def receive(channel: Channel, what: str) -> wire.Message:
    """Return the next message on a channel, unless it says that the relay gives up.

    Raises:
        DataError: it refuses or failed, in its own words; or the connection broke.
    """
    try:
        message = await channel.receive()
    except Over:
        raise ProtocolViolation(what, "it ended without a verdict") from None
    if isinstance(message, wire.Refuse | wire.Failed):
        raise RelayRefused(what, message.code, message.sentence)
    return message


def out_of_place(what: str, message: wire.Message) -> DataError:
    """Return the error for an unexpected message."""
    return ProtocolViolation(what, f"it sent {message.kind.name} out of place")


def _first(failure: BaseException) -> BaseException:
    """Return what failed first: the rest of a group are those that were stopped for it."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
