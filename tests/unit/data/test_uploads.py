"""What becomes of a disk's content id, and of its task, when a request for writing it ends.

The task of a request that took the content id off its disk stays until the disk has it back: it is
what tells a sweep that nobody else did it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.patience import patience
from tests.unit.data.endpoints import ScriptedDoor
from tests.unit.data.scripted import Behaviour, scripted
from tests.unit.data.test_chunked import Import
from xorepd.data.http.chunked import open_chunked
from xorepd.data.http.imports import open_upload
from xorepd.errors import DataError, ObjectBusy, OutcomeUnknown, TransferFailed
from xorepd.ids import VdiUuid

VDI = VdiUuid("the-vdi")
BUSY = ObjectBusy("lab", "VDI", VDI, "it is attached")


def answering(status: str) -> Behaviour:
    """Return a host that answers every request so; it reads a body of one byte."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        await writer.drain()
        if status.startswith("200"):
            await reader.readexactly(1)

    return behave


async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Cut each connection after the head of its request was answered."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await reader.readexactly(1)
    writer.transport.abort()


taking = answering("200 OK")


@asynccontextmanager
async def endpoint(
    behave: Behaviour = taking, *outcomes: tuple[str, ...]
) -> AsyncIterator[ScriptedDoor]:
    async with scripted(behave) as port:
        yield ScriptedDoor(port, outcomes)


async def upload(made: ScriptedDoor, content: str = "content-1") -> None:
    """Send all of a body, and see it confirmed."""
    opening = open_upload(made, VDI, {"format": "raw"}, "disk", content=content)
    async with asyncio.timeout(patience()), opening as sending:
        await sending.send(b"x")
        await sending.finish()


async def upload_without_end(made: ScriptedDoor) -> None:
    """Send a body until the connection breaks."""
    opening = open_upload(made, VDI, {"format": "raw"}, "disk", content="content-1")
    async with asyncio.timeout(patience()), opening as sending:
        while True:
            await sending.send(b"x" * 65536)


async def test_disk_has_its_content_id_back_before_its_task_goes() -> None:
    async with endpoint() as made:
        await upload(made)

    assert made.kept == [(VDI, "content-1")]
    assert made.keeper.is_settled
    assert made.discarded == made.begun


async def test_content_of_a_disk_is_left_to_its_pool_where_no_mark_names_any() -> None:
    async with endpoint() as made:
        await upload(made, content="")

    assert (made.kept, made.keeper.is_settled) == ([], False)
    assert made.discarded == made.begun


async def test_task_stays_where_the_stream_was_cut_before_the_disk_had_its_content_id() -> None:
    async with endpoint(cutting) as made:
        made.keeper.error = BUSY
        with pytest.raises(DataError):
            await upload_without_end(made)

    assert len(made.begun) == 1
    assert made.discarded == []


async def test_task_goes_where_the_stream_was_cut_and_the_disk_had_its_content_id() -> None:
    async with endpoint(cutting) as made:
        made.keeper.is_settled = True
        with pytest.raises(DataError):
            await upload_without_end(made)

    assert made.discarded == made.begun


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "500 Internal Server Error"])
async def test_task_goes_where_the_request_was_refused_because_no_disk_was_attached(
    status: str,
) -> None:
    async with endpoint(answering(status)) as made:
        with pytest.raises(TransferFailed):
            await upload(made)

    assert made.kept == [(VDI, "content-1")]
    assert made.discarded == made.begun


async def test_task_stays_where_the_pool_says_that_the_transfer_failed() -> None:
    async with endpoint(taking, ("VDI_IO_ERROR", "no space")) as made:
        made.keeper.error = BUSY
        with pytest.raises(TransferFailed):
            await upload(made)

    assert not made.keeper.is_settled
    assert made.discarded == []


async def test_disk_that_something_else_has_by_now_is_of_unknown_content() -> None:
    async with endpoint() as made:
        made.keeper.error = BUSY
        with pytest.raises(OutcomeUnknown, match="it is attached"):
            await upload(made)

    assert made.discarded == []


@pytest.mark.parametrize("is_settled", [False, True])
async def test_task_of_a_request_that_is_cancelled_stays_until_its_disk_has_its_content_id(
    *, is_settled: bool
) -> None:
    async with endpoint() as made:
        made.keeper.is_settled, made.keeper.error = is_settled, BUSY
        opened = asyncio.Event()

        async def send() -> None:
            async with open_upload(made, VDI, {}, "disk", content="content-1"):
                opened.set()
                await asyncio.Event().wait()

        task = asyncio.get_running_loop().create_task(send(), name="send")
        async with asyncio.timeout(patience()):
            await opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert made.discarded == (made.begun if is_settled else [])


async def test_each_segment_of_a_disk_keeps_its_content_id() -> None:
    async with (
        endpoint(Import()) as made,
        open_chunked(made, VDI, fresh=True, what="disk", content="content-1") as writer,
    ):
        await writer.write(0, memoryview(b"a" * 512))
        await writer.finish()
        await writer.write(512, memoryview(b"b" * 512))
        await writer.finish()

    assert made.kept == [(VDI, "content-1")] * len(made.begun)
    assert len(made.begun) == 2
    assert made.discarded == made.begun


async def test_task_stays_where_no_host_answers() -> None:
    async with endpoint() as made:
        made.keeper.error = BUSY
    with pytest.raises(DataError):
        await upload(made)

    assert made.discarded == []
