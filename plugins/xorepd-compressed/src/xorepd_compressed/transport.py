"""The transport: to a relay beside the target pool, over one connection, compressed.

The relay writes; it refuses every disk but the staging disk that the daemon has made and marked for
this run. What it may be trusted with, and what not, is in docs/relay.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from xorepd.plugin import DataError, Extent, KiB, Reader, Surroundings, Target, to_the_end
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.channel import Channel, Over
from xorepd.relay.protocol.mux import Connection
from xorepd_compressed.carriage import Carriage, out_of_place, receive
from xorepd_compressed.errors import NoAnswer
from xorepd_compressed.link import RelayLink
from xorepd_compressed.options import Options, read_options

ANSWERS = 256 * KiB
"""Bytes of answers on their way back, per disk."""
ANSWER_S = 360.0
"""How long the relay may take to say whether it takes a disk, since it has last said that others
are before it. It gives its pool up to 300 s itself, and then says so."""
GIVE_UP_S = 5.0
"""How long the relay may take to let go of a disk that is given up. Until then its import holds it,
and it cannot be destroyed."""


class Compressed:
    def __init__(self, link: RelayLink, options: Options) -> None:
        self._link, self._options = link, options
        self._sizes: dict[str, int] = {}
        """Of the disks that were carried: who reads them back has to name it."""

    async def carry(self, reader: Reader, target: Target) -> None:
        size, what = reader.virtual_size, self._what(target)
        async with self._link.connected() as connection:
            with self._link.house.room(self._options.window) as room:
                async with self._opened(connection, target, size) as (channel, accepted):
                    offers = wire.Feature.REFERENCES in accepted.features
                    carriage = Carriage(
                        channel,
                        target,
                        self._link,
                        room,
                        level=self._options.level,
                        offers=offers,
                        what=what,
                    )
                    await carriage.carry(reader)
        self._sizes[target.disk.vdi] = size
        target.confirmed(size)

    async def digest(self, target: Target, extents: Sequence[Extent]) -> str:
        size = self._sizes[target.disk.vdi]
        async with (
            self._link.connected() as connection,
            self._opened(connection, target, size, read_only=True) as (channel, _),
        ):
            for part in wire.DigestOf.parts_of(extents):
                with suppress(Over):  # it has given its verdict already: that is read below
                    await channel.send(part)
            match await receive(channel, self._what(target)):
                case wire.Digested(digest=digest):
                    return digest.hex()
                case strange:
                    raise out_of_place(self._what(target), strange)

    def _what(self, target: Target) -> str:
        return f"{target.disk.what}, relay {self._options.access.address}"

    @asynccontextmanager
    async def _opened(
        self, connection: Connection, target: Target, virtual_size: int, *, read_only: bool = False
    ) -> AsyncIterator[tuple[Channel, wire.Accept]]:
        """Open the disk at the relay; whatever happens, the relay has let go of it afterwards."""
        disk = target.disk
        channel = connection.open(
            wire.Open(
                virtual_size,
                ANSWERS,
                disk.pool,
                disk.vdi,
                disk.base,
                disk.stream,
                disk.run,
                disk.what,
                read_only,
            )
        )
        try:
            match await _answer(channel, self._what(target)):
                case wire.Accept() as accepted:
                    yield channel, accepted
                case strange:
                    raise out_of_place(self._what(target), strange)
        except BaseException:
            with suppress(TimeoutError):
                await to_the_end(_give_up(channel), GIVE_UP_S)
            raise
        finally:
            channel.close()


async def _answer(channel: Channel, what: str) -> wire.Message:
    """Return what the relay says to a disk.

    Raises:
        NoAnswer: nothing, and not that the disk has to wait for its turn either.
        DataError: it refuses; or the connection broke.
    """
    while True:
        heard = channel.windows
        try:
            async with asyncio.timeout(ANSWER_S):
                return await receive(channel, what)
        except TimeoutError:
            if channel.windows == heard:
                raise NoAnswer(what, ANSWER_S) from None


async def _give_up(channel: Channel) -> None:
    """Ask the relay to let go of a disk, and wait until it says that it has."""
    channel.cancel()
    with suppress(Over, DataError):
        while True:
            await channel.receive()


class CompressedFactory:
    name = "compressed"
    api = 3

    def open(self, options: Mapping[str, Any], surroundings: Surroundings) -> Compressed:
        read = read_options(options)
        link = surroundings.links.share(read.link, lambda: RelayLink(read.access))
        return Compressed(link, read)


transport = CompressedFactory()
