"""A disk that is exported raw: nothing in its bytes says where it ends, so everything else must."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from tests.unit.data.endpoints import ScriptedDoor
from tests.unit.data.scripted import scripted
from xorepd.data.http import endpoint, export
from xorepd.data.http.export import PIECE, open_raw
from xorepd.errors import (
    DataError,
    NotServed,
    OutcomeUnknown,
    ProtocolViolation,
    StreamCut,
    TransferFailed,
)
from xorepd.ids import VdiUuid
from xorepd.units import MiB

DISK = random.Random(1).randbytes(2 * MiB + 512)
OK = b"HTTP/1.1 200 OK\r\n\r\n"
PAGE = b"HTTP/1.1 500 Internal Error\r\n\r\n<html>SR_BACKEND_FAILURE_46: [ ; not there;  ]</html>"
GONE = ("VDI_IO_ERROR", "device")


async def read(
    answer: bytes,
    outcome: Sequence[str] | None = (),
    *,
    size: int = len(DISK),
    hang: bool = False,
) -> bytes:
    """Return what is read of a disk of that size from an answer."""
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        if hang:
            await reader.read()

    got = bytearray()
    async with scripted(serve) as port:
        made = ScriptedDoor(port, [outcome])
        try:
            async with (
                open_raw(made, VdiUuid("the-vdi"), size, what="disk") as reader,
                aclosing(reader.pieces()) as pieces,
            ):
                async for offset, data in pieces:
                    assert offset == len(got)
                    assert len(data) <= PIECE
                    got += data
        finally:
            assert made.discarded == made.begun
    assert b"/export_raw_vdi?format=raw&vdi=the-vdi&task_id=task0 " in heads[0]
    return bytes(got)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BROKEN_S", 0.05)
    monkeypatch.setattr(export, "OUTCOME_S", 0.05)


async def test_a_disk_arrives_byte_for_byte() -> None:
    assert await read(OK + DISK) == DISK


async def test_an_empty_disk_arrives() -> None:
    assert await read(OK, size=0) == b""


async def test_a_disk_may_begin_like_an_error() -> None:
    disk = PAGE + bytes(1024 - len(PAGE))

    assert await read(OK + disk, size=1024) == disk


@pytest.mark.parametrize("length", [0, 1, 511, PIECE, PIECE + 1, len(DISK) - 1])
async def test_a_short_stream_is_cut(length: int) -> None:
    with pytest.raises(StreamCut, match=f"disk: .* after {length} of {len(DISK)} bytes"):
        await read(OK + DISK[:length])


@pytest.mark.parametrize("length", [0, 700, PIECE + 1, len(DISK)])
async def test_the_task_explains_what_is_missing(length: int) -> None:
    with pytest.raises(TransferFailed, match="VDI_IO_ERROR"):
        await read(OK + DISK[:length], GONE)


@pytest.mark.parametrize("more", [1, 512, 2 * MiB])
async def test_a_long_stream_is_refused(more: int) -> None:
    with pytest.raises(ProtocolViolation, match=f"more than {len(DISK)} bytes"):
        await read(OK + DISK + bytes(more))


@pytest.mark.parametrize("outcome", [(), None], ids=["success", "pending"])
async def test_an_error_in_place_of_the_data_is_understood(outcome: Sequence[str] | None) -> None:
    with pytest.raises(TransferFailed, match=r"\(not there\) \(SR_BACKEND_FAILURE_46\)"):
        await read(OK + PAGE, outcome)


@pytest.mark.parametrize("length", [512, PIECE, len(DISK) - 100, len(DISK)])
async def test_an_error_behind_some_data_is_no_data(length: int) -> None:
    with pytest.raises(DataError, match=r"ended after|more than"):
        await read(OK + DISK[:length] + PAGE)


async def test_a_task_that_failed_makes_whole_data_worthless() -> None:
    with pytest.raises(TransferFailed, match="VDI_IO_ERROR"):
        await read(OK + DISK, GONE)


async def test_a_task_that_never_ends_makes_whole_data_worthless() -> None:
    with pytest.raises(OutcomeUnknown):
        await read(OK + DISK, None)


@pytest.mark.parametrize("length", [0, 1000, len(DISK)])
async def test_a_stream_that_stands_still_is_given_up(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(endpoint, "STALL_S", 0.1)

    with pytest.raises(ProtocolViolation, match="no byte moved"):
        await read(OK + DISK[:length], None, hang=True)


async def test_a_pool_that_does_not_know_the_format_says_404() -> None:
    with pytest.raises(NotServed):
        await read(b"HTTP/1.1 404 Not Found\r\n\r\n")
