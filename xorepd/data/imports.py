"""Requests that write a disk, `PUT /import_raw_vdi`, and the writer of VHD streams over one.

XAPI answers the header before it reads the body: only then, at the host that accepted, the body
begins. While it flows the server may close the connection because it has something to say; the
reply and the task are read then, and the task decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress

from xorepd.data.door import (
    OUTCOME_S,
    Door,
    explained,
    lost,
    respond,
    task_of,
    verdict,
)
from xorepd.data.http import Response
from xorepd.data.vhd.encoder import VhdStreamEncoder
from xorepd.data.vhd.layout import VhdError
from xorepd.errors import ProtocolViolation
from xorepd.extents import Extent
from xorepd.ids import Ref, VdiUuid

_HINT = (
    "XAPI gives this for every failure of its writer, such as a full SR: see the target host's log"
)


class Upload:
    """A request whose body is being sent; see `open_upload`."""

    def __init__(self, door: Door, task_ref: Ref, response: Response, what: str) -> None:
        self._door, self._task_ref, self._response, self._what = door, task_ref, response, what

    async def send(self, *parts: bytes | memoryview) -> None:
        """Send more of the body; the buffers are free when this returns.

        Raises:
            DataError: the pool refuses, stalls, or is gone.
        """
        try:
            await self._response.stream.write(*parts)
        except OSError as error:
            self._response.stream.abort()
            failure = lost(self._what, error)
            raise await explained(self._door, self._task_ref, self._what, failure) from error

    async def finish(self) -> None:
        """Return when the pool confirms that the body is on the disk.

        Raises:
            DataError: it is not.
        """
        with suppress(OSError):  # the server may close as it likes: the task tells the truth
            async with asyncio.timeout(OUTCOME_S):
                await self._response.text(4096)  # a late error page, or nothing
        await verdict(self._door, self._task_ref, self._what, timeout=OUTCOME_S, hint=_HINT)


@asynccontextmanager
async def open_upload(
    door: Door, vdi: VdiUuid, query: Mapping[str, str], what: str, *, length: int | None = None
) -> AsyncIterator[Upload]:
    """Open a request for writing a disk, accepted by a host that will read its body.

    Args:
        query: format and what belongs to it.
        length: bytes of the body, where the format needs it.
        what: the disk, for messages.

    Raises:
        DataError: the pool does not take it.
    """
    async with task_of(door, f"xorepd import {vdi}") as task_ref:
        asked = {**query, "vdi": vdi, "task_id": task_ref}
        headers = {} if length is None else {"Content-Length": str(length)}
        async with respond(
            door, "PUT", "/import_raw_vdi", asked, what, headers=headers
        ) as response:
            yield Upload(door, task_ref, response, what)


class ImportWriter:
    """A disk while it is imported as a VHD stream; see `open_import`."""

    def __init__(self, upload: Upload, encoder: VhdStreamEncoder, what: str) -> None:
        self._upload, self._encoder, self._what = upload, encoder, what
        self.sent = 0
        """Bytes of data sent so far."""

    async def begin(self) -> None:
        """Send what stands before the first block."""
        await self._send(self._encoder.head())

    async def write(self, offset: int, data: memoryview) -> None:
        await self._send(self._encoder.encode(offset, data))
        self.sent += len(data)

    async def finish(self) -> None:
        await self._send(self._encoder.tail())
        await self._upload.finish()

    async def _send(self, parts: Iterable[bytes | memoryview]) -> None:
        try:
            await self._upload.send(*parts)
        except VhdError as error:
            raise ProtocolViolation(self._what, str(error)) from None


@asynccontextmanager
async def open_import(
    door: Door, vdi: VdiUuid, virtual_size: int, extents: Iterable[Extent], *, what: str
) -> AsyncIterator[ImportWriter]:
    """Open a disk for writing these extents and no others, as a VHD stream of exact length.

    Nothing checks on the pool's side that nobody else uses the disk: the caller makes sure.

    Args:
        virtual_size: at most that of the disk.
        extents: sorted, disjoint, multiples of 512 bytes; iterated several times.
        what: the disk, for messages.

    Raises:
        DataError: the pool does not take it.
    """
    encoder = VhdStreamEncoder(virtual_size, extents)
    async with open_upload(door, vdi, {"format": "vhd"}, what, length=encoder.length) as upload:
        writer = ImportWriter(upload, encoder, what)
        await writer.begin()
        yield writer
