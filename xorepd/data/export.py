"""Reader: XAPI's export handler, `GET /export_raw_vdi?format=vhd[&base=]`.

Gives a disk, or what changed since a base, in whole blocks of 2 MiB, on any VHD-backed SR and with
nothing installed on the source. Three things together make a success, none of them alone: the
stream is complete by its own structure, it ends there, and its task succeeded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from xorepd.data.blocks import BlockMap
from xorepd.data.door import (
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
from xorepd.data.reader import Piece
from xorepd.data.vhd.layout import VhdError
from xorepd.data.vhd.parser import VhdStreamParser
from xorepd.errors import DataError, ProtocolViolation, StreamCut, XorepdError
from xorepd.ids import Ref, VdiUuid

_STREAMED_ERROR = b"HTTP/"


class ExportReader:
    """A disk while it is exported; see `open_export`."""

    def __init__(
        self, door: Door, task_ref: Ref, response: aiohttp.ClientResponse, what: str, *, delta: bool
    ) -> None:
        self._door, self._task_ref, self._response, self._what = door, task_ref, response, what
        self._parser = VhdStreamParser(differencing=delta)
        self._first = b""

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
            data = await self._receive()
            if not data:
                raise await self._cut()
            if self._parser.received == 0 and data.startswith(_STREAMED_ERROR):
                raise http_failure(self._what, 500, data)
            # The head carries no data of the disk; what follows it in the same piece does, so the
            # rest of the piece waits for `pieces`.
            self._first = self._feed_head(data)

    def _feed_head(self, data: bytes) -> bytes:
        for end in range(512, len(data) + 512, 512):  # the head ends at a sector's end
            taken = data[end - 512 : end]
            try:
                for _ in self._parser.feed(memoryview(taken)):
                    raise AssertionError("disk data before the end of the head")
            except VhdError as error:
                raise ProtocolViolation(self._what, str(error)) from None
            if self._parser.head_complete:
                return data[end:]
        return b""

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        data = self._first or await self._receive()
        self._first = b""
        try:
            while data:
                for piece in self._parser.feed(memoryview(data)):
                    yield piece
                data = await self._receive()
            if not self._parser.is_complete:
                raise await self._cut()
        except VhdError as error:
            violation = ProtocolViolation(self._what, str(error))
            raise await explained(
                self._door, self._task_ref, self._what, violation, timeout=SUSPECT_S
            ) from None
        await verdict(self._door, self._task_ref, self._what, timeout=OUTCOME_S)

    async def _receive(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise await self._explained(lost(self._what, error)) from error

    async def _cut(self) -> XorepdError:
        cut = StreamCut(self._what, self._parser.received, self._parser.length)
        return await self._explained(cut)

    async def _explained(self, error: DataError) -> XorepdError:
        self._response.close()
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
