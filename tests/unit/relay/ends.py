"""Both ends of a relay's connection, on this machine, over real TLS; and a peer without manners."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from xorepd.errors import DataError
from xorepd.relay.certificates import (
    client_context,
    make_authority,
    make_client,
    make_relay,
    server_context,
)
from xorepd.relay.listener import Caller, listening
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.frames import HEADER, Header, Kind, parse_header
from xorepd.relay.protocol.mux import Connection
from xorepd.stream import ByteStream

NOW = datetime.now(UTC)
CHANNELS = 4
OPEN = wire.Open(1 << 30, 64 * 1024, "pool", "vdi", "", "a/b/c", "run", "disk 0")


def make_certificates(directory: Path) -> Path:
    make_authority(directory, NOW)
    make_relay(directory, ["localhost", "127.0.0.1"], NOW)
    make_client(directory, "paris", NOW)
    return directory


@dataclass
class Ends:
    """A listening relay that only greets, and what it takes to come to it."""

    directory: Path
    port: int = 0
    arrived: asyncio.Queue[Connection] = field(default_factory=asyncio.Queue)
    silence: float = 20.0

    async def connect(self, *, silence: float = 20.0) -> tuple[Connection, Connection]:
        """Return the client's end and the relay's."""
        client = await Connection.dial(
            "127.0.0.1", self.port, self.context(), "here", silence=silence
        )
        return client, await self.arrived.get()

    def context(self) -> ssl.SSLContext:
        d = self.directory
        return client_context(d / "paris.pem", d / "paris.key", d / "ca.pem")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[Connection, Connection]]:
        client, relay = await self.connect()
        try:
            yield client, relay
        finally:
            await client.close()
            await relay.close()

    @asynccontextmanager
    async def boor(self) -> AsyncIterator[Boor]:
        stream = await ByteStream.connect("127.0.0.1", self.port, stall=20, tls=self.context())
        async with stream:
            boor = Boor(stream)
            header, body = await boor.next()
            assert header.kind is Kind.HELLO
            boor.hello = wire.Hello.parse(body)
            yield boor


class Boor:
    """A client that sends whatever it is told to."""

    hello: wire.Hello

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.sequence = 0

    async def raw(self, data: bytes) -> None:
        await self.stream.write(data)

    async def send(self, channel: int, kind: Kind, body: bytes, *, flags: int = 0) -> None:
        head = HEADER.pack(kind, flags, 0, channel, self.sequence, len(body))
        self.sequence += 1
        await self.raw(head + body)

    async def say(self, channel: int, message: wire.Message) -> None:
        await self.send(channel, message.kind, message.pack())

    async def greet(self, *, answer: bytes | None = None) -> Self:
        told = self.hello.nonce if answer is None else answer
        await self.say(0, wire.Hello(b"n" * 16, told, 0, 60_000, "boor", "none"))
        return self

    async def next(self) -> tuple[Header, bytes]:
        head = bytearray(HEADER.size)
        await self.stream.read_into(memoryview(head))
        header = parse_header(head)
        body = bytearray(header.length)
        await self.stream.read_into(memoryview(body))
        return header, bytes(body)

    async def wait_for(self, kind: Kind) -> wire.Message:
        while True:
            header, body = await self.next()
            if header.kind is kind:
                return wire.parse(kind, header.flags, body)

    async def refused(self) -> str:
        """Return the sentence with which the other end ends the connection."""
        bye = await self.wait_for(Kind.BYE)
        assert isinstance(bye, wire.Bye)
        assert bye.code is wire.Code.VIOLATION
        return bye.sentence


@asynccontextmanager
async def ends(directory: Path, *, silence: float = 20.0) -> AsyncIterator[Ends]:
    made = Ends(directory, silence=silence)
    d = directory
    context = server_context(d / "relay.pem", d / "relay.key", d / "ca.pem")
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())

        async def greet(caller: Caller) -> None:
            try:
                stream = await caller.secure(context)
                connection = await Connection.start(
                    stream, "client", "relay", channels=CHANNELS, silence=silence
                )
            except (OSError, DataError):  # what the client hears is looked at
                return
            stack.push_async_callback(connection.close)
            made.arrived.put_nowait(connection)

        def came(caller: Caller) -> None:
            group.create_task(greet(caller))

        made.port = await stack.enter_async_context(
            listening("127.0.0.1", 0, came, silence=silence)
        )
        yield made
