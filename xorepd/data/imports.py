"""Writer: XAPI's import handler, `PUT /import_raw_vdi?format=vhd`, with an exact Content-Length.

XAPI answers the header before it reads the body: only then, at the host that accepted, the body
begins. While it flows the server may close the connection because it has something to say; the
reply and the task are read then, and the task decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from xorepd.data.door import (
    OUTCOME_S,
    STALL_S,
    Door,
    explained,
    lost,
    respond,
    task_of,
    verdict,
)
from xorepd.data.vhd.encoder import VhdStreamEncoder
from xorepd.data.vhd.layout import VhdError
from xorepd.errors import DataError, ProtocolViolation, XorepdError
from xorepd.extents import Extent
from xorepd.ids import Ref, VdiUuid

_HINT = (
    "XAPI gives this for every failure of its writer, such as a full SR: see the target host's log"
)


class _LentBody(aiohttp.Payload):
    """A request body that sends the header and then lends the connection to whoever has data.

    aiohttp pulls bodies; a copy pushes. So the body's own coroutine only keeps the request open,
    while `writer` is used from outside.
    """

    def __init__(self) -> None:
        super().__init__(None, content_type="application/octet-stream")
        self.writer: AbstractStreamWriter | None = None
        self._complete = asyncio.Event()

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        writer.send_headers()
        self.writer = writer
        await self._complete.wait()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a body that is lent has no text")

    def complete(self) -> None:
        self._complete.set()


class ImportWriter:
    """A disk while it is imported; see `open_import`."""

    def __init__(
        self,
        door: Door,
        task_ref: Ref,
        response: aiohttp.ClientResponse,
        body: _LentBody,
        encoder: VhdStreamEncoder,
        what: str,
    ) -> None:
        self._door, self._task_ref, self._response, self._what = door, task_ref, response, what
        self._body, self._encoder = body, encoder

    async def begin(self) -> None:
        """Send what stands before the first block."""
        await self._send(self._encoder.head())

    async def write(self, offset: int, data: memoryview) -> None:
        await self._send(self._encoder.encode(offset, data))

    async def finish(self) -> None:
        await self._send(self._encoder.tail())
        self._body.complete()
        try:
            async with asyncio.timeout(OUTCOME_S):
                await self._response.content.read(4096)  # a late error page, or nothing
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # the server may close as it likes: the task tells the truth
        await verdict(self._door, self._task_ref, self._what, timeout=OUTCOME_S, hint=_HINT)

    async def _send(self, parts: Iterable[bytes | memoryview]) -> None:
        writer: Any = self._body.writer
        try:
            for part in parts:
                async with asyncio.timeout(STALL_S):
                    await writer.write(part)
        except VhdError as error:
            raise ProtocolViolation(self._what, str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise await self._explained(lost(self._what, error)) from error

    async def _explained(self, error: DataError) -> XorepdError:
        self._response.close()
        return await explained(self._door, self._task_ref, self._what, error)


@asynccontextmanager
async def open_import(
    door: Door, vdi: VdiUuid, virtual_size: int, extents: Iterable[Extent], *, what: str
) -> AsyncIterator[ImportWriter]:
    """Open a disk for writing these extents and no others.

    Nothing checks on the pool's side that nobody else uses the disk: the caller makes sure.

    Args:
        virtual_size: at most that of the disk.
        extents: sorted, disjoint, multiples of 512 bytes; iterated several times.
        what: the disk, for messages.

    Raises:
        DataError: the pool does not take it.
    """
    encoder = VhdStreamEncoder(virtual_size, extents)
    body = _LentBody()
    async with task_of(door, f"xorepd import {vdi}") as task_ref:
        query = {"format": "vhd", "vdi": vdi, "task_id": task_ref}
        async with respond(
            door, "PUT", "/import_raw_vdi", query, what, body=body, length=encoder.length
        ) as response:
            writer = ImportWriter(door, task_ref, response, body, encoder, what)
            await writer.begin()
            yield writer
