"""Reader: XAPI's export handler, `GET /export_raw_vdi?format=vhd[&base=]`.

Gives a disk, or what changed since a base, in whole blocks of 2 MiB, on any VHD-backed SR and with
nothing installed on the source. Three things together make a success, none of them alone: the
stream is complete by its own structure, it ends there, and its task succeeded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from xorepd.data.blocks import BlockMap
from xorepd.data.door import (
    ERROR_PAGE_LIMIT,
    OUTCOME_S,
    SUSPECT_S,
    Door,
    explained,
    http_failure,
    lost,
    respond,
    task_of,
    verdict,
)
from xorepd.data.http import Response
from xorepd.data.reader import Piece
from xorepd.data.vhd.layout import SECTOR, VhdError
from xorepd.data.vhd.parser import VhdStreamParser
from xorepd.errors import DataError, ProtocolViolation, StreamCut, XorepdError
from xorepd.ids import Ref, VdiUuid
from xorepd.stream import Ended
from xorepd.units import MiB

PIECE = 1 * MiB
"""Bytes taken from the stream at a time: beyond it nothing gets cheaper (`make bench-relay`)."""

_STREAMED_ERROR = b"HTTP/"


class ExportReader:
    """A disk while it is exported; see `open_export`."""

    def __init__(
        self, door: Door, task_ref: Ref, response: Response, what: str, *, delta: bool
    ) -> None:
        self._door, self._task_ref, self._response, self._what = door, task_ref, response, what
        self._parser = VhdStreamParser(differencing=delta)
        self._buffer = memoryview(bytearray(PIECE))

    @property
    def virtual_size(self) -> int:
        return self._parser.virtual_size

    @property
    def extents(self) -> BlockMap:
        return self._parser.extents

    async def read_head(self) -> None:
        """Read up to the first block: afterwards the extents are known.

        Raises:
            DataError: this is no VHD stream, or none of the expected kind.
        """
        while not self._parser.head_complete:
            data = await self._receive(SECTOR)  # the head ends at a sector's end
            if self._parser.received == 0 and bytes(data[:5]) == _STREAMED_ERROR:
                raise http_failure(self._what, 500, bytes(data) + await self._error_page())
            if len(data) < SECTOR:
                raise await self._cut(len(data))
            try:
                for _ in self._parser.feed(data):
                    raise AssertionError("disk data before the end of the head")
            except VhdError as error:
                raise ProtocolViolation(self._what, str(error)) from None

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        assert self._parser.length is not None
        try:
            while left := self._parser.length - self._parser.received:
                data = await self._receive(min(left, PIECE))
                for piece in self._parser.feed(data):
                    yield piece
                if len(data) < min(left, PIECE):
                    raise await self._cut(0)
            if data := await self._receive(1):
                for _ in self._parser.feed(data):
                    raise AssertionError("disk data after the end of the stream")
        except VhdError as error:
            violation = ProtocolViolation(self._what, str(error))
            raise await explained(
                self._door, self._task_ref, self._what, violation, timeout=SUSPECT_S
            ) from None
        await verdict(self._door, self._task_ref, self._what, timeout=OUTCOME_S)

    async def _receive(self, size: int) -> memoryview:
        """Return the next bytes: as many as asked for, fewer only at the end of the stream."""
        try:
            await self._response.stream.read_into(self._buffer[:size])
        except Ended as end:
            return self._buffer[: end.received]
        except OSError as error:
            raise await self._explained(lost(self._what, error)) from error
        return self._buffer[:size]

    async def _error_page(self) -> bytes:
        try:
            return await self._response.text(ERROR_PAGE_LIMIT)
        except OSError:
            return b""

    async def _cut(self, beyond: int) -> XorepdError:
        cut = StreamCut(self._what, self._parser.received + beyond, self._parser.length)
        return await self._explained(cut)

    async def _explained(self, error: DataError) -> XorepdError:
        self._response.stream.abort()
        return await explained(self._door, self._task_ref, self._what, error)


@asynccontextmanager
async def open_export(
    door: Door, vdi: VdiUuid, *, base: VdiUuid | None, what: str
) -> AsyncIterator[ExportReader]:
    """Open a disk for reading: whole, or what changed since `base`.

    Leaving the context before the last piece ends the export on the pool.

    Args:
        base: a disk of the same SR; the stream then holds every block in which the two differ, and
            perhaps some in which they do not.
        what: the disk, for messages.

    Raises:
        DataError: the pool does not give it.
    """
    query = {"format": "vhd", "vdi": vdi}
    if base is not None:
        query["base"] = base
    async with task_of(door, f"xorepd export {vdi}") as task_ref:
        query["task_id"] = task_ref
        async with respond(door, "GET", "/export_raw_vdi", query, what) as response:
            reader = ExportReader(door, task_ref, response, what, delta=base is not None)
            await reader.read_head()
            yield reader
