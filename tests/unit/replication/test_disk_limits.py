"""The depth of a disk's chain."""

from __future__ import annotations

from tests.unit.replication.builders import World
from xorepd.ids import Ref
from xorepd.replication.deciding.disk_limits import deepest, depth_of


def link(world: World, child: Ref, parent: str) -> None:
    world.raw(child)["sm_config"] = {"vhd-parent": parent}


async def test_a_disk_without_a_parent_is_one_file() -> None:
    world = World()
    disk = world.disk()
    cache = await world.cache()

    assert depth_of(cache, cache.vdis[disk]) == 1


async def test_every_parent_counts() -> None:
    world = World()
    root, middle, leaf = world.disk(managed=False), world.disk(managed=False), world.disk()
    link(world, middle, world.uuid(root))
    link(world, leaf, world.uuid(middle))
    cache = await world.cache()

    assert depth_of(cache, cache.vdis[leaf]) == 3
    assert deepest(cache, [cache.vdis[root], cache.vdis[leaf]]) == (cache.vdis[leaf], 3)


async def test_a_parent_that_is_not_there_ends_the_chain() -> None:
    world = World()
    leaf = world.disk()
    link(world, leaf, "gone")
    cache = await world.cache()

    assert depth_of(cache, cache.vdis[leaf]) == 1


async def test_parents_in_a_circle_end_where_they_began() -> None:
    world = World()
    one, other = world.disk(), world.disk()
    link(world, one, world.uuid(other))
    link(world, other, world.uuid(one))
    cache = await world.cache()

    assert depth_of(cache, cache.vdis[one]) == 2


async def test_of_no_disks_there_is_no_deepest() -> None:
    assert deepest(await World().cache(), []) == (None, 0)
