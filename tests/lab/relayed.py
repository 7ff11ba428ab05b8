"""A relay beside the lab's target pool, and what a daemon does before it comes to one."""

from __future__ import annotations

import asyncio
import base64
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.lab.world import World
from tests.unit.relay.ends import make_certificates
from xorepd.config.models import PoolSettings
from xorepd.data.zeroes import UNIT
from xorepd.ids import PoolName
from xorepd.process.lending import Pools
from xorepd.relay.certificates import client_context
from xorepd.relay.listener import listening
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.blocks import hash_of, pack_block
from xorepd.relay.protocol.channel import Channel
from xorepd.relay.protocol.mux import Connection
from xorepd.relay.server import Relay
from xorepd.relay.settings import RelaySettings
from xorepd.replication.format.marks import KEY, Mark, ReplicaKey, Role
from xorepd.xapi.pool import Pool

SIZE = 8 << 20
SOURCE_POOL, SOURCE_VM, SOURCE_DISK = (str(uuid.UUID(int=n)) for n in (1, 2, 3))


@dataclass
class Staging:
    """A disk on the target that a daemon has made and signed."""

    ref: str
    uuid: str
    stream: ReplicaKey
    run: str
    base: str = ""

    def open(self, pool: str, **changes: Any) -> wire.Open:
        plain: dict[str, Any] = {
            "virtual_size": SIZE,
            "window": 256 * 1024,
            "pool": pool,
            "vdi": self.uuid,
            "base": self.base,
            "stream": str(self.stream),
            "run": self.run,
            "what": "disk 0 of VM web01",
        }
        return wire.Open(**(plain | changes))


@dataclass
class Relayed:
    """A running relay, and the ways to it."""

    world: World
    directory: Path
    relay: Relay
    port: int
    pool: str
    """UUID of the target pool."""
    connections: list[Connection] = field(default_factory=list)

    def context(self) -> ssl.SSLContext:
        d = self.directory
        return client_context(d / "paris.pem", d / "paris.key", d / "ca.pem")

    async def dial(self) -> Connection:
        made = await Connection.dial("127.0.0.1", self.port, self.context(), "daemon", silence=20)
        self.connections.append(made)
        return made

    async def stage(self, /, *, other: dict[str, str] | None = None, **changes: Any) -> Staging:
        """Make an empty disk with the mark of a staging disk, changed as told."""

        def make(xenapi: Any) -> Staging:
            [sr] = xenapi.SR.get_by_name_label("dr-storage")
            stream = ReplicaKey(SOURCE_POOL, SOURCE_VM, xenapi.SR.get_uuid(sr))
            record = {
                "SR": sr,
                "virtual_size": str(SIZE),
                "type": "user",
                "sharable": False,
                "read_only": False,
                "name_label": "[Importing] 0",
                "other_config": {},
            }
            ref = xenapi.VDI.create(record)
            staging = Staging(ref, xenapi.VDI.get_uuid(ref), stream, str(uuid.uuid4()))
            mark = _mark(staging, **changes)
            xenapi.VDI.set_other_config(ref, {KEY: mark.encode()} if other is None else other)
            return staging

        made: Staging = await self.world.ask("dr", make)
        return made

    async def committed(self, staging: Staging) -> Staging:
        """Make a restore point's disk of a staging disk, and the next run's clone of that."""

        def make(xenapi: Any) -> Staging:
            point = xenapi.VDI.snapshot(staging.ref)
            base = xenapi.VDI.get_uuid(point)
            mark = _mark(staging, role=Role.POINT, self=base)
            xenapi.VDI.set_other_config(point, {KEY: mark.encode()})
            ref = xenapi.VDI.clone(point)
            run = str(uuid.uuid4())
            cloned = Staging(ref, xenapi.VDI.get_uuid(ref), staging.stream, run, base)
            xenapi.VDI.set_other_config(ref, {KEY: _mark(cloned, onto=base).encode()})
            return cloned

        made: Staging = await self.world.ask("dr", make)
        return made

    async def content(self, vdi: str) -> bytes:
        """Return what is on a disk, as its pool exports it."""
        known = self.world.described("dr")
        credentials = f"{known['username']}:{known['password']}".encode()
        auth = {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}
        tls = ssl.create_default_context(cafile=known["ca_file"])
        url = f"{known['url']}/export_raw_vdi?vdi={vdi}&format=raw"
        async with (
            aiohttp.ClientSession(headers=auth) as http,
            http.get(url, ssl=tls) as response,
        ):
            return await response.read()


def _mark(staging: Staging, /, **changes: Any) -> Mark:
    plain: dict[str, Any] = {
        "role": Role.DISK,
        "stream": staging.stream,
        "run": staging.run,
        "self": staging.uuid,
        "disk": SOURCE_DISK,
        "device": "0",
    }
    return Mark(**(plain | changes))


class Disk:
    """A channel from the daemon's side, used as the transport would, one step at a time."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.confirmed: list[int] = []

    async def next(self) -> wire.Message:
        """Return the next answer, taking note of what is confirmed."""
        while isinstance(answer := await self.channel.receive(), wire.Confirmed):
            self.confirmed.append(answer.offset)
        return answer

    async def offer(self, offset: int, content: bytes) -> frozenset[int]:
        """Offer some units and send what is wanted; return the indexes of these."""
        units = [content[at : at + UNIT] for at in range(0, len(content), UNIT)]
        hashes = tuple(hash_of(unit) if any(unit) else wire.ZEROES for unit in units)
        await self.channel.send(wire.Offer(offset, hashes))
        want = await self.next()
        assert isinstance(want, wire.Want)
        assert (want.offset, want.count) == (offset, len(units))
        for index in sorted(want.wanted):
            await self.send(offset + index * UNIT, units[index])
        return want.wanted

    async def send(self, offset: int, block: bytes) -> None:
        await self.channel.send(pack_block(offset, memoryview(block), None))

    async def finish(self) -> wire.Message:
        await self.channel.send(wire.Finish())
        verdict = await self.next()
        self.channel.close()
        return verdict


async def open_disk(connection: Connection, asked: wire.Open) -> Disk:
    """Open a disk that the relay must accept."""
    disk = Disk(connection.open(asked))
    accepted = await disk.channel.receive()
    assert isinstance(accepted, wire.Accept), accepted
    return disk


async def refusal(connection: Connection, asked: wire.Open) -> wire.Refuse:
    """Open a disk that the relay must refuse."""
    channel = connection.open(asked)
    refused = await channel.receive()
    assert isinstance(refused, wire.Refuse), refused
    channel.close()
    return refused


@asynccontextmanager
async def relayed(
    world: World, directory: Path, *, clients: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Relayed]:
    """Provide a relay in this process beside the pool `dr`."""
    pki = directory / "pki"
    if not pki.exists():
        make_certificates(pki)
    table = {
        "certificate": pki / "relay.pem",
        "key": pki / "relay.key",
        "ca": pki / "ca.pem",
    }
    settings = RelaySettings.model_validate(
        {
            "relay": table | changes,
            "pools": {PoolName("dr"): world.settings("dr")},
            "clients": clients or {},
            "file": directory / "relay.toml",
        }
    )

    def opened(pool: PoolSettings) -> Pool:
        return Pool(pool, lambda: pool.password.get_secret_value() if pool.password else "")

    def uuid_of(xenapi: Any) -> str:
        return str(xenapi.pool.get_uuid(xenapi.pool.get_all()[0]))

    async with (
        Pools(opened) as pools,
        Relay(settings, pools) as relay,
        listening("127.0.0.1", 0, relay.came, silence=20) as port,
    ):
        made = Relayed(world, pki, relay, port, await world.ask("dr", uuid_of))
        try:
            yield made
        finally:
            await asyncio.gather(*(each.close() for each in made.connections))
