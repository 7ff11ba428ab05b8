"""Heads of answers, good and bad, from a server that says what it is told to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from yarl import URL

from tests.unit.data.scripted import scripted
from xorepd.data.http.exchange import LARGEST_RESPONSE_HEAD, HeadError, Response, exchange
from xorepd.stream import ByteStream, Ended, Stalled

HEARD: list[bytes] = []


@asynccontextmanager
async def answering(*parts: bytes, hang: bool = False) -> AsyncIterator[ByteStream]:
    """Provide a connection to a server that answers any head with these bytes."""
    HEARD.clear()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        HEARD.append(await reader.readuntil(b"\r\n\r\n"))
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)
        if hang:
            await reader.read()

    async with (
        scripted(serve) as port,
        await ByteStream.connect("127.0.0.1", port, stall=0.2) as stream,
    ):
        yield stream


async def asked(stream: ByteStream, path: str = "/disk?a=b%26c") -> Response:
    url = URL(f"http://127.0.0.1:8080{path}", encoded=True)
    return await exchange(stream, "GET", url, {"Content-Length": "5"})


async def test_a_request_has_one_head_that_ends_its_connection() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as stream:
        await asked(stream)

    assert HEARD == [
        b"GET /disk?a=b%26c HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n"
        b"Content-Length: 5\r\n\r\n"
    ]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_head_is_read_and_what_follows_stays(version: bytes) -> None:
    head = b"HTTP/%b 200 OK\r\nLocation: https://x/\r\ncontent-TYPE: a/b\r\n\r\nbody" % version
    async with answering(*(head[i : i + 7] for i in range(0, len(head), 7))) as stream:
        answer = await asked(stream)

        assert answer.status == 200
        assert answer.headers["LOCATION"] == "https://x/"
        assert answer.headers["Content-Type"] == "a/b"
        assert await answer.text(100, 5) == b"body"


async def test_a_text_is_read_up_to_its_limit() -> None:
    async with answering(b"HTTP/1.1 500 Internal\r\n\r\n" + b"x" * 5000) as stream:
        answer = await asked(stream)

        assert (answer.status, answer.headers.items()) == (500, [])
        assert await answer.text(4096, 5) == b"x" * 4096


@pytest.mark.parametrize(
    "status", [b"HTTP/1.1 204", b"HTTP/1.1 302 ", b"HTTP/1.0 401 Un\xe4uthorised"]
)
async def test_a_reason_is_not_needed(status: bytes) -> None:
    async with answering(status + b"\r\n\r\n") as stream:
        assert (await asked(stream)).status in (204, 302, 401)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "does not begin as HTTP does"),
        (b"\r\n\r\n", "does not begin as HTTP does"),
        (b"HTTP/2 200\r\n\r\n", "does not begin as HTTP does"),
        (b"HTTP/1.1\r\n\r\n", "does not begin as HTTP does"),
        (b"HTTP/1.1 OK\r\n\r\n", "does not begin as HTTP does"),
        (b"HTTP/1.1 20\r\n\r\n", "does not begin as HTTP does"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "does not begin as HTTP does"),
        (b"HTTP/1.1 \xb2\xb3\xb9 OK\r\n\r\n", "does not begin as HTTP does"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "100, which XAPI never"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "101, which XAPI never"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer encoding"),
        (b"HTTP/1.1 200 OK\r\ntransfer-ENCODING: gzip\r\n\r\n", "transfer encoding"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "cannot be read"),
        (bytes(LARGEST_RESPONSE_HEAD), "its head does not end"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 5000, "its head does not end"),
    ],
)
async def test_what_is_no_answer_is_refused_by_name(answer: bytes, message: str) -> None:
    async with answering(answer, hang=True) as stream:
        with pytest.raises(HeadError, match=message):
            await asked(stream)


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r"])
async def test_an_answer_that_ends_before_its_head_does(begun: bytes) -> None:
    async with answering(begun) as stream:
        with pytest.raises(Ended):
            await asked(stream)


async def test_an_answer_that_never_comes() -> None:
    async with answering(b"HTTP/1.1 2", hang=True) as stream:
        with pytest.raises(Stalled):
            await asked(stream)


async def test_a_request_that_xapi_would_refuse_is_not_sent() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as stream:
        with pytest.raises(HeadError, match="XAPI takes 1024"):
            await asked(stream, "/" + "x" * 1000)

    assert HEARD == []
