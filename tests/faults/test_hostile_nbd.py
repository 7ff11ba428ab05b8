"""NBD servers that say nothing, or want the session in clear: another reader takes the disk."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xmlrpc.client import dumps

import pytest
import trustme

from tests.faults.impostor import http, impostor
from tests.hostile import serving
from tests.lab.world import World
from xorepd.config.models import PoolSettings
from xorepd.data.nbd import protocol as nbd

FOR_EVER = 10**9


def told(port: int, *, cert: str, address: str = "127.0.0.1") -> dict[str, str]:
    name = "/disk?session_id=OpaqueRef:5ec2e7"
    return {
        "address": address,
        "port": str(port),
        "exportname": name,
        "cert": cert,
        "subject": "host",
    }


def answer(*infos: dict[str, str]) -> bytes:
    value = dumps(({"Status": "Success", "Value": list(infos)},), methodresponse=True)
    return http(value.encode())


@asynccontextmanager
async def told_by_prod(
    two_pools: World, directory: Path, *infos: dict[str, str]
) -> AsyncIterator[PoolSettings]:
    """Provide settings with which prod serves its disks over NBD as told."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / "impostor.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    async with impostor(two_pools.lab.pools["prod"].plain_url, tls) as made:
        made.lie("VDI.get_nbd_info", answer(*infos), FOR_EVER)
        yield two_pools.settings("prod", url=made.url, ca_file=directory / "impostor.pem")


def migration_is_blocked(xenapi: Any) -> bool:
    vms = xenapi.VM.get_all_records().values()
    return any("pool_migrate" in vm["blocked_operations"] for vm in vms)


async def test_servers_that_say_nothing_are_asked_once_and_left_for_the_export(
    two_pools: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nbd.GREETING_S <= 10
    monkeypatch.setattr(nbd, "GREETING_S", 0.5)
    came = 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await reader.read()

    cert = trustme.CA().issue_cert("host").cert_chain_pems[0].bytes().decode()
    async with serving(say_nothing) as one, serving(say_nothing) as other:
        infos = [told(port, cert=cert) for port in (one, other)]
        async with (
            told_by_prod(two_pools, tmp_path, *infos) as prod,
            two_pools.daemon({"prod": prod}) as context,
        ):
            first = await two_pools.run(context, vms=("web01",))
            await two_pools.lab.guest_write("web01", 1, random=3, seed=1)
            second = await two_pools.run(context, vms=("web01",))

    assert (first.error, second.error) == (None, None)
    assert came <= 2 * len(first.disks), "disks that begin together may ask together"
    assert {disk.reader for disk in first.disks} == {"export"}
    assert all("NBD" in disk.reader_reason for disk in first.disks)
    assert not await two_pools.ask("prod", migration_is_blocked)
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


@pytest.mark.parametrize("cert", ["", "\n"])
async def test_without_a_certificate_nothing_goes_out_in_clear(
    two_pools: World, tmp_path: Path, cert: str
) -> None:
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"NBDMAGICIHAVEOPT\0\3")
        while data := await reader.read(1 << 16):
            heard.extend(data)

    async with (
        serving(listen) as port,
        told_by_prod(two_pools, tmp_path, told(port, cert=cert)) as prod,
        two_pools.daemon({"prod": prod}) as context,
    ):
        record = await two_pools.run(context)

    assert record.error is None, record.error
    assert bytes(heard) == b""
    assert {disk.reader for disk in record.disks} == {"export"}
    assert all("no certificate of its NBD servers" in disk.reader_reason for disk in record.disks)
    await two_pools.newest_equals_its_source()
