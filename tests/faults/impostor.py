"""Something between a daemon and a pool that passes everything on, but for some answers."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from tests.hostile import serving

PAGE = b"<!DOCTYPE html>\n<html><head><title>502</title></head><body>Bad gateway</body></html>"


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@dataclass
class Lie:
    """What is answered in place of a pool, and to how many calls."""

    method: str
    """Glob."""
    answer: bytes
    """Of the server, head included."""
    times: int = 1
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has been told as often as it should."""


class Impostor:
    """Passes calls and streams on to a pool of the lab, and lies where it is told to."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._lies: list[Lie] = []
        self.url = ""

    def lie(self, method: str, answer: bytes, times: int = 1) -> Lie:
        told = Lie(method, answer, times)
        self._lies.append(told)
        return told

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(self._host, self._port)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"POST"):
                    here.write(head)
                    await _pump_both(reader, writer, there, here)
                    return
                body = await reader.readexactly(_length(head))
                answer = self._answer_to(body)
                if answer is None:
                    here.write(head + body)
                    head = await there.readuntil(b"\r\n\r\n")
                    answer = head + await there.readexactly(_length(head))
                writer.write(answer)
                await writer.drain()
        finally:
            here.transport.abort()
            with suppress(OSError):
                await here.wait_closed()

    def _answer_to(self, body: bytes) -> bytes | None:
        found = re.search(rb"<methodName>(.*?)</methodName>", body)
        method = found[1].decode() if found else ""
        for lie in self._lies:
            if lie.times and fnmatchcase(method, lie.method):
                lie.times -= 1
                if not lie.times:
                    lie.told.set()
                return lie.answer
        return None


@asynccontextmanager
async def impostor(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Impostor]:
    """Stand before a pool that is reached without TLS; to its clients with it, where given."""
    made = Impostor(url)
    async with serving(made.talk, tls=tls) as port:
        made.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        yield made


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)content-length: *(\d+)", head)
    return int(found[1]) if found else 0


async def _pump_both(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    there: asyncio.StreamReader,
    here: asyncio.StreamWriter,
) -> None:
    """Pass bytes on in both directions until the pool ends the connection."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()

    up = asyncio.get_running_loop().create_task(pump(reader, here))
    try:
        await pump(there, writer)
    finally:
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)
