"""Which copies that others made count as a base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.replication.builders import OTHER_SR, SR, World
from xorepd.ids import Ref
from xorepd.replication.foreign import Copy, Pair, find_copies, find_pairs
from xorepd.replication.inventory import disks_of
from xorepd.replication.markers import Role

CONTENT, COPY_OF, TIME = "xo:backup:contentKey", "xo:copy_of", "xo:backup:datetime"
VM = "xo:backup:vm"
BLOCK = "Start operation for this vm is blocked, clone it if you want to use it."


@dataclass
class Site:
    """Both pools with one VM of one disk, snapshotted by somebody else."""

    source: World
    target: World
    vm: Ref
    disk: Ref
    snapshot: Ref

    @property
    def base(self) -> Ref:
        return self.source.disks(self.snapshot)[0]

    def copy(self, *, live: bool = False, **keys: str) -> Ref:
        """Make a copy on the target that carries these keys; return its disk."""
        vm = self.target.vm(power_state="Halted", blocked_operations={"start": BLOCK})
        disk = self.target.disk()
        self.target.attach(vm, disk)
        self.target.set_key(vm, TIME, "20260302T12:00:00Z")
        for key, value in keys.items():
            self.target.set_key(disk, {"content": CONTENT, "copy_of": COPY_OF}[key], value)
        if live:
            return disk
        point = self.target.snapshot(vm)
        for key in (CONTENT, COPY_OF):  # the live replica loses them when its snapshot is taken
            self.target.raw(disk)["other_config"].pop(key, None)
        return self.target.disks(point)[0]

    async def pairs(self, sr: Ref = SR) -> list[Pair]:
        source, target = await self.source.cache(), await self.target.cache()
        return find_pairs(source, [source.vdis[self.disk]], self.vm, target, sr)

    async def copies(self) -> list[Copy]:
        source, target = await self.source.cache(), await self.target.cache()
        disks = disks_of(source, source.vms[self.vm])
        return find_copies(disks, self.source.uuid(self.vm), target, SR)

    def relic(self, when: str = "20260302T12:00:00Z", *, live: bool = False) -> Ref:
        """Make a copy whose snapshot is gone on the source; return its disk."""
        disk = self.copy(live=live, copy_of="gone")
        self.target.set_key(self.owner(disk), VM, self.source.uuid(self.vm))
        self.target.set_key(self.owner(disk), TIME, when)
        return disk

    async def found(self, sr: Ref = SR) -> list[Ref]:
        return [pair.onto.ref for pair in await self.pairs(sr)]

    def owner(self, disk: Ref) -> Ref:
        [vbd] = self.target.raw(disk)["VBDs"]
        return Ref(self.target.raw(vbd)["VM"])


@pytest.fixture
def site() -> Site:
    source = World()
    vm, disk = source.vm("web"), source.disk()
    source.attach(vm, disk)
    return Site(source, World(), vm, disk, source.snapshot(vm))


async def test_a_snapshot_of_a_replica_is_found_by_what_it_is_a_copy_of(site: Site) -> None:
    onto = site.copy(copy_of=site.source.uuid(site.base))

    [pair] = await site.pairs()

    assert pair.onto.ref == onto
    assert pair.base.uuid == site.source.uuid(site.base)
    assert pair.disk == site.source.uuid(site.disk)


async def test_a_key_of_content_is_enough(site: Site) -> None:
    site.source.set_key(site.base, CONTENT, "the-same")
    onto = site.copy(content="the-same", copy_of="something-older")

    assert await site.found() == [onto]


@pytest.mark.parametrize("where", ["vm", "disk"])
async def test_a_copy_that_might_be_written_to_counts_once_its_base_has_arrived(
    site: Site, where: str
) -> None:
    onto = site.copy(live=True, copy_of=site.source.uuid(site.base))
    assert await site.found() == []

    exported = site.snapshot if where == "vm" else site.base
    site.source.set_key(exported, "xo:backup:exported", "true")

    assert await site.found() == [onto]


@pytest.mark.parametrize(
    "changes",
    [
        {"blocked_operations": {}},
        {"blocked_operations": {"start": "Importing…"}},
        {"power_state": "Running"},
        {"other_config": {TIME: "19700101T000000Z"}},
        {"other_config": {}},
    ],
)
async def test_a_copy_that_is_unfinished_or_in_use_does_not_count(
    site: Site, changes: dict[str, Any]
) -> None:
    site.source.set_key(site.snapshot, "xo:backup:exported", "true")
    onto = site.copy(live=True, copy_of=site.source.uuid(site.base))
    site.target.raw(site.owner(onto)).update(changes)

    assert await site.found() == []


async def test_a_snapshot_taken_in_the_middle_of_a_transfer_does_not_count(site: Site) -> None:
    onto = site.copy(copy_of=site.source.uuid(site.base))
    site.target.set_key(site.owner(onto), TIME, "19700101T000000Z")

    assert await site.found() == []


async def test_a_copy_on_another_sr_does_not_count(site: Site) -> None:
    site.copy(copy_of=site.source.uuid(site.base))

    assert await site.found(OTHER_SR) == []


async def test_a_copy_of_what_is_gone_on_the_source_does_not_count(site: Site) -> None:
    site.copy(copy_of="gone")
    site.copy(copy_of="")

    assert await site.found() == []


async def test_a_base_without_its_data_does_not_count(site: Site) -> None:
    site.copy(copy_of=site.source.uuid(site.base))
    site.source.raw(site.base)["type"] = "cbt_metadata"

    assert await site.found() == []


async def test_a_base_that_a_vm_may_write_to_does_not_count(site: Site) -> None:
    site.copy(copy_of=site.source.uuid(site.base))
    site.source.attach(site.source.vm("drill"), site.base)

    assert await site.found() == []


async def test_a_copy_that_two_vms_have_does_not_count(site: Site) -> None:
    onto = site.copy(copy_of=site.source.uuid(site.base))
    site.target.attach(site.target.vm("drill"), onto)

    assert await site.found() == []


async def test_a_copy_larger_than_the_source_does_not_count(site: Site) -> None:
    onto = site.copy(copy_of=site.source.uuid(site.base))
    site.target.raw(onto)["virtual_size"] = str(int(site.source.raw(site.disk)["virtual_size"]) * 2)

    assert await site.found() == []


async def test_what_is_ours_is_nobody_elses(site: Site) -> None:
    onto = site.copy(copy_of=site.source.uuid(site.base))
    site.target.mark(onto, Role.POINT)
    assert await site.found() == []

    del site.target.raw(onto)["other_config"]["xorepd:mark"]
    site.source.mark(site.base, Role.SOURCE)
    assert await site.found() == []


async def test_the_newest_content_comes_first_and_snapshots_before_live_disks(site: Site) -> None:
    site.source.set_key(site.snapshot, "xo:backup:exported", "true")
    old_live = site.copy(live=True, copy_of=site.source.uuid(site.base))
    old = site.copy(copy_of=site.source.uuid(site.base))
    newer = site.source.snapshot(site.vm)
    [newer_base] = site.source.disks(newer)
    new = site.copy(copy_of=site.source.uuid(newer_base))

    assert await site.found() == [new, old, old_live]


@pytest.mark.parametrize("live", [False, True])
async def test_a_copy_whose_snapshot_is_gone_is_known_by_its_vm_and_device(
    site: Site, live: bool
) -> None:
    relic = site.relic(live=live)

    [copy] = await site.copies()

    assert (copy.disk, copy.onto.ref) == (site.source.uuid(site.disk), relic)
    assert await site.found() == []


async def test_the_newest_copy_comes_first(site: Site) -> None:
    old, new = site.relic("20260302T12:00:00Z"), site.relic("20260303T12:00:00Z")

    assert [copy.onto.ref for copy in await site.copies()] == [new, old]


async def test_a_copy_of_another_vm_or_device_is_not_this_disks(site: Site) -> None:
    site.target.set_key(site.owner(site.relic()), VM, "another")
    [vbd] = site.target.raw(site.relic())["VBDs"]
    site.target.raw(vbd)["userdevice"] = "7"

    assert await site.copies() == []


async def test_a_copy_that_is_larger_or_in_use_or_ours_is_not_compared(site: Site) -> None:
    size = int(site.source.raw(site.disk)["virtual_size"])
    site.target.raw(site.relic())["virtual_size"] = str(size * 2)
    site.target.raw(site.owner(site.relic(live=True)))["power_state"] = "Running"
    site.target.mark(site.relic(), Role.POINT)
    site.target.set_key(site.owner(site.relic()), TIME, "19700101T000000Z")

    assert await site.copies() == []
