"""Disks that are no VHD, and those that are too large for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.world import World, serve_nbd, world
from xorepd.data.http.chunked import open_chunked
from xorepd.data.nbd.reader import NbdConnectionLimit
from xorepd.extents import Extent
from xorepd.ids import PoolName, VdiUuid
from xorepd.replication.transfer.readers import open_nbd
from xorepd.state.records import Outcome
from xorepd.units import KiB, MiB, TiB
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr, Vdi
from xorepd.xapi.vdis import create_disk, destroy_disk
from xorepd_lab.topology import SMALL, DiskSpec, SrSpec, Topology


def volumes(*, source: bool, target: bool, data: int | None = None) -> Topology:
    """Return the small topology with SRs of volumes, and another size of web01's second disk."""

    def as_volumes(sr: SrSpec) -> SrSpec:
        return replace(sr, type="zfs-vol", size=16 * TiB)

    prod, dr = SMALL.pools
    if source:
        web01, db01 = prod.vms
        root, disk = web01.disks
        if data is not None:
            disk = DiskSpec(disk.name, disk.sr, data)
        web01 = replace(web01, disks=(root, disk))
        shared, local = prod.srs
        prod = replace(prod, srs=(as_volumes(shared), local), vms=(web01, db01))
    if target:
        dr = replace(dr, srs=tuple(map(as_volumes, dr.srs)))
    return Topology("volumes", (prod, dr))


@pytest.fixture
async def to_volumes(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "lab", volumes(source=False, target=True)) as made:
        yield made


@pytest.mark.parametrize("with_nbd", [False, True], ids=["export", "nbd"])
async def test_volumes_are_read_whole_in_every_run_and_the_record_says_why(
    tmp_path: Path, with_nbd: bool
) -> None:
    reader = "nbd-everything" if with_nbd else "export-raw"
    job = {"changed_blocks": "enable", "resync": False}
    async with world(tmp_path / "lab", volumes(source=True, target=True)) as two_pools:
        if with_nbd:
            await serve_nbd(two_pools, "prod")
            await serve_nbd(two_pools, "dr")
        first = await two_pools.replicate(**job)
        await two_pools.lab.guest_write("web01", 1, random=3, seed=1)
        await two_pools.lab.guest_write("web01", 1, trim=(0, 8 * MiB))

        second = await two_pools.replicate(**job)

        assert first.outcome is Outcome.FULL
        assert second.outcome is Outcome.DELTA
        for record in (first, second):
            assert {disk.reader for disk in record.disks} == {reader}
            assert all("no VHD that XAPI exports" in disk.reader_reason for disk in record.disks)
        assert all("tracking is off" in disk.reader_reason for disk in second.disks)
        # Zeroes are left out of a fresh disk only: over the clone of a point they must be written.
        assert {disk.sent_bytes for disk in second.disks} == {32 * MiB, 64 * MiB}
        await two_pools.newest_equals_its_source()
        assert await two_pools.left_over() == []


@pytest.mark.parametrize("with_nbd", [False, True], ids=["export", "nbd"])
async def test_volumes_are_compared_so_that_only_what_differs_is_sent(
    tmp_path: Path, with_nbd: bool
) -> None:
    async with world(tmp_path / "lab", volumes(source=True, target=True)) as two_pools:
        if with_nbd:
            await serve_nbd(two_pools, "prod")
            await serve_nbd(two_pools, "dr")
        await two_pools.replicate()
        touched = await two_pools.lab.guest_write("web01", 1, random=3, seed=1)

        second = await two_pools.replicate()

        assert second.outcome is Outcome.DELTA
        changed, same = sorted(second.disks, key=lambda disk: -disk.sent_bytes)
        assert (changed.mode, changed.reason) == ("resync", "changes-unknown")
        assert changed.sent_bytes == 64 * KiB * len({at // (64 * KiB) for at, _ in touched})
        assert (same.sent_bytes, same.compared_bytes) == (0, 64 * MiB)
        await two_pools.newest_equals_its_source()
        assert await two_pools.left_over() == []


async def test_a_disk_that_no_vhd_can_hold_is_refused_before_anything_exists(
    tmp_path: Path,
) -> None:
    topology = volumes(source=True, target=False, data=4 * TiB)
    async with world(tmp_path / "lab", topology) as two_pools:
        async with two_pools.daemon() as context:
            record = await two_pools.run(context)

        assert record.outcome is Outcome.FAILED
        assert "disk web01-data" in (record.error or "")
        assert "4096.0 GiB, more than the 2040 GiB of a VHD" in (record.error or "")
        assert "choose another SR" in (record.error or "")
        assert await two_pools.bases() == []
        assert await two_pools.left_over() == []


async def test_extents_beyond_2_tib_are_written_and_read_back(to_volumes: World) -> None:
    await serve_nbd(to_volumes, "dr")
    size = 4 * TiB
    extents = [
        Extent(0, 64 * KiB),
        Extent(2 * TiB - 64 * KiB, 128 * KiB),  # over the end of what 32 bits of sectors reach
        Extent(2040 * 1024 * MiB, 512),
        Extent(3 * TiB + 512, 1 * MiB),
        Extent(size - 64 * KiB, 64 * KiB),
    ]

    async with to_volumes.daemon() as context:
        dr = context.pools[PoolName("dr")]
        await dr.refresh()
        [sr] = [sr for sr in dr.cache.srs.values() if sr.name_label == "dr-storage"]
        async with create_disk(dr, sr.ref, size, "large", "", {}) as ref:
            await dr.refresh()
        disk = dr.cache.vdis[ref]
        assert (disk.virtual_size, dr.cache.table(Sr)[sr.ref].type) == (size, "zfs-vol")

        endpoint = DiskEndpoint(dr, sr.ref)
        async with open_chunked(endpoint, VdiUuid(disk.uuid), fresh=True, what="large") as writer:
            for number, extent in enumerate(reversed(extents), 1):
                await writer.write(extent.offset, memoryview(bytes([number]) * extent.length))
            await writer.finish()

        expected = {e: n for n, e in enumerate(reversed(extents), 1)}
        around = [Extent(1 * TiB, 4096), *extents]
        found = await read(dr, disk, sorted(around))
        await dr.refresh()
        await destroy_disk(dr, dr.cache.vdis[ref])

    for extent in around:
        assert found[extent.offset] == bytes([expected.get(extent, 0)]) * extent.length


async def read(pool: Pool, disk: Vdi, extents: list[Extent]) -> dict[int, bytes]:
    """Return the bytes of some extents, by where each begins."""
    found = {extent.offset: bytearray() for extent in extents}
    starts = sorted(found)
    async with (
        open_nbd(pool, disk, NbdConnectionLimit(), None, extents, "large") as reader,
        aclosing(reader.pieces()) as pieces,
    ):
        async for offset, data in pieces:
            found[max(start for start in starts if start <= offset)] += data
    return {start: bytes(data) for start, data in found.items()}
