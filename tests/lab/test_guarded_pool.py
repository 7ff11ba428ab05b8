"""A pool behind a guard: what changes it is asked for right before it is sent, reading is not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.lab.world import World
from xorepd.data.http.chunked import open_chunked
from xorepd.errors import LeaseLost
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool, task_owner
from xorepd.xapi.records import Vdi
from xorepd.xapi.vdis import create_disk, destroy_disk

MiB = 1 << 20


class Gate:
    """Open until it is shut."""

    def __init__(self) -> None:
        self.is_shut = False

    def __call__(self) -> None:
        if self.is_shut:
            raise LeaseLost("the VM", "somebody else has it")


@pytest.fixture
async def dr(two_pools: World) -> AsyncIterator[Pool]:
    async with two_pools.daemon() as context:
        pool = context.pools[two_pools.job().targets[0].pool]
        await pool.refresh()
        yield pool


async def test_reading_goes_on_and_changing_does_not(two_pools: World, dr: Pool) -> None:
    gate = Gate()
    guarded = dr.guarded(gate)
    (sr, *_) = dr.cache.srs
    await guarded.call("SR.add_tags", sr, "before")

    gate.is_shut = True
    before = len(two_pools.lab.calls)
    with pytest.raises(LeaseLost):
        await guarded.call("SR.add_tags", sr, "after")
    with pytest.raises(LeaseLost):
        await guarded.run_task("SR.scan", sr)

    assert await guarded.call("SR.get_tags", sr) == ["before"]
    await guarded.refresh()
    names = [call.name for call in two_pools.lab.calls[before:]]
    assert not {"SR.add_tags", "Async.SR.scan"} & set(names)
    await dr.call("SR.remove_tags", sr, "before")  # the pool itself is not guarded


async def test_a_task_of_our_own_is_still_removed_and_those_of_a_successor_are_not(
    dr: Pool,
) -> None:
    gate = Gate()
    guarded = dr.guarded(gate)
    task_owner.set("xorepd:somebody")
    own, other = await guarded.create_task("own"), await guarded.create_task("other")
    await dr.refresh()

    gate.is_shut = True
    await guarded.discard_request(own)
    with pytest.raises(LeaseLost):
        await guarded.end_tasks_of("xorepd:somebody")

    await dr.refresh()
    assert own not in dr.cache.tasks
    assert other in dr.cache.tasks
    await dr.discard_request(other)


async def test_no_byte_of_a_disk_is_written_any_more(dr: Pool) -> None:
    gate = Gate()
    (sr,) = [sr for sr in dr.cache.srs.values() if sr.name_label == "dr-storage"]
    async with create_disk(dr, sr.ref, 8 << 20, "disk", "", {}) as ref:
        await dr.refresh()
    disk = dr.cache.table(Vdi)[ref]
    endpoint = DiskEndpoint(dr.guarded(gate), sr.ref)

    async with open_chunked(endpoint, disk.uuid, fresh=True, what="disk") as writer:
        await writer.write(0, memoryview(b"a" * MiB))
        gate.is_shut = True
        with pytest.raises(LeaseLost):
            await writer.write(MiB, memoryview(b"b" * MiB))

    await dr.refresh()
    assert not dr.cache.tasks
    await destroy_disk(dr, dr.cache.vdis[disk.ref])
