"""Bodies of streams on their way through a fault: cut, changed, longer, slower."""

import asyncio

from xorepd_lab.disks.vhd_file import Buffer, FileRange
from xorepd_lab.faults.effects import EndedEarly as EndedEarly
from xorepd_lab.faults.faults import Fault
from xorepd_lab.wire.http import READ_SIZE, Connection, Disconnected
from xorepd_lab.wire.inflow import Inflow

PACE_STEP = 64 * 1024
BLANKS = b" " * PACE_STEP


class OutgoingBody:
    """What an export sends."""

    def __init__(self, connection: Connection, fault: Fault | None) -> None:
        self._connection = connection
        self._fault = fault
        self.sent = 0

    @property
    def takes_files(self) -> bool:
        """Whether ranges of files go out without their bytes being looked at."""
        return self._fault is None and self._connection.plain

    async def send_file(self, part: FileRange) -> None:
        """Send a range of a file; only where `takes_files`."""
        await self._connection.send_file(part)
        self.sent += len(part)

    async def send(self, data: bytes) -> None:
        fault = self._fault
        if fault is None:
            await self._connection.send(data)
            self.sent += len(data)
            return
        start = 0
        while start < len(data):
            await self._reach(fault)
            end = min(len(data), start + _pace(fault)) if fault.bytes_per_s else len(data)
            stop = fault.stop_after(self.sent)
            if stop is not None:
                end = min(end, start + stop - self.sent)
            piece = data[start:end]
            await self._connection.send(fault.spoil(self.sent, piece))
            self.sent += len(piece)
            start = end
            if fault.bytes_per_s and not fault.armed:
                await asyncio.sleep(len(piece) / fault.bytes_per_s)

    async def finish(self) -> None:
        if self._fault is None:
            return
        if self._fault.append:
            await self._connection.send(bytes(self._fault.append))
        while self._fault.endless:
            await self.send(BLANKS)
            await asyncio.sleep(0)

    async def _reach(self, fault: Fault) -> None:
        """Let the fault act here, and wait in it as a server does whose socket takes nothing more:
        until the client goes away.

        An import has no such end: what its client sent before it went is still there to be read.
        """
        if fault.stop_after(self.sent - 1) != self.sent:
            return
        loop = asyncio.get_running_loop()
        acting = loop.create_task(fault.reach(self.sent, self._connection))
        gone = loop.create_task(self._connection.gone())
        try:
            await asyncio.wait([acting, gone], return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                raise Disconnected
            await acting
        finally:
            for task in (acting, gone):
                task.cancel()
            await asyncio.gather(acting, gone, return_exceptions=True)


def _pace(fault: Fault) -> int:
    """Return how many bytes pass at once: what a rate allows for a second, and not too many."""
    return min(PACE_STEP, max(1, int(fault.bytes_per_s or 0)))


async def send_spoilt(connection: Connection, response: bytes, fault: Fault) -> bool:
    """Send the answer to a call as its fault wants it; say whether the connection may go on."""
    if fault.drop_response:
        connection.cut()
        raise Disconnected
    head, blank, content = fault.answer(response).partition(b"\r\n\r\n")
    await connection.send(fault.head(head) + blank)
    body = OutgoingBody(connection, fault)
    try:
        await body.send(content)
        await body.finish()
    except EndedEarly:
        return False
    return not (fault.append or fault.length_off or fault.http_status)


class IncomingBody:
    """What an import reads: up to a length, or to the end of the connection."""

    def __init__(self, connection: Connection, length: int | None, fault: Fault | None) -> None:
        self._connection = connection
        self._left = length
        self._fault = fault
        self._inflow: Inflow | None = None
        self.received = 0

    async def take(self, at_least: int) -> Buffer:
        """Return the next bytes, b"" at the end, without a copy where nothing is to happen to them.

        Args:
            at_least: So many bytes are worth waiting for, if the body has them.

        Returns:
            Bytes that stand there until the next call.
        """
        if self._fault is not None:
            return await self.read()
        if self._left == 0:
            return b""
        if self._left is not None:
            at_least = min(at_least, self._left)
        try:
            if self._inflow is None:
                self._inflow = await self._connection.inflow()
            piece = (await self._inflow.read(at_least))[: self._left]
        except OSError as error:
            raise Disconnected from error
        self.received += len(piece)
        if self._left is not None:
            self._left -= len(piece)
        return piece

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
        if fault is not None and fault.bytes_per_s and not fault.armed:
            await asyncio.sleep(len(piece) / fault.bytes_per_s)
        return piece

    async def _act(self, fault: Fault, limit: int) -> int:
        await fault.reach(self.received, self._connection)
        if fault.bytes_per_s:
            limit = min(limit, _pace(fault))
        stop = fault.stop_after(self.received)
        return limit if stop is None else min(limit, stop - self.received)
