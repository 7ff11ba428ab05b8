"""Read units of a restore point's disk over NBD while its clone is written, and verify them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack

import structlog

from xorepd.data.nbd.protocol import STALL_S, NbdConnection
from xorepd.data.nbd.reader import NbdConnectionLimit
from xorepd.data.zeroes import UNIT
from xorepd.errors import DataError, XapiError
from xorepd.extents import Extent
from xorepd.ids import Ref
from xorepd.relay.protocol.blocks import hash_of
from xorepd.relay.protocol.ledger import Unit
from xorepd.replication.transfer.readers import find_nbd
from xorepd.xapi.pool import Pool

log = structlog.get_logger(__name__)

OPEN_AT_ONCE = 6
"""Most open bases of one relay: of our eight connections to a host, some are for reading back. A
disk without a free one requests the data from its client meanwhile."""
AT_ONCE = 32
"""Reads at once: 2 MiB."""


class Base:
    """The disk that a staging disk was cloned from. An async context manager.

    It is opened at the first lookup. If it fails, it is not used again for this disk: the client
    can send all data.

    Args:
        disk: None if there is no base that may be read.
        slots: Shared by all bases, `OPEN_AT_ONCE`.
    """

    def __init__(
        self,
        pool: Pool,
        disk: Ref | None,
        budget: NbdConnectionLimit,
        slots: asyncio.Semaphore,
        what: str,
    ) -> None:
        self._pool, self._disk, self._budget, self._what = pool, disk, budget, what
        self._slots = slots
        self._stack = AsyncExitStack()
        self._connection: NbdConnection | None = None

    async def __aenter__(self) -> Base:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def may_help(self) -> bool:
        """Whether a lookup may succeed."""
        return self._disk is not None

    async def read(
        self, wanted: Sequence[tuple[Unit, int]]
    ) -> AsyncGenerator[tuple[Unit, int, memoryview], None]:
        """Yield the units that are found: (unit, its offset on the base, its bytes).

        Args:
            wanted: Units, each with the offset on the base where it may be.
        """
        buffer = memoryview(bytearray(UNIT))
        for group in _groups(wanted):
            try:
                connection = await self._connected()
                if connection is None:
                    return
                inside = [
                    (unit, place) for unit, place in group if place + unit.length <= connection.size
                ]
                await connection.ask(*(Extent(place, unit.length) for unit, place in inside))
                for unit, place in inside:
                    data = buffer[: unit.length]
                    await connection.take(data)
                    if hash_of(data) == unit.hash:
                        yield unit, place, data
            except (DataError, XapiError) as error:
                log.warning("base.lost", disk=self._what, reason=str(error))
                await self._give_up()
                return

    async def _give_up(self) -> None:
        self._disk = self._connection = None
        await self._stack.aclose()

    async def _connected(self) -> NbdConnection | None:
        if self._connection is None and self._disk is not None and not self._slots.locked():
            await self._stack.enter_async_context(self._slots)
            exports, reason = await find_nbd(self._pool, self._disk)
            if not exports:
                log.info("base.unavailable", what=self._what, reason=reason)
                await self._give_up()
                return None
            opened = self._budget.connections(exports, 1, f"{self._what}, base", stall=STALL_S)
            [self._connection] = await self._stack.enter_async_context(opened)
        return self._connection


def _groups(wanted: Sequence[tuple[Unit, int]]) -> list[Sequence[tuple[Unit, int]]]:
    return [wanted[start : start + AT_ONCE] for start in range(0, len(wanted), AT_ONCE)]
