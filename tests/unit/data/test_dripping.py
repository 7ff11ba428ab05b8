"""A pool that answers a request for a disk a byte at a time: it is given up at some point."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from tests.hostile import Talk, serving
from tests.unit.data.endpoints import ScriptedDoor
from xorepd.data.http import endpoint
from xorepd.data.http.export import open_export, open_raw
from xorepd.data.http.imports import open_upload
from xorepd.errors import DataError, ProtocolViolation
from xorepd.ids import VdiUuid

VDI = VdiUuid("the-vdi")
OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "STALL_S", 2.0)
    monkeypatch.setattr(endpoint, "HEAD_S", 2.0)
    monkeypatch.setattr(endpoint, "BROKEN_S", 0.05)
    monkeypatch.setattr(endpoint, "PAGE_S", 0.5)


def dripping(begin: bytes, *, pause_s: float = 0.05) -> Talk:
    """Return a server that begins an answer, and then says x now and then."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begin)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(pause_s)

    return talk


async def test_a_head_that_drips_is_given_up() -> None:
    async with serving(dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ")) as port:
        with pytest.raises(ProtocolViolation, match="it took too long"):
            async with open_export(ScriptedDoor(port), VDI, base=None, what="disk"):
                pass


async def test_an_upload_whose_head_drips_is_given_up() -> None:
    async with serving(dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ")) as port:
        with pytest.raises(ProtocolViolation, match="it took too long"):
            async with open_upload(ScriptedDoor(port), VDI, {"format": "raw"}, "disk"):
                pass


async def test_of_a_page_that_drips_what_has_come_is_told() -> None:
    page = b"HTTP/1.1 500 Internal Error\r\n\r\n<html>VDI_IN_USE: [ the-vdi; attach ]</html>"
    async with serving(dripping(page)) as port:
        with pytest.raises(DataError, match=r"the-vdi is in use \(attach\)"):
            async with open_export(ScriptedDoor(port), VDI, base=None, what="disk"):
                pass


async def read(port: int) -> None:
    async with (
        open_raw(ScriptedDoor(port), VDI, 1 << 20, what="disk") as reader,
        aclosing(reader.pieces()) as pieces,
    ):
        async for _ in pieces:
            raise AssertionError("a piece of 1 MiB came")


async def test_a_disk_that_drips_is_given_up() -> None:
    async with serving(dripping(OK, pause_s=0.8)) as port:
        with pytest.raises(DataError, match="no byte moved"):
            await read(port)
