"""Readers: XAPI's export handler, `GET /export_raw_vdi`, as a VHD stream or raw.

As a VHD (`format=vhd[&base=]`) it gives a disk, or what changed since a base, in whole blocks of
2 MiB, on any VHD-backed SR. Raw, it gives every byte of any disk. Three things together make a
success, none of them alone: the stream is complete, it ends there, and its task succeeded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from xorepd.data.blocks import BlockMap
from xorepd.data.http.endpoint import (
    ERROR_PAGE_LIMIT,
    OUTCOME_S,
    PAGE_S,
    SUSPECT_S,
    Endpoint,
    explained,
    http_failure,
    lost,
    respond,
    task_of,
    verdict,
)
from xorepd.data.http.exchange import Response
from xorepd.data.reader import Piece
from xorepd.data.vhd.layout import SECTOR, VhdError
from xorepd.data.vhd.parser import VhdStreamParser
from xorepd.errors import (
    DataError,
    ProtocolViolation,
    StreamCut,
    TransferFailed,
    XorepdError,
)
from xorepd.extents import Extent
from xorepd.ids import Ref, VdiUuid
from xorepd.stream import Ended
from xorepd.units import MiB

PIECE = 1 * MiB
"""Bytes taken from the stream at a time: beyond it nothing gets cheaper (`make bench-relay`)."""

_STREAMED_ERROR = b"HTTP/"


class _Export:
    """A response that is read from front to back, and the task that explains it."""

    def __init__(self, endpoint: Endpoint, task_ref: Ref, response: Response, what: str) -> None:
        self._endpoint, self._task_ref, self._response, self._what = (
            endpoint,
            task_ref,
            response,
            what,
        )
        self._buffer = memoryview(bytearray(PIECE + SECTOR))  # a bitmap before the data

    async def _receive(self, size: int) -> memoryview:
        """Return the next bytes: as many as asked for, fewer only at the end of the stream."""
        try:
            await self._response.stream.read_into(self._buffer[:size])
        except Ended as end:
            return self._buffer[: end.received]
        except OSError as error:
            raise await self._explained(lost(self._what, error)) from error
        return self._buffer[:size]

    async def _refusal(self, begun: memoryview) -> TransferFailed | None:
        """Return what a body that begins like this says, if it is a failure in place of a disk."""
        if bytes(begun[: len(_STREAMED_ERROR)]) != _STREAMED_ERROR:
            return None
        page = bytes(begun)
        with suppress(OSError):
            page += await self._response.text(ERROR_PAGE_LIMIT, PAGE_S)
        return http_failure(self._endpoint, self._what, 500, page)

    async def _explained(self, error: DataError) -> XorepdError:
        self._response.stream.abort()
        return await explained(self._endpoint, self._task_ref, self._what, error)


class ExportReader(_Export):
    """A disk while it is exported as a VHD stream; see `open_export`."""

    virtual_size: int
    extents: BlockMap

    def __init__(
        self, endpoint: Endpoint, task_ref: Ref, response: Response, what: str, *, delta: bool
    ) -> None:
        super().__init__(endpoint, task_ref, response, what)
        self._parser = VhdStreamParser(differencing=delta)

    async def read_head(self) -> None:
        """Read up to the first block: it tells the size of the disk, and what will come.

        Raises:
            DataError: this is no VHD stream, or none of the expected kind.
        """
        while not self._parser.head_complete:
            data = await self._receive(SECTOR)  # the head ends at a sector's end
            if self._parser.received == 0 and (refusal := await self._refusal(data)):
                raise refusal
            if len(data) < SECTOR:
                raise await self._cut(len(data))
            try:
                for _ in self._parser.feed(data):
                    raise AssertionError("disk data before the end of the head")
            except VhdError as error:
                raise ProtocolViolation(self._what, str(error)) from None
        self.virtual_size, self.extents = self._parser.virtual_size, self._parser.extents

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        try:
            while not self._parser.is_complete:
                wanted = self._parser.next_read(PIECE)
                data = await self._receive(wanted)
                for piece in self._parser.feed(data):
                    yield piece
                if len(data) < wanted:
                    raise await self._cut(0)
            if data := await self._receive(1):
                for _ in self._parser.feed(data):
                    raise AssertionError("disk data after the end of the stream")
        except VhdError as error:
            violation = ProtocolViolation(self._what, str(error))
            raise await explained(
                self._endpoint, self._task_ref, self._what, violation, timeout=SUSPECT_S
            ) from None
        await verdict(self._endpoint, self._task_ref, self._what, timeout=OUTCOME_S)

    async def _cut(self, beyond: int) -> XorepdError:
        cut = StreamCut(self._what, self._parser.received + beyond, self._parser.length)
        return await self._explained(cut)


class RawReader(_Export):
    """A disk while it is exported raw; see `open_raw`."""

    def __init__(
        self, endpoint: Endpoint, task_ref: Ref, response: Response, what: str, virtual_size: int
    ) -> None:
        super().__init__(endpoint, task_ref, response, what)
        self.virtual_size, self.extents = virtual_size, [Extent(0, virtual_size)]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        offset = 0
        while offset < self.virtual_size:
            wanted = min(PIECE, self.virtual_size - offset)
            data = await self._receive(wanted)
            if len(data) < wanted:  # only here can it be a failure: a disk may begin like one
                refusal = await self._refusal(data) if offset == 0 else None
                cut = StreamCut(self._what, offset + len(data), self.virtual_size)
                raise await self._explained(refusal or cut)
            yield offset, data
            offset += len(data)
        if await self._receive(1):
            raise await self._explained(
                ProtocolViolation(self._what, f"more than {self.virtual_size} bytes came")
            )
        await verdict(self._endpoint, self._task_ref, self._what, timeout=OUTCOME_S)


@asynccontextmanager
async def open_export(
    endpoint: Endpoint, vdi: VdiUuid, *, base: VdiUuid | None, what: str
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
    async with task_of(endpoint, f"xorepd export {vdi}") as task_ref:
        query["task_id"] = task_ref
        async with respond(endpoint, "GET", "/export_raw_vdi", query, what) as response:
            reader = ExportReader(endpoint, task_ref, response, what, delta=base is not None)
            await reader.read_head()
            yield reader


async def read_map(endpoint: Endpoint, vdi: VdiUuid, *, what: str) -> BlockMap:
    """Return which blocks of 2 MiB a disk has allocated: the head of its export, and no more.

    Raises:
        DataError: the pool does not tell.
    """
    async with open_export(endpoint, vdi, base=None, what=what) as reader:
        return reader.extents


@asynccontextmanager
async def open_raw(
    endpoint: Endpoint, vdi: VdiUuid, virtual_size: int, *, what: str
) -> AsyncIterator[RawReader]:
    """Open a whole disk for reading, every byte of it.

    Raises:
        DataError: the pool does not give it.
    """
    async with task_of(endpoint, f"xorepd export {vdi}") as task_ref:
        query = {"format": "raw", "vdi": vdi, "task_id": task_ref}
        async with respond(endpoint, "GET", "/export_raw_vdi", query, what) as response:
            yield RawReader(endpoint, task_ref, response, what, virtual_size)
