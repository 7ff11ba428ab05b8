"""Bodies of streams on their way through a fault: cut, changed, longer, slower."""

import asyncio
from itertools import pairwise

from xorepd.lab.faults import Fault
from xorepd.lab.http import READ_SIZE, Connection, Disconnected

PACE_STEP = 64 * 1024


class EndedEarly(Exception):
    """The fault ends the body here, in good order."""


class OutgoingBody:
    """What an export sends."""

    def __init__(self, connection: Connection, fault: Fault | None) -> None:
        self._connection = connection
        self._fault = fault
        self.sent = 0

    async def send(self, data: bytes) -> None:
        fault = self._fault
        if fault is None:
            await self._connection.send(data)
            self.sent += len(data)
            return
        for piece in self._pieces(data, fault):
            await self._pass(piece, fault)

    async def finish(self) -> None:
        if self._fault is not None and self._fault.append:
            await self._connection.send(bytes(self._fault.append))

    def _pieces(self, data: bytes, fault: Fault) -> list[bytes]:
        """Split where the fault wants to act, and into small steps when it sets a rate."""
        edges = {0, len(data)}
        for offset in (fault.cut_at, fault.end_at, fault.stall_at):
            if offset is not None and self.sent < offset < self.sent + len(data):
                edges.add(offset - self.sent)
        if fault.bytes_per_s:
            edges.update(range(0, len(data), PACE_STEP))
        marks = sorted(edges)
        return [data[a:b] for a, b in pairwise(marks)]

    async def _pass(self, piece: bytes, fault: Fault) -> None:
        if fault.cut_at == self.sent:
            self._connection.cut()
            raise Disconnected
        if fault.end_at == self.sent:
            raise EndedEarly
        if fault.stall and fault.stall_at == self.sent:
            await self._stall(fault)
        if fault.flip_at is not None and self.sent <= fault.flip_at < self.sent + len(piece):
            changed = bytearray(piece)
            changed[fault.flip_at - self.sent] ^= 0xFF
            piece = bytes(changed)
        await self._connection.send(piece)
        self.sent += len(piece)
        if fault.bytes_per_s:
            await asyncio.sleep(len(piece) / fault.bytes_per_s)

    async def _stall(self, fault: Fault) -> None:
        """Wait as a server does whose socket takes nothing more: until the client goes away.

        An import has no such end: what its client sent before it went is still there to be read.
        """
        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(fault.wait()), loop.create_task(self._connection.gone())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not waiting[0].done():
                raise Disconnected
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


class IncomingBody:
    """What an import reads: up to a length, or to the end of the connection."""

    def __init__(self, connection: Connection, length: int | None, fault: Fault | None) -> None:
        self._connection = connection
        self._left = length
        self._fault = fault
        self.received = 0

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        limit = READ_SIZE
        if self._left is not None:
            limit = min(limit, self._left)
        fault = self._fault
        if fault is not None:
            limit = await self._act(fault, limit)
        if limit == 0:
            return b""
        piece = await self._connection.read(limit)
        self.received += len(piece)
        if self._left is not None:
            self._left -= len(piece)
        if fault is not None and fault.bytes_per_s:
            await asyncio.sleep(len(piece) / fault.bytes_per_s)
        return piece

    async def _act(self, fault: Fault, limit: int) -> int:
        if fault.cut_at == self.received:
            self._connection.cut()
            raise Disconnected
        if fault.stall and fault.stall_at == self.received:
            await fault.wait()
        if fault.bytes_per_s:
            limit = min(limit, PACE_STEP)
        for offset in (fault.cut_at, fault.stall_at if fault.stall else None):
            if offset is not None and offset > self.received:
                limit = min(limit, offset - self.received)
        return limit
