"""Requests that write a disk, `PUT /import_raw_vdi`, and the writer of VHD streams over one.

XAPI answers the header before it reads the body, so the body goes only to a host that has accepted.
During the body the server may close the connection to report an error. Then the writer reads the
reply and the task, and the task decides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from xorepd.data.http.endpoint import (
    OUTCOME_S,
    Endpoint,
    Keeper,
    explained,
    lost,
    respond,
    verdict,
)
from xorepd.data.http.exchange import Response
from xorepd.data.vhd.encoder import VhdStreamEncoder
from xorepd.data.vhd.layout import VhdError
from xorepd.errors import (
    OutcomeUnknown,
    ProtocolViolation,
    TransferFailed,
    XapiError,
    XorepdError,
)
from xorepd.extents import Extent
from xorepd.ids import Ref, VdiUuid
from xorepd.tidying import to_the_end

LATE_S = 5.0
"""Longest wait for a host to release a disk after a broken transfer; a later run tries again."""

IMPORT_LABEL = "xorepd import "
"""Prefix of the name of the task of such a request; the UUID of the disk follows."""


class Upload:
    """A request whose body is being sent; see `open_upload`."""

    def __init__(
        self,
        endpoint: Endpoint,
        task_ref: Ref,
        response: Response,
        what: str,
        keeper: Keeper | None,
    ) -> None:
        self._endpoint, self._task_ref, self._response, self._what = (
            endpoint,
            task_ref,
            response,
            what,
        )
        self._keeper = keeper

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
            raise await explained(self._endpoint, self._task_ref, self._what, failure) from error

    async def finish(self) -> None:
        """Return when the pool confirms that the body is on the disk.

        Raises:
            DataError: it is not.
        """
        with suppress(OSError):  # the server may close at any time: the task decides
            await self._response.text(4096, OUTCOME_S)  # a late error page, or nothing
        await verdict(self._endpoint, self._task_ref, self._what, timeout=OUTCOME_S)
        if self._keeper is not None:
            try:
                await self._keeper.settle()
            except XapiError as error:
                raise OutcomeUnknown(self._what, str(error)) from error


@asynccontextmanager
async def open_upload(
    endpoint: Endpoint,
    vdi: VdiUuid,
    query: Mapping[str, str],
    what: str,
    *,
    length: int | None = None,
    content: str = "",
) -> AsyncIterator[Upload]:
    """Open a request for writing a disk, accepted by a host that will read its body.

    A request that ends before its disk has the content id again keeps its task: it proves to a
    sweep that our request removed the id.

    Args:
        content: content id that the disk is to have afterwards; empty leaves that to the pool.
        query: format and what belongs to it.
        length: bytes of the body, where the format needs it.
        what: the disk, for messages.

    Raises:
        DataError: the pool does not take it.
    """
    task_ref = await endpoint.begin(f"{IMPORT_LABEL}{vdi}")
    keeper: Keeper | None = None
    try:
        asked = {**query, "vdi": vdi, "task_id": task_ref}
        headers = {} if length is None else {"Content-Length": str(length)}
        async with AsyncExitStack() as stack:
            if content:
                keeping = endpoint.keeping(vdi, content, task_ref)
                keeper = await stack.enter_async_context(keeping)
            answer = respond(endpoint, "PUT", "/import_raw_vdi", asked, what, headers=headers)
            try:
                response = await stack.enter_async_context(answer)
            except TransferFailed:
                keeper = None  # refused by a status: the disk has never been attached
                raise
            yield Upload(endpoint, task_ref, response, what, keeper)
    finally:
        if keeper is not None and not keeper.is_settled:
            with suppress(XorepdError, TimeoutError):
                await to_the_end(_settle_late(endpoint, task_ref, keeper), LATE_S)
        if keeper is None or keeper.is_settled:
            await endpoint.discard(task_ref)


async def _settle_late(endpoint: Endpoint, task_ref: Ref, keeper: Keeper) -> None:
    """Restore the content id of a disk after a broken transfer, when the host has released it.

    The task ends when the disk is detached. A toolstack that dies loses the task and leaves the
    disk attached.
    """
    try:
        await endpoint.outcome(task_ref, LATE_S)
    except XapiError:
        await keeper.settle_attached()
    else:
        await keeper.settle()


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
    endpoint: Endpoint,
    vdi: VdiUuid,
    virtual_size: int,
    extents: Iterable[Extent],
    *,
    what: str,
    content: str = "",
) -> AsyncIterator[ImportWriter]:
    """Open a disk for writing these extents and no others, as a VHD stream of exact length.

    The pool does not check whether the disk has other users: the caller does.

    Args:
        virtual_size: at most that of the disk.
        extents: sorted, disjoint, multiples of 512 bytes; iterated several times.
        what: the disk, for messages.
        content: see `open_upload`.

    Raises:
        DataError: the pool does not take it.
    """
    encoder = VhdStreamEncoder(virtual_size, extents)
    async with open_upload(
        endpoint, vdi, {"format": "vhd"}, what, length=encoder.length, content=content
    ) as upload:
        writer = ImportWriter(upload, encoder, what)
        await writer.begin()
        yield writer
