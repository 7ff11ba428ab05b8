"""Which copies that others made count as a base, and which of them are proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.replication.builders import NULL, OTHER_SR, SR, World
from xorepd.ids import Ref
from xorepd.replication.format.foreign import Copy, find_copies
from xorepd.replication.format.inventory import disks_of
from xorepd.replication.format.marks import Role
from xorepd.xapi.records import CONTENT_ID

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
        self.target.set_key(vm, COPY_OF, self.source.uuid(self.snapshot))
        point = self.target.snapshot(vm)
        for each in (vm, disk):  # the live replica loses them when its snapshot is taken
            for key in (CONTENT, COPY_OF):
                self.target.raw(each)["other_config"].pop(key, None)
        return self.target.disks(point)[0]

    def of_base(self, *, live: bool = False) -> Ref:
        """Make a copy of the base; return its disk."""
        return self.copy(live=live, copy_of=self.source.uuid(self.base))

    async def copies(self, sr: Ref = SR) -> list[Copy]:
        source, target = await self.source.cache(), await self.target.cache()
        vm = source.vms[self.vm]
        return find_copies(source, disks_of(source, vm), vm, target, sr)

    def relic(self, when: str = "20260302T12:00:00Z", *, live: bool = False) -> Ref:
        """Make a copy whose snapshot is gone on the source; return its disk."""
        disk = self.copy(live=live, copy_of="gone")
        self.target.set_key(self.owner(disk), VM, self.source.uuid(self.vm))
        self.target.set_key(self.owner(disk), TIME, when)
        return disk

    async def found(self, sr: Ref = SR) -> list[Ref]:
        """Return the copies whose base stands."""
        return [copy.onto.ref for copy in await self.copies(sr) if copy.base is not None]

    def owner(self, disk: Ref) -> Ref:
        [vbd] = self.target.raw(disk)["VBDs"]
        return Ref(self.target.raw(vbd)["VM"])

    def origin(self, disk: Ref) -> Ref:
        """Return the disk of the replica that a copy's disk was snapshotted of."""
        return Ref(self.target.raw(disk)["snapshot_of"])

    def replica(self, disk: Ref) -> Ref:
        """Return the VM that a copy's VM is a snapshot of."""
        return Ref(self.target.raw(self.owner(disk))["snapshot_of"])


@pytest.fixture
def site() -> Site:
    source = World()
    vm, disk = source.vm("web"), source.disk()
    source.attach(vm, disk)
    return Site(source, World(), vm, disk, source.snapshot(vm))


async def test_a_snapshot_of_a_replica_is_found_by_what_it_is_a_copy_of(site: Site) -> None:
    onto = site.of_base()

    [copy] = await site.copies()

    assert copy.base is not None
    assert copy.onto.ref == onto
    assert copy.base.uuid == site.source.uuid(site.base)
    assert copy.disk == site.source.uuid(site.disk)
    assert copy.is_proven


async def test_a_key_of_content_is_enough(site: Site) -> None:
    site.source.set_key(site.base, CONTENT, "the-same")
    onto = site.copy(content="the-same", copy_of="something-older")

    assert await site.found() == [onto]


async def test_a_live_disk_is_a_copy_that_is_never_proven(site: Site) -> None:
    onto = site.of_base(live=True)
    for exported in (site.snapshot, site.base):
        site.source.set_key(exported, "xo:backup:exported", "true")

    [copy] = await site.copies()

    assert (copy.onto.ref, copy.is_proven) == (onto, False)


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
    onto = site.of_base(live=True)
    assert await site.found() == [onto]
    site.target.raw(site.owner(onto)).update(changes)

    assert await site.found() == []


async def test_a_snapshot_taken_in_the_middle_of_a_transfer_does_not_count(site: Site) -> None:
    onto = site.of_base()
    site.target.set_key(site.owner(onto), TIME, "19700101T000000Z")

    assert await site.found() == []


async def test_a_copy_on_another_sr_does_not_count(site: Site) -> None:
    site.of_base()

    assert await site.found(OTHER_SR) == []


async def test_a_copy_of_what_is_gone_on_the_source_does_not_count(site: Site) -> None:
    site.copy(copy_of="gone")
    site.copy(copy_of="")

    assert await site.copies() == []


async def test_a_base_without_its_data_counts_only_while_it_tells_what_changed(site: Site) -> None:
    onto = site.of_base()
    site.source.raw(site.base)["type"] = "cbt_metadata"
    assert await site.found() == []

    site.source.raw(site.base)["cbt_enabled"] = True

    assert await site.found() == [onto]


async def test_a_base_that_a_vm_may_write_to_does_not_count(site: Site) -> None:
    site.of_base()
    site.source.attach(site.source.vm("drill"), site.base)

    assert await site.found() == []


async def test_a_base_that_a_snapshot_of_another_vm_has_does_not_count(site: Site) -> None:
    site.of_base()
    site.source.attach(site.source.vm("other", is_a_snapshot=True), site.base)

    assert await site.found() == []


async def test_a_copy_that_two_vms_have_does_not_count(site: Site) -> None:
    onto = site.of_base()
    site.target.attach(site.target.vm("drill"), onto)

    assert await site.found() == []


async def test_a_copy_larger_than_the_source_does_not_count(site: Site) -> None:
    onto = site.of_base()
    site.target.raw(onto)["virtual_size"] = str(int(site.source.raw(site.disk)["virtual_size"]) * 2)

    assert await site.found() == []


async def test_what_is_ours_is_nobody_elses(site: Site) -> None:
    onto = site.of_base()
    site.target.mark(onto, Role.POINT)
    assert await site.found() == []

    del site.target.raw(onto)["other_config"]["xorepd:mark"]
    site.source.mark(site.base, Role.SOURCE)
    assert await site.found() == []


async def test_the_newest_content_comes_first_and_snapshots_before_live_disks(site: Site) -> None:
    old_live, old = site.of_base(live=True), site.of_base()
    newer = site.source.snapshot(site.vm)
    [newer_base] = site.source.disks(newer)
    new = site.copy(copy_of=site.source.uuid(newer_base))
    site.target.set_key(site.owner(new), TIME, "20260303T12:00:00Z")

    assert await site.found() == [new, old, old_live]


async def test_a_copy_whose_base_stands_comes_before_a_newer_one_without_it(site: Site) -> None:
    standing, relic = site.of_base(), site.relic("20260401T12:00:00Z")

    assert [copy.onto.ref for copy in await site.copies()] == [standing, relic]


# -- what proves that nothing has written to a copy ----------------------------------------------


def written_to(site: Site, onto: Ref) -> None:
    site.target.write(onto)


def open_for_writing(site: Site, onto: Ref) -> None:
    dom0 = site.target.vm("dom0", is_control_domain=True)
    site.target.attach(dom0, onto, currently_attached=True)


def replica_written_to(site: Site, onto: Ref) -> None:
    site.target.write(site.origin(onto))


def without_content(site: Site, onto: Ref) -> None:
    for disk in (onto, site.origin(onto)):
        del site.target.raw(disk)["other_config"][CONTENT_ID]


def cloned(site: Site, onto: Ref) -> None:
    site.target.clone_disk(onto)


def copied_twice(site: Site, onto: Ref) -> None:
    site.of_base(live=True)


def of_no_replica(site: Site, onto: Ref) -> None:
    site.target.raw(site.owner(onto))["snapshot_of"] = NULL


def replica_gone(site: Site, onto: Ref) -> None:
    site.target.destroy(site.replica(onto))


def replica_in_use(site: Site, onto: Ref) -> None:
    site.target.raw(site.replica(onto))["power_state"] = "Running"


def replica_not_blocked(site: Site, onto: Ref) -> None:
    site.target.raw(site.replica(onto))["blocked_operations"] = {}


def origin_gone(site: Site, onto: Ref) -> None:
    site.target.destroy(site.origin(onto))


def origin_elsewhere(site: Site, onto: Ref) -> None:
    origin = site.origin(onto)
    site.target.detach(site.target.raw(origin)["VBDs"][0])
    site.target.attach(site.target.vm("drill"), origin)


def origin_says_the_same(site: Site, onto: Ref) -> None:
    site.target.set_key(site.origin(onto), COPY_OF, site.source.uuid(site.base))


def reverted(site: Site, onto: Ref) -> None:
    site.target.revert(site.replica(onto), site.owner(onto))


def written_and_reverted(site: Site, onto: Ref) -> None:
    site.target.write(onto)
    site.target.revert(site.replica(onto), site.owner(onto))
    del site.target.raw(site.origin(onto))["other_config"][COPY_OF]


def record_says_nothing(site: Site, onto: Ref) -> None:
    del site.target.raw(site.owner(onto))["other_config"][COPY_OF]


@pytest.mark.parametrize(
    "happens",
    [
        written_to,
        open_for_writing,
        replica_written_to,
        without_content,
        cloned,
        copied_twice,
        of_no_replica,
        replica_gone,
        replica_in_use,
        replica_not_blocked,
        origin_gone,
        origin_elsewhere,
        origin_says_the_same,
        reverted,
        written_and_reverted,
        record_says_nothing,
    ],
)
async def test_a_copy_is_proven_only_if_nothing_can_have_written_to_it(
    site: Site, happens: Callable[[Site, Ref], None]
) -> None:
    onto = site.of_base()
    [copy] = await site.copies()
    assert copy.is_proven

    happens(site, onto)

    found = await site.copies()
    assert onto in [copy.onto.ref for copy in found]
    assert not any(copy.is_proven for copy in found)


async def test_a_snapshot_of_a_clone_of_a_copy_is_not_proven_and_makes_the_copy_doubtful(
    site: Site,
) -> None:
    onto = site.of_base()
    drill = site.target.clone(site.owner(onto))
    site.target.raw(drill)["blocked_operations"] = {"start": BLOCK}
    site.target.write(site.target.disks(drill)[0])
    site.target.snapshot(drill)

    found = await site.copies()

    assert len(found) == 3
    assert not any(copy.is_proven for copy in found)


async def test_a_copy_is_proven_beside_one_of_another_snapshot(site: Site) -> None:
    onto = site.of_base()
    newer = site.source.snapshot(site.vm)
    site.copy(copy_of=site.source.uuid(site.source.disks(newer)[0]))

    proven = [copy.onto.ref for copy in await site.copies() if copy.is_proven]

    assert len(proven) == 2
    assert onto in proven


# -- copies whose snapshot is gone ---------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
async def test_a_copy_whose_snapshot_is_gone_is_known_by_its_vm_and_device(
    site: Site, live: bool
) -> None:
    relic = site.relic(live=live)

    [copy] = await site.copies()

    assert (copy.disk, copy.onto.ref) == (site.source.uuid(site.disk), relic)
    assert (copy.base, copy.is_proven) == (None, False)


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
