"""Which disks a relay writes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import pytest

from tests.unit.replication.builders import OTHER_SR, OTHER_STREAM, SR, STREAM, TargetWorld
from xorepd.ids import Ref
from xorepd.relay.authority import NotAllowed, disk_for
from xorepd.relay.protocol.messages import Open
from xorepd.replication.format.marks import KEY, Role
from xorepd.xapi.records import Sr, read_record

GiB = 1 << 30
OUR_SR = read_record(Sr, SR, {"uuid": STREAM.sr, "name_label": "dr-storage", "type": "nfs"})


class Site:
    """A target pool with a restore point, and a staging disk that is to be written there."""

    def __init__(self) -> None:
        self.world = TargetWorld()
        self.point = self.world.run("run-1")
        self.disk = self.world.stage("run-2", ("c-2",))[0]
        self.base = self.world.disks(self.point)[0]
        onto = replace(self.world.mark_on(self.disk), onto=self.world.uuid(self.base))
        self.world.set_key(self.disk, KEY, onto.encode())
        self.asked = Open(
            GiB,
            65536,
            "pool-2",
            self.world.uuid(self.disk),
            self.world.uuid(self.base),
            str(STREAM),
            "run-2",
            "disk 0",
        )

    async def allowed(self, pools: Collection[str] = ()) -> Ref:
        cache = await self.world.cache(OUR_SR)
        return disk_for(self.asked, cache, "paris", pools)[0].ref


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.mark.parametrize("pools", [(), (STREAM.pool,)])
async def test_staging_disk_of_stream_and_run_is_written(
    site: Site, pools: tuple[str, ...]
) -> None:
    assert await site.allowed(pools) == site.disk


def of_another(site: Site) -> None:
    site.disk = site.world.clone_disk(site.disk)
    site.asked = replace(site.asked, vdi=site.world.uuid(site.disk))


def imported(site: Site) -> None:
    mark = site.world.mark_on(site.disk)
    site.world.set_key(site.disk, KEY, mark.on(mark.self, "OpaqueRef:exported").encode())


def not_signed(site: Site) -> None:
    site.world.mark(site.disk, Role.DISK, run="run-2", unsigned=True)


def of_a_point(site: Site) -> None:
    site.asked = replace(site.asked, vdi=site.asked.base)


def in_a_vm(site: Site) -> None:
    site.world.attach(site.world.vm("rescue"), site.disk)


def elsewhere(site: Site) -> None:
    site.world.raw(site.disk)["SR"] = OTHER_SR


def of_another_stream(site: Site) -> None:
    site.asked = replace(site.asked, stream=str(OTHER_STREAM))


def of_another_run(site: Site) -> None:
    site.asked = replace(site.asked, run="run-3")


def too_small(site: Site) -> None:
    site.world.raw(site.disk)["virtual_size"] = str(GiB - 512)


def gone(site: Site) -> None:
    site.world.destroy(site.disk)


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (of_another, "no xorepd has signed it"),
        (imported, "no xorepd has signed it"),
        (not_signed, "no xorepd has signed it"),
        (of_a_point, "no xorepd has signed it"),
        (in_a_vm, "belongs to a VM"),
        (elsewhere, "does not lie on"),
        (of_another_stream, "is of another stream"),
        (of_another_run, "is of run run-2, not of run-3"),
        (too_small, "bytes, not"),
        (gone, "has no disk"),
    ],
)
async def test_any_other_disk_is_refused(
    site: Site, happens: Callable[[Site], None], why: str
) -> None:
    happens(site)

    with pytest.raises(NotAllowed, match=why):
        await site.allowed()


async def test_disk_of_a_pool_that_is_not_the_clients_is_refused(site: Site) -> None:
    with pytest.raises(NotAllowed, match="client paris may not write replicas of pool pool-1"):
        await site.allowed(["pool-9"])
