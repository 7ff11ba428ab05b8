"""A client of NBD that does what it is told, however wrong: for the lab's own tests."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.lab.labclient import Api

GREETING = b"NBDMAGICIHAVEOPT\x00\x01"
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, SET_META = 1, 2, 3, 5, 6, 7, 8, 10
ACK, UNSUP, POLICY, INVALID, TLS_REQD = 1, 0x80000001, 0x80000002, 0x80000003, 0x80000005
READ, WRITE, DISC, FLUSH, TRIM = range(5)
EPERM, EINVAL = 1, 22


class Nbd:
    """One connection. What the server sends is read as far as the caller asks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def take(self, length: int) -> bytes:
        return await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """Return what comes until the server closes, or resets."""
        with suppress(ConnectionError):
            return await self.reader.read()
        return b""

    async def greet(self, flags: int = 1) -> None:
        assert await self.take(18) == GREETING
        self.send(struct.pack(">I", flags))

    def say(self, option: int, data: bytes = b"") -> None:
        self.send(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)

    async def option(self, option: int, data: bytes = b"") -> int:
        """Say an option and return the type of the reply, which must have no data."""
        self.say(option, data)
        magic, about, reply, length = struct.unpack(">QIII", await self.take(20))
        assert (magic, about, length) == (0x3E889045565A9, option, 0)
        return int(reply)

    async def encrypt(self, context: ssl.SSLContext, name: str) -> None:
        assert await self.option(STARTTLS) == ACK
        await self.writer.start_tls(context, server_hostname=name)

    async def export(self, name: str) -> tuple[int, int]:
        """Choose an export and return its size and flags."""
        self.say(EXPORT_NAME, name.encode())
        size, flags = struct.unpack(">QH", await self.take(10))
        assert await self.take(124) == bytes(124)
        return size, flags

    def ask(self, command: int, offset: int = 0, length: int = 0, handle: int = 7) -> None:
        self.send(struct.pack(">IIQQI", 0x25609513, command, handle, offset, length))

    async def reply(self, handle: int = 7) -> int:
        """Return the error of a reply, 0 when there is none."""
        magic, error, about = struct.unpack(">IIQ", await self.take(16))
        assert (magic, about) == (0x67446698, handle)
        return int(error)

    async def read(self, offset: int, length: int) -> bytes:
        self.ask(READ, offset, length)
        assert await self.reply() == 0
        return await self.take(length)


@asynccontextmanager
async def connected(info: dict[str, Any]) -> AsyncIterator[Nbd]:
    """Open a connection to where `VDI.get_nbd_info` points, and say nothing yet."""
    reader, writer = await asyncio.open_connection(info["address"], int(info["port"]))
    try:
        yield Nbd(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError, OSError):
            await writer.wait_closed()


@asynccontextmanager
async def exported(info: dict[str, Any]) -> AsyncIterator[Nbd]:
    """Open a connection without TLS to the export that it names."""
    async with connected(info) as nbd:
        await nbd.greet()
        await nbd.export(info["exportname"])
        yield nbd


def trusting(info: dict[str, Any]) -> ssl.SSLContext:
    """Return a context that accepts the very certificate that XAPI told."""
    context = ssl.create_default_context(cadata=info["cert"])
    return context


async def allow_nbd(api: Api, purpose: str = "insecure_nbd", network: str = "lan") -> None:
    """Let disks be read over a network."""
    (ref,) = await api("network.get_by_name_label", network)
    await api("network.add_purpose", ref, purpose)


async def nbd_info(api: Api, vdi: str, host: str = "prod-h1") -> dict[str, Any]:
    """Return how to reach a VDI on the host of that name."""
    (ref,) = await api("host.get_by_name_label", host)
    address = await api("host.get_address", ref)
    (info,) = [each for each in await api("VDI.get_nbd_info", vdi) if each["address"] == address]
    return dict(info)


async def dom0_vbds(api: Api, vdi: str) -> list[dict[str, Any]]:
    """Return the VBDs by which control domains hold a VDI."""
    vbds = await api("VBD.get_all_records")
    doms = await api("VM.get_all_records")
    return [
        vbd for vbd in vbds.values() if vbd["VDI"] == vdi and doms[vbd["VM"]]["is_control_domain"]
    ]


async def detached(api: Api, vdi: str) -> None:
    """Wait until no control domain holds a VDI."""
    token = ""
    while await dom0_vbds(api, vdi):
        token = (await api("event.from", ["vbd"], token, 5.0))["token"]
