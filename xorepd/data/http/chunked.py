"""Writer: `PUT /import_raw_vdi?format=raw&chunked`, extents of any size, in segments.

    {u64 offset, u32 length} data  {u64 offset, u32 length} data  …  12 zero bytes
    ╰──────────────────────────── a segment: one request, one task ─────────────╯

Nothing needs to be known in advance: no length, no map. Ranges that are not sent keep their
content, so zeroes are omitted on a new disk and sent on any other. After a while a segment ends.
Its task confirms that all of it is on the disk, and an interrupted transfer can continue from
there.

Source: xapi: ocaml/vhd-tool/src/chunked.ml, impl.ml, ocaml/libs/vhd/vhd_format_lwt/iO.ml.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from xorepd.data.http.endpoint import Endpoint
from xorepd.data.http.imports import Upload, open_upload
from xorepd.data.zeroes import without_zeroes
from xorepd.ids import VdiUuid
from xorepd.units import GiB, KiB

SEGMENT_BYTES = 8 * GiB
SEGMENT_S = 120.0
"""Longest segment, and so the longest life of its task."""

COSTS = 20
"""A segment lasts this many times as long as it took to end the last one and to begin it: an attach
and a flush of the disk, one or two seconds on a real host. So they cost a twentieth of the time,
and a transfer that is cut loses half a minute there, and less where they are cheap."""
SHORTEST_S = 1.0

BATCH = 256 * KiB
"""Chunks of up to half this size are sent together: copying one costs less than a call for it."""

_CHUNK = struct.Struct("<QI")
_END = _CHUNK.pack(0, 0)


class ChunkedWriter:
    """A disk while it is written; see `open_chunked`."""

    def __init__(
        self,
        endpoint: Endpoint,
        vdi: VdiUuid,
        what: str,
        *,
        fresh: bool,
        confirmed_to: Callable[[int], None],
        content: str,
    ) -> None:
        self._endpoint, self._vdi, self._what, self._fresh = endpoint, vdi, what, fresh
        self._content = content
        self._confirmed_to = confirmed_to
        self._taken_to = 0
        """End of what has been taken so far, where it comes in ascending order."""
        self._open = AsyncExitStack()
        self._upload: Upload | None = None
        self._batch = memoryview(bytearray(BATCH))
        self._filled = 0
        self._until = 0.0
        self._ending_s = 0.0
        """How long it took to end the last segment."""
        self._in_segment = 0
        self._is_whole = True
        """Whether the segment that is open can still be ended in order."""
        self.sent = 0
        """Bytes of data sent so far, without what was left out as zeroes."""
        self.confirmed = 0
        """How much of that the pool has confirmed."""

    async def write(self, offset: int, data: memoryview) -> None:
        parts = without_zeroes(offset, data) if self._fresh else [(offset, data)]
        for start, part in parts:
            if self._is_long():
                self._taken_to = start
                await self._end_segment()
            if self._upload is None:
                await self.begin_segment()
            await self._put(_CHUNK.pack(start, len(part)), part)
            self._in_segment += len(part)
            self.sent += len(part)
        self._taken_to = offset + len(data)

    async def finish(self) -> None:
        await self._end_segment()

    async def salvage(self) -> None:
        """End the segment in order, if it still can be: what it has is confirmed then.

        For a transfer that will not be finished, because its source failed or it was cancelled.

        Raises:
            DataError: the pool does not confirm it.
        """
        if self._is_whole and self._in_segment:
            await self._end_segment()

    async def close(self) -> None:
        """Give up the segment that is open, if any."""
        await self._open.aclose()
        self._batch = memoryview(b"")

    async def _put(self, head: bytes, data: memoryview) -> None:
        """Send a chunk, or keep a small one until there are more."""
        size = len(head) + len(data)
        if self._filled + size > BATCH:
            await self._flush()
        if size > BATCH // 2:
            await self._flush(head, data)
            return
        middle = self._filled + len(head)
        self._batch[self._filled : middle] = head
        self._filled += size
        self._batch[middle : self._filled] = data

    async def _flush(self, *more: bytes | memoryview) -> None:
        """Send what was kept, and what follows it."""
        assert self._upload is not None
        kept, self._filled = self._batch[: self._filled], 0
        self._is_whole = False  # until all of it is out: what is cut here ends in the middle
        await self._upload.send(*((kept,) if kept else ()), *more)
        self._is_whole = True

    def _is_long(self) -> bool:
        late = asyncio.get_running_loop().time() > self._until
        return self._in_segment > 0 and (late or self._in_segment >= SEGMENT_BYTES)

    async def begin_segment(self) -> None:
        """Open a request, and wait until a host has accepted it."""
        clock = asyncio.get_running_loop().time
        began = clock()
        query = {"format": "raw", "chunked": "true"}
        upload = open_upload(self._endpoint, self._vdi, query, self._what, content=self._content)
        self._upload = await self._open.enter_async_context(upload)
        cost_s = self._ending_s + clock() - began
        self._until = clock() + min(SEGMENT_S, max(SHORTEST_S, COSTS * cost_s))
        self._in_segment = self._filled = 0

    async def _end_segment(self) -> None:
        if self._upload is None:
            return
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._flush(_END)
        self._is_whole = False
        await self._upload.finish()
        self._upload, self._is_whole = None, True
        await self._open.aclose()
        self._open = AsyncExitStack()
        self._ending_s = clock() - began
        self.confirmed = self.sent
        self._confirmed_to(self._taken_to)


@asynccontextmanager
async def open_chunked(
    endpoint: Endpoint,
    vdi: VdiUuid,
    *,
    fresh: bool,
    what: str,
    confirmed_to: Callable[[int], None] = lambda offset: None,
    content: str = "",
) -> AsyncIterator[ChunkedWriter]:
    """Open a disk for writing any extents, multiples of 512 bytes, in any order.

    The pool does not check whether the disk has other users: the caller does.

    Args:
        fresh: Whether the disk is known to be all zeroes.
        what: The disk, for messages.
        confirmed_to: Called at the end of each segment with the offset up to which the disk is
            confirmed, if it is written in ascending order.
        content: Content id of the disk after each segment; see `open_upload`.

    Raises:
        DataError: the pool refuses the import.
    """
    writer = ChunkedWriter(
        endpoint, vdi, what, fresh=fresh, confirmed_to=confirmed_to, content=content
    )
    try:
        await writer.begin_segment()  # before any data is read: a refusal costs nothing
        yield writer
    finally:
        await writer.close()
