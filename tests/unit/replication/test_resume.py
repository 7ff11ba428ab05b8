"""Which leftovers of an interrupted run are continued, over both pools made of records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.unit.replication.builders import STREAM, SourceWorld, TargetWorld
from xorepd.errors import (
    ConsentMissing,
    DigestMismatch,
    Refused,
    StreamCut,
    TransportFailed,
    XapiUnreachable,
)
from xorepd.ids import Ref
from xorepd.replication.deciding.modes import Delta, Full, FullReason, Resync, ResyncReason
from xorepd.replication.deciding.resume import MOST_TRIES, Leftover, find_leftover, may_be_resumed
from xorepd.replication.format.marks import CONFIRMED, KEY, Role
from xorepd.xapi.records import CONTENT_ID

SIZE = 1 << 30
DAY = 86400.0


@dataclass
class Cut:
    """Two pools on which a run was cut: its snapshot stands, and so do its staging disks."""

    prod: SourceWorld = field(default_factory=SourceWorld)
    dr: TargetWorld = field(default_factory=TargetWorld)
    snapshot: Ref = field(init=False)
    staged: list[Ref] = field(default_factory=list)
    old: Ref | None = None
    """An earlier source snapshot, whose content the only restore point holds."""

    def __post_init__(self) -> None:
        for world, disks in ((self.prod, self.prod.roots),):
            for disk in disks:
                world.raw(disk)["virtual_size"] = str(SIZE)

    def ran(self) -> Cut:
        """Let an earlier run have succeeded."""
        self.old = self.prod.source_snapshot("run-0", sr_1="held")
        contents = tuple(self.prod.uuid(disk) for disk in self.prod.disks(self.old))
        self.dr.run("run-0", contents)
        return self

    def cut(self, confirmed: str = "4096", **facts: str) -> Cut:
        """Let a run begin both disks, of which the first came to an offset."""
        self.snapshot = self.prod.source_snapshot("run-1", sr_1="wanted")
        for device, content in enumerate(self.prod.disks(self.snapshot)):
            disk = self.dr.disk(virtual_size=str(SIZE))
            known: dict[str, Any] = {"snapshot": self.prod.uuid(content), "device": str(device)}
            self.dr.mark(disk, Role.DISK, run="run-1", **known | {"reason": "first-run"} | facts)
            self.staged.append(disk)
        self.confirm(self.staged[0], confirmed)
        return self

    def confirm(self, disk: Ref, offset: str, tries: str = "0") -> None:
        self.dr.set_key(disk, CONFIRMED, f"{self.dr.uuid(disk)} {offset} {tries}")

    async def leftover(self, *, after_s: float = 60.0, within: float = DAY) -> Leftover | None:
        taken = self.prod.raw(self.snapshot)["snapshot_time"]
        moment = datetime.strptime(taken, "%Y%m%dT%H:%M:%SZ").replace(tzinfo=UTC)
        source, target = await self.prod.read(), await self.dr.read()
        now = moment + timedelta(seconds=after_s)
        return find_leftover(source, target, STREAM.sr, now=now, within=within)


async def test_a_disk_goes_on_where_its_pool_confirmed_it() -> None:
    cut = Cut().cut()

    found = await cut.leftover()

    assert found is not None
    assert found.snapshot.vm.ref == cut.snapshot
    assert [begun.start for begun in found.disks.values()] == [0, 4096]
    assert {begun.staging.vdi.ref for begun in found.disks.values()} == set(cut.staged)
    assert {begun.how for begun in found.disks.values()} == {Full(FullReason.FIRST_RUN)}
    assert set(found.spared) == {cut.dr.uuid(disk) for disk in cut.staged}


async def test_a_delta_goes_on_as_the_delta_that_it_was() -> None:
    cut = Cut().ran()
    assert cut.old is not None
    base = cut.prod.uuid(cut.prod.disks(cut.old)[0])
    point = next(iter((await cut.dr.read()).points))
    onto = point.disks[0].vdi.uuid

    found = await cut.cut(base=base, onto=onto, reason="").leftover()

    assert found is not None
    assert {begun.how for begun in found.disks.values()} == {Delta(base, onto, 0)}


async def test_a_resync_goes_on_as_the_resync_that_it_was() -> None:
    cut = Cut().ran()
    onto = (await cut.dr.read()).points[0].disks[0].vdi.uuid

    found = await cut.cut(onto=onto, reason="disk-moved").leftover()

    assert found is not None
    assert {b.how for b in found.disks.values()} == {Resync(onto, ResyncReason.DISK_MOVED, 0)}


def nothing(cut: Cut) -> None:
    del cut.dr.raw(cut.staged[0])["other_config"][CONFIRMED]


def of_another_kind(cut: Cut) -> None:
    for disk in cut.prod.disks(cut.snapshot)[:1]:
        cut.prod.raw(disk)["type"] = "cbt_metadata"


def gone_from_the_vm(cut: Cut) -> None:
    [vbd] = cut.prod.raw(cut.prod.roots[1])["VBDs"]
    cut.prod.detach(vbd)


def held(cut: Cut) -> None:
    cut.prod.set_key(cut.snapshot, "xorepd:for:sr-1", "held")


def of_another_target(cut: Cut) -> None:
    raw = cut.prod.raw(cut.snapshot)["other_config"]
    raw["xorepd:for:sr-2"] = raw.pop("xorepd:for:sr-1")


def written_to(cut: Cut) -> None:
    cut.prod.write(cut.prod.disks(cut.snapshot)[1])


def stripped_of_a_mark(cut: Cut) -> None:
    del cut.prod.raw(cut.prod.disks(cut.snapshot)[1])["other_config"][KEY]


def without_one_of_its_disks(cut: Cut) -> None:
    disk = cut.prod.disks(cut.snapshot)[1]
    cut.prod.detach(cut.prod.raw(disk)["VBDs"][0])
    cut.prod.destroy(disk)


def older_than_the_newest_point(cut: Cut) -> None:
    cut.dr.run("another", ("c-8", "c-9"))


def committed(cut: Cut) -> None:
    cut.dr.run("run-1", tuple(cut.prod.uuid(disk) for disk in cut.prod.disks(cut.snapshot)))


@pytest.mark.parametrize(
    "happens",
    [
        nothing,
        of_another_kind,
        gone_from_the_vm,
        held,
        of_another_target,
        committed,
        written_to,
        stripped_of_a_mark,
        without_one_of_its_disks,
        older_than_the_newest_point,
    ],
)
async def test_what_does_not_stand_any_more_is_not_continued(
    happens: Callable[[Cut], None],
) -> None:
    cut = Cut().cut()
    assert await cut.leftover() is not None

    happens(cut)

    assert await cut.leftover() is None


async def test_a_place_that_no_run_gets_past_is_given_up() -> None:
    cut = Cut().cut()

    cut.confirm(cut.staged[0], "4096", str(MOST_TRIES - 1))
    found = await cut.leftover()
    assert found is not None
    assert {begun.tries for begun in found.disks.values()} == {0, MOST_TRIES - 1}
    cut.confirm(cut.staged[0], "4096", str(MOST_TRIES))
    assert await cut.leftover() is None


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (StreamCut("disk", 1, 2), True),
        (XapiUnreachable("dr", "dr.example", "no route"), True),
        (Refused("no room"), False),
        (ConsentMissing("disk 0 would be sent whole"), True),
        (DigestMismatch("disk", "a", "b"), False),
        (TransportFailed("mine", "it ended"), False),
        (KeyError("x"), False),
    ],
)
def test_what_would_only_happen_again_leaves_nothing(error: BaseException, kept: bool) -> None:
    assert may_be_resumed(error) == kept


async def test_an_old_snapshot_is_not_continued() -> None:
    cut = Cut().cut()

    assert await cut.leftover(after_s=DAY - 1) is not None
    assert await cut.leftover(after_s=DAY) is None
    assert await cut.leftover(within=0) is None


def attached(cut: Cut) -> None:
    dom0 = cut.dr.vm("dom0", is_control_domain=True)
    cut.dr.attach(dom0, cut.staged[0], currently_attached=True)


def attached_and_kept(cut: Cut) -> None:
    attached(cut)
    cut.dr.set_key(cut.staged[0], CONTENT_ID, cut.dr.mark_on(cut.staged[0]).content)


def written(cut: Cut) -> None:
    cut.dr.write(cut.staged[0])


def of_another_disk(cut: Cut) -> None:
    raw = cut.dr.raw(cut.staged[0])
    raw["other_config"][CONFIRMED] = f"{cut.dr.uuid(cut.staged[1])} 4096 0"


def in_a_vm(cut: Cut) -> None:
    cut.dr.attach(cut.dr.vm("mine"), cut.staged[0])


def forged(cut: Cut) -> None:
    cut.confirm(cut.staged[0], "-4096")


def odd(cut: Cut) -> None:
    cut.confirm(cut.staged[0], "4097")


def too_far(cut: Cut) -> None:
    cut.confirm(cut.staged[0], str(SIZE + 512))


def too_large(cut: Cut) -> None:
    cut.dr.raw(cut.staged[0])["virtual_size"] = str(SIZE + 512)


def copied(cut: Cut) -> None:
    cut.staged.append(cut.dr.clone_disk(cut.staged[0]))
    cut.dr.destroy(cut.staged[0])


@pytest.mark.parametrize(
    "happens",
    [
        attached,
        attached_and_kept,
        written,
        in_a_vm,
        of_another_disk,
        forged,
        odd,
        too_far,
        too_large,
        copied,
    ],
)
async def test_a_staging_disk_that_cannot_be_trusted_is_not_continued(
    happens: Callable[[Cut], None],
) -> None:
    cut = Cut().cut()
    cut.confirm(cut.staged[1], "512")
    happens(cut)

    found = await cut.leftover()

    assert found is not None
    begun = {each.staging.vdi.ref: each.start for each in found.disks.values()}
    assert begun.pop(cut.staged[1]) == 512
    assert set(begun.values()) <= {0}


@pytest.mark.parametrize(
    "facts",
    [
        {"base": "gone", "onto": "gone", "reason": ""},
        {"base": "", "onto": "gone", "reason": "disk-moved"},
        {"reason": "of a later version"},
        {"reason": ""},
    ],
    ids=["base-gone", "origin-gone", "strange-reason", "no-reason"],
)
async def test_a_disk_whose_beginning_is_gone_or_unknown_is_planned_anew(
    facts: dict[str, str],
) -> None:
    assert await Cut().cut(**facts).leftover() is None


@pytest.mark.parametrize("where", ["source", "target"])
async def test_a_delta_is_planned_anew_whose_base_was_written_to(where: str) -> None:
    cut = Cut().ran()
    assert cut.old is not None
    base, onto = cut.prod.disks(cut.old)[0], (await cut.dr.read()).points[0].disks[0].vdi
    cut.cut(base=cut.prod.uuid(base), onto=onto.uuid, reason="")
    assert await cut.leftover() is not None

    if where == "source":
        cut.prod.write(base)
    else:
        cut.dr.write(onto.ref)

    assert await cut.leftover() is None


async def test_of_two_staging_disks_of_one_content_the_farther_one_goes_on() -> None:
    cut = Cut().cut()
    content = cut.prod.uuid(cut.prod.disks(cut.snapshot)[0])
    further = cut.dr.disk(virtual_size=str(SIZE))
    cut.dr.mark(further, Role.DISK, run="run-2", snapshot=content, reason="first-run")
    cut.confirm(further, "8192")

    found = await cut.leftover()

    assert found is not None
    assert found.disks[content].staging.vdi.ref == further
