"""The judge that reads no block twice sees what one sees that reads them all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.lab import hands
from tests.lab.contents import fingerprint
from tests.lab.world import World
from xorepd_lab.demo import judge

pytestmark = pytest.mark.lab

MiB = 1 << 20


async def disks_of(world: World) -> list[tuple[Path, str]]:
    """Return every disk of the pool `prod` that lies in a file."""
    await world.lab.settled()
    directories = [sr.directory for sr in world.lab.pools["prod"].srs.values()]
    return [(each, file.stem) for each in directories for file in sorted(each.glob("*.vhd"))]


async def test_fingerprints_are_equal_where_disks_hold_the_same_and_only_there(
    two_pools: World,
) -> None:
    for seed in (1, 2, 1):
        await two_pools.lab.guest_write("web01", 1, sequential=(MiB, 3 * MiB), seed=seed)
        await two_pools.lab.guest_write("web01", 0, random=3, seed=seed)
        await two_pools.ask("prod", lambda x: x.VM.snapshot(hands.vm_of(x, "web01"), "taken"))
    disks = await disks_of(two_pools)

    found = [await asyncio.to_thread(fingerprint, *disk) for disk in disks]

    whole = [await asyncio.to_thread(judge.sha256, *disk) for disk in disks]
    assert len(set(found)) == len(set(whole)) == len(set(zip(found, whole, strict=True)))
    assert len(set(found)) < len(found)


async def test_one_bit_that_changes_in_a_file_changes_the_fingerprint(two_pools: World) -> None:
    await two_pools.lab.guest_write("web01", 1, sequential=(MiB, MiB), seed=1)
    [data] = [disk for disk in await disks_of(two_pools) if judge.virtual_size(*disk) == 32 * MiB]
    before = await asyncio.to_thread(fingerprint, *data)
    with judge.Disk(*data) as disk:
        held, [file] = disk.read(2 * MiB - 64, 64), disk.paths

    stored = bytearray(file.read_bytes())
    stored[stored.index(held)] ^= 1
    file.write_bytes(stored)

    assert await asyncio.to_thread(fingerprint, *data) != before
