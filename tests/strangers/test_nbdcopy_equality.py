"""nbdcopy and our reader take the same bytes from the same export, in pieces of any kind."""

from __future__ import annotations

import asyncio
import random
import shlex
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.lab.labclient import Api
from tests.lab.nbdclient import allow_nbd, detached, nbd_info
from tests.patience import patience
from tests.strangers.programs import need, succeed
from xorepd.data.nbd.exports import NbdExport
from xorepd.data.nbd.reader import NbdConnectionLimit, open_nbd_reader
from xorepd.extents import Extent, merge, total
from xorepd.units import KiB, MiB, TiB
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]

SIZE = 32 * MiB
"""Of web01-data."""
LIBNBD = "Debian: libnbd-bin"
NBDKIT = "Debian: nbdkit"


@pytest.fixture
async def info(lab: Lab, api: Api) -> dict[str, Any]:
    """How to reach a snapshot of web01-data with TLS, after its guest wrote all over it."""
    await lab.guest_write("web01", 1, random=200, seed=5)
    await lab.guest_write("web01", 1, sequential=(3 * MiB + 4 * KiB, 5 * MiB), seed=6)
    await allow_nbd(api, "nbd")
    return await nbd_info(api, await api("VDI.snapshot", await api.disk("web01-data")))


@pytest.fixture
async def copied(info: dict[str, Any], tmp_path: Path) -> bytes:
    """The disk as nbdcopy takes it."""
    nbdcopy = need("nbdcopy", LIBNBD)
    trusted, file = tmp_path / "tls", tmp_path / "disk.raw"
    trusted.mkdir()
    (trusted / "ca-cert.pem").write_text(info["cert"])
    where = f"{info['address']}:{info['port']}/{quote(info['exportname'], safe='')}"
    query = f"tls-certificates={trusted}&tls-hostname={info['subject']}"
    await succeed(nbdcopy, "--connections=2", f"nbds://{where}?{query}", file)
    return await asyncio.to_thread(file.read_bytes)


def random_extents(seed: int) -> list[Extent]:
    """Return extents of all sizes, from a sector to several reads; sometimes the whole disk."""
    rng = random.Random(seed)
    if seed % 5 == 0:
        return [Extent(0, SIZE)]
    most = rng.choice([1, 16, 129, 2048, 5000])
    sectors = SIZE // 512
    found = []
    for _ in range(rng.choice([1, 7, 60, 300])):
        start = rng.randrange(sectors)
        found.append(Extent(start * 512, min(rng.randint(1, most), sectors - start) * 512))
    found.append(Extent(SIZE - 512, 512))
    return merge(found)


async def read(
    served: NbdExport, size: int, extents: list[Extent], connections: int
) -> dict[int, bytes]:
    """Return what our reader gives, by where each piece belongs."""
    open_connections = partial(
        NbdConnectionLimit().connections, [served], connections, "the disk", stall=20.0
    )
    found = {}
    async with (
        open_nbd_reader(open_connections, size, extents, "the disk") as reader,
        aclosing(reader.pieces()) as pieces,
    ):
        async for offset, data in pieces:
            found[offset] = bytes(data)
        assert reader.reconnects == 0
    return found


@pytest.mark.parametrize("connections", [1, 2, 4])
async def test_random_extents_are_those_that_nbdcopy_takes(
    api: Api, info: dict[str, Any], copied: bytes, connections: int
) -> None:
    served = NbdExport(
        info["address"], int(info["port"]), info["exportname"], info["cert"], info["subject"]
    )
    assert len(copied) == SIZE
    for seed in range(connections * 100, connections * 100 + 8):
        extents = random_extents(seed)

        found = await read(served, SIZE, extents, connections)

        assert list(found) == sorted(found), seed
        assert merge(Extent(o, len(each)) for o, each in found.items()) == extents, seed
        assert sum(map(len, found.values())) == total(extents), seed
        for offset, each in found.items():
            assert each == copied[offset : offset + len(each)], (seed, offset)
    await detached(api, await api("VDI.get_by_uuid", info["exportname"].partition("?")[0][1:]))


# -- exports of 4 TiB, which no test reads whole ---------------------------------------------------


@asynccontextmanager
async def nbdkit(*plugin: str) -> AsyncIterator[NbdExport]:
    """Serve what a plug-in of nbdkit makes, without TLS, and answer in order as XAPI does."""
    program = need("nbdkit", NBDKIT)
    port = random.randrange(20_000, 30_000)
    process = await asyncio.create_subprocess_exec(
        program,
        *shlex.split(f"-f --exit-with-parent --threads=1 -r -i 127.0.0.1 -p {port}"),
        *plugin,
    )
    try:
        async with asyncio.timeout(patience()):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield NbdExport("127.0.0.1", port, "", "", "localhost")
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("connections", [1, 3])
async def test_the_end_of_4_tib_is_read_as_it_is(connections: int) -> None:
    size = 4 * TiB
    marks = {0: 1, 2 * TiB - 512: 2, 2 * TiB: 3, 3 * TiB + 8 * KiB: 4, size - 512: 5}
    pattern = " ".join(f"@{offset} {number}*512" for offset, number in marks.items())
    extents = merge(
        [
            Extent(0, 512),
            Extent(1 * TiB, 3 * MiB),
            Extent(2 * TiB - 64 * KiB, 128 * KiB),
            Extent(3 * TiB, 2 * MiB + 512),
            Extent(size - 5 * MiB, 5 * MiB),
        ]
    )

    async with nbdkit("data", f"size={size}", f"data={pattern}") as served:
        found = await read(served, size, extents, connections)

    assert merge(Extent(o, len(each)) for o, each in found.items()) == extents
    seen = {}
    for offset, each in found.items():
        for mark, number in marks.items():
            if offset <= mark < offset + len(each):
                assert each[mark - offset : mark - offset + 512] == bytes([number]) * 512
                seen[mark] = number
        assert len(each) - each.count(0) == 512 * sum(
            offset <= m < offset + len(each) for m in marks
        )
    assert seen == marks
