"""Servers that say what they like, on real sockets: what may stand where a pool should."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What a server does with one connection; it is closed afterwards."""


def take_no_more(writer: asyncio.StreamWriter) -> None:
    """Leave what the peer sends from now on in the kernel, until its buffers are full."""
    cast(asyncio.Transport, writer.transport).pause_reading()


@asynccontextmanager
async def serving(
    talk: Talk, *, limit: int = 64 * 1024, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Let a server talk while a block lasts, and provide its port.

    Args:
        limit: bytes that it takes before it reads them.
    """
    async with _talking(talk) as begin:
        server = await asyncio.start_server(begin, "127.0.0.1", 0, limit=limit, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()


@asynccontextmanager
async def serving_at(path: Path, talk: Talk) -> AsyncIterator[None]:
    """Let a server talk on a Unix socket while a block lasts."""
    async with _talking(talk) as begin:
        server = await asyncio.start_unix_server(begin, path)
        try:
            yield
        finally:
            server.close()


Begin = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


@asynccontextmanager
async def _talking(talk: Talk) -> AsyncIterator[Begin]:
    """Provide what begins a talk; all of them end with the block."""
    talks = set[asyncio.Task[None]]()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, EOFError):
                await talk(reader, writer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        finally:
            with suppress(AttributeError):  # asyncio's word for one that is closed already
                writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.get_running_loop().create_task(one(reader, writer)))

    try:
        yield begin
    finally:
        for each in talks:
            each.cancel()
        for ended in await asyncio.gather(*talks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing, and wait until the other side has gone."""
    while await reader.read(64 * 1024):
        pass
