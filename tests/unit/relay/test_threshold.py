"""Who may come to a relay, and who only holds a place there without a word."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.relay.ends import make_certificates
from xorepd.errors import DataError
from xorepd.process.lending import Pools
from xorepd.relay import listener
from xorepd.relay.certificates import client_context
from xorepd.relay.handshakes import AT_ONCE, OF_ADDRESS, Threshold
from xorepd.relay.listener import listening
from xorepd.relay.protocol.mux import Connection
from xorepd.relay.server import Relay
from xorepd.relay.settings import load_relay
from xorepd.xapi.pool import Pool

CONFIG = """
[relay]
certificate = "relay.pem"
key = "relay.key"
ca = "ca.pem"
connections = 4

[pools.dr]
url = "https://dr.example"
password_env = "DR_PASSWORD"
"""


Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Place:
    relay: Relay
    port: int
    directory: Path
    pipes: list[Pipe] = field(default_factory=list)

    async def dial(self) -> Connection:
        d = self.directory
        context = client_context(d / "paris.pem", d / "paris.key", d / "ca.pem")
        return await Connection.dial("127.0.0.1", self.port, context, "daemon", silence=20)

    async def has_clients(self, count: int) -> None:
        while self.relay.clients != count:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.01)

    async def be_silent(self, host: str = "127.0.0.1") -> Pipe:
        pipe = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(host, 0))
        self.pipes.append(pipe)
        return pipe

    async def close(self) -> None:
        for _, writer in self.pipes:
            if not writer.transport.is_closing():
                writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def relaying(directory: Path) -> AsyncIterator[Place]:
    make_certificates(directory)
    (directory / "relay.toml").write_text(CONFIG)
    settings = load_relay(directory / "relay.toml", environ={"DR_PASSWORD": "x"})

    def open_pool(_: object) -> Pool:
        raise AssertionError("nobody asks for a disk")

    async with (
        Pools(open_pool) as pools,
        Relay(settings, pools) as relay,
        listening("127.0.0.1", 0, relay.came, silence=20) as port,
    ):
        place = Place(relay, port, directory)
        try:
            yield place
        finally:
            await place.close()


@pytest.mark.parametrize("addresses", [1, 32])
async def test_clients_get_in_past_those_who_say_nothing(tmp_path: Path, addresses: int) -> None:
    async with relaying(tmp_path) as place:
        hosts = [f"127.0.{number % addresses}.2" for number in range(3 * AT_ONCE)]
        for host in hosts:
            await place.be_silent(host)

        clients = [await place.dial() for _ in range(3)]

        await place.has_clients(3)
        assert len(place.relay.threshold) <= min(AT_ONCE, addresses * OF_ADDRESS)
        for client in clients:
            await client.close()


async def test_clients_get_in_past_those_of_their_own_address(tmp_path: Path) -> None:
    async with relaying(tmp_path) as place:
        for _ in range(4 * OF_ADDRESS):
            await place.be_silent()

        client = await place.dial()

        await place.has_clients(1)
        await client.close()


async def test_whoever_says_nothing_goes_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.3)
    async with relaying(tmp_path) as place:
        reader, _ = await place.be_silent()

        assert await reader.read() == b""


async def test_whoever_drips_goes_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.5)
    async with relaying(tmp_path) as place:
        reader, writer = await place.be_silent()
        gone = asyncio.get_running_loop().create_task(reader.read())
        writer.write(b"\x16\x03\x01\x7f\xff\x01\x00\x7f\xfb")
        while not gone.done():
            writer.write(b"\x00")
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, os.urandom(1000), b"XOREPDRL" * 100]
)
async def test_whoever_speaks_something_else_goes_at_once(tmp_path: Path, said: bytes) -> None:
    async with relaying(tmp_path) as place:
        reader, writer = await place.be_silent()
        writer.write(said)

        while await reader.read(1000):
            pass

        client = await place.dial()
        await client.close()


async def test_one_client_too_many_is_told_so(tmp_path: Path) -> None:
    async with relaying(tmp_path) as place:
        clients = [await place.dial() for _ in range(4)]
        await place.has_clients(4)

        late = await place.dial()
        await late.ended.wait()

        with pytest.raises(DataError, match="as many connections as it may have"):
            late.check()
        assert place.relay.clients == 4
        for client in [*clients, late]:
            await client.close()


@pytest.mark.parametrize(
    ("hosts", "there"),
    [
        (["10.0.0.1"] * 20, OF_ADDRESS),
        ([f"10.0.0.{n}" for n in range(20)], 20),
        ([f"10.0.{n}.1" for n in range(200)], AT_ONCE),
        ([f"2001:db8::{n:x}" for n in range(20)], OF_ADDRESS),
        ([f"2001:db8:0:{n:x}::1" for n in range(20)], 20),
        ([f"::ffff:10.0.0.{n}" for n in range(20)], 20),
        (["fe80::1%eth0"] * 20, OF_ADDRESS),
    ],
)
async def test_an_address_has_its_share_and_the_last_to_come_have_places(
    hosts: list[str], there: int
) -> None:
    threshold, gate = Threshold(), asyncio.Event()

    async def wait(host: str) -> None:
        with threshold.at(host):
            await gate.wait()

    tasks = [asyncio.get_running_loop().create_task(wait(host)) for host in hosts]
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert len(threshold) == there
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.cancelled() for task in tasks] == [True] * (len(hosts) - there) + [False] * there
    assert len(threshold) == 0
