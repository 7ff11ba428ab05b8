"""A relay in this process that writes to scripted targets: real TLS, the real wire, no pool."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xorepd.data.digest import Digest
from xorepd.data.reader import Reader
from xorepd.data.writer import Writer
from xorepd.data.zeroes import UNIT
from xorepd.errors import DataError
from xorepd.extents import Extent
from xorepd.plugin.conformance import ScriptedTarget
from xorepd.relay.certificates import make_authority, make_client, make_relay, server_context
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.blocks import hash_of, unpack_block
from xorepd.relay.protocol.channel import Channel, Over
from xorepd.relay.protocol.mux import Connection
from xorepd.stream import ByteStream
from xorepd.transports.base import Target, Transport
from xorepd.units import MiB

STALL_S = 20.0


def make_files(directory: Path) -> None:
    """Make what `xorepd relay init` makes, for a client called paris."""
    now = datetime.now(UTC)
    make_authority(directory, now)
    make_relay(directory, ["localhost"], now)
    make_client(directory, "paris", now)


def options(directory: Path, port: int = 9443, **more: Any) -> dict[str, Any]:
    """Return the options of a client with these files."""
    return {
        "relay": f"localhost:{port}",
        "certificate": str(directory / "paris.pem"),
        "key": str(directory / "paris.key"),
        "ca": str(directory / "ca.pem"),
        **more,
    }


@dataclass(eq=False)
class Disk:
    """A disk that the peer writes for a transport under test."""

    target: ScriptedTarget
    extents: Iterable[Extent]
    opened: wire.Open | None = None
    log: list[tuple[str, int, int]] = field(default_factory=list)
    """What came: kind, offset, bytes of disk."""
    wire_bytes: int = 0
    """Of blocks, as they came."""


class Peer:
    """The relay.

    Args:
        remembers: whether it supplies units itself that it has seen on any disk.
        window: bytes of frames that a client may send before they are taken.
        channels: disks at once on a connection.
    """

    def __init__(
        self, directory: Path, *, remembers: bool = True, window: int = 4 * MiB, channels: int = 16
    ) -> None:
        self._context = server_context(
            directory / "relay.pem", directory / "relay.key", directory / "ca.pem"
        )
        self._remembers, self._window, self._channels = remembers, window, channels
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.disks: dict[str, Disk] = {}
        self.connections: list[Connection] = []
        self._seen: dict[bytes, bytes] = {}
        self._users = 0
        self._serving = AsyncExitStack()

    def expect(self, reader: Reader, target: ScriptedTarget) -> Disk:
        """Let a disk be written here."""
        self.disks[target.disk.vdi] = disk = Disk(target, reader.extents)
        return disk

    def close(self) -> None:
        """Give the port back."""
        self.listener.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while a block lasts; blocks may overlap."""
        if not self._users:
            await self._serving.enter_async_context(self._listening())
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                await self._serving.aclose()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        class Accepted(ByteStream):
            def connection_made(stream, transport: asyncio.BaseTransport) -> None:  # noqa: N805
                super().connection_made(transport)
                tasks.add(loop.create_task(self._serve(stream)))

        server = await loop.create_server(
            lambda: Accepted(STALL_S), sock=self.listener.dup(), ssl=self._context
        )
        try:
            yield
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            await server.wait_closed()
            for task in tasks:
                if not task.cancelled():
                    task.result()  # what the peer finds wrong with the transport

    async def _serve(self, stream: ByteStream) -> None:
        try:
            connection = await Connection.start(
                stream, "client", "peer", channels=self._channels, silence=STALL_S
            )
        except DataError:
            return
        self.connections.append(connection)
        try:
            async with asyncio.TaskGroup() as disks:
                while True:
                    try:
                        channel, opened = await connection.opened()
                    except DataError:
                        break
                    disks.create_task(self.serve_disk(channel, opened))
        finally:
            await connection.close()

    async def serve_disk(self, channel: Channel, opened: wire.Open) -> None:
        work = asyncio.get_running_loop().create_task(self.write_disk(channel, opened))
        stop = asyncio.get_running_loop().create_task(channel.given_up.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.wait({work, stop})
        if work.cancelled():
            channel.end(wire.Failed(wire.Code.CANCELLED, "the client gave up"))
        else:
            work.result()

    async def write_disk(self, channel: Channel, opened: wire.Open) -> None:
        disk = self.disks[opened.vdi]
        if opened.read_only:
            await self._read(channel, disk)
            return
        disk.opened = opened
        try:
            async with disk.target.open(opened.virtual_size, disk.extents) as writer:
                features = wire.Feature.REFERENCES if self._remembers else wire.Feature(0)
                channel.accept(self._window, features)
                await self._take_all(channel, disk, writer)
            channel.end(wire.Done())
        except Over:
            pass
        except DataError as error:
            channel.end(wire.Failed(wire.Code.POOL, str(error)))

    async def _read(self, channel: Channel, disk: Disk) -> None:
        channel.accept(self._window, wire.Feature(0))
        asked: list[Extent] = []
        is_last = False
        while not is_last:
            part = await channel.receive()
            assert isinstance(part, wire.DigestOf)
            asked += map(Extent, part.bounds[::2], part.bounds[1::2])
            is_last = part.is_last
        digest = Digest(asked)
        for offset, data in disk.target.written:
            digest.update(offset, memoryview(data))
        channel.end(wire.Digested(bytes.fromhex(digest.hexdigest())))

    async def _take_all(self, channel: Channel, disk: Disk, writer: Writer) -> None:
        parts: deque[list[Any]] = deque()  # offset, length, bytes as far as they are known
        while True:
            match await channel.receive():
                case wire.Offer(offset=offset, hashes=hashes):
                    disk.log.append(("offer", offset, len(hashes) * UNIT))
                    known = [self._seen.get(one) for one in hashes]
                    for index, content in enumerate(known):
                        parts.append([offset + index * UNIT, UNIT, content])
                    wanted = frozenset(i for i, content in enumerate(known) if content is None)
                    await channel.send(wire.Want(offset, len(hashes), wanted))
                case wire.Data() as data:
                    disk.log.append(("data", data.offset, data.length))
                    disk.wire_bytes += len(data.payload)
                    self._fill(parts, data.offset, unpack_block(data))
                case wire.Zero(offset=offset, length=length):
                    disk.log.append(("zero", offset, length))
                    parts.append([offset, length, bytes(length)])
                case wire.Finish():
                    await self._flush(parts, writer)
                    assert not parts, "it did not send all that was wanted"
                    await writer.finish()
                    return
                case other:
                    raise AssertionError(f"nobody sends {other} here")
            await self._flush(parts, writer)

    def _fill(self, parts: deque[list[Any]], offset: int, block: memoryview) -> None:
        waiting = {part[0]: part for part in parts if part[2] is None}
        if offset not in waiting:
            assert not parts or parts[-1][0] + parts[-1][1] <= offset, "it is out of order"
            parts.append([offset, len(block), bytes(block)])
            return
        for start in range(0, len(block), UNIT):
            unit = bytes(block[start : start + UNIT])
            waiting[offset + start][2] = unit
            if self._remembers:
                self._seen[hash_of(unit)] = unit

    async def _flush(self, parts: deque[list[Any]], writer: Writer) -> None:
        while parts and parts[0][2] is not None:
            offset, _, content = parts.popleft()
            await writer.write(offset, memoryview(content))


class Relayed:
    """A transport under test, with its peer serving while it carries."""

    def __init__(self, transport: Transport, peer: Peer) -> None:
        self._transport, self._peer = transport, peer

    async def carry(self, reader: Reader, target: Target) -> None:
        assert isinstance(target, ScriptedTarget)
        self._peer.expect(reader, target)
        async with self._peer.serving():
            await self._transport.carry(reader, target)
