"""Whose data may go, from what the marks and keys on both sides say."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import pytest

from tests.unit.replication.builders import STREAM, SourceWorld, TargetWorld
from xorepd.ids import Ref
from xorepd.replication.deciding.data_destroy import (
    Shedding,
    decide_shedding,
    is_agreed,
    reason_to_keep,
)
from xorepd.replication.format.inventory import Marked, TargetSide, VmSnapshot
from xorepd.replication.format.marks import Use

US, THEM = STREAM.sr, "sr-2"


async def holding(source: SourceWorld, snapshot: Ref) -> TargetSide:
    """Return a target whose newest restore point holds a snapshot."""
    target = TargetWorld()
    target.run(contents=tuple(source.uuid(disk) for disk in source.disks(snapshot)))
    side = await target.read()
    [point] = side.points
    mark = dataclasses.replace(point.mark, snapshot=source.uuid(snapshot))
    return dataclasses.replace(side, points=(dataclasses.replace(point, mark=mark),))


async def decide(
    source: SourceWorld, target: TargetSide, use: Use = Use.BARE, read_for: Collection[str] = ()
) -> Shedding:
    return decide_shedding(await source.read(), target, US, use, read_for=read_for)


def refs(bases: Collection[VmSnapshot | Marked]) -> list[Ref]:
    return [base.vm.ref if isinstance(base, VmSnapshot) else base.vdi.ref for base in bases]


async def test_a_target_that_needs_no_data_says_so_on_its_base_and_lets_it_go() -> None:
    source = SourceWorld()
    base = source.source_snapshot(sr_1="held")

    found = await decide(source, await holding(source, base))

    assert (refs(found.say), refs(found.shed)) == ([base], [base])
    assert (refs(found.own), found.kept) == ([base], ())


async def test_a_target_that_keeps_data_says_nothing_new_and_nothing_goes() -> None:
    source = SourceWorld()
    base = source.source_snapshot(sr_1="held")

    found = await decide(source, await holding(source, base), Use.HELD)

    assert (found.say, found.shed) == ((), ())
    assert found.kept == ('the job has base_data = "keep"',)


async def test_a_job_that_keeps_data_again_takes_back_what_it_said() -> None:
    source = SourceWorld()
    base = source.source_snapshot(sr_1="bare")

    found = await decide(source, await holding(source, base), Use.HELD)

    assert (refs(found.say), found.shed) == ([base], ())


@pytest.mark.parametrize("theirs", ["wanted", "held", "treasured"])
async def test_data_stays_as_long_as_another_target_has_not_let_it_go(theirs: str) -> None:
    source = SourceWorld()
    base = source.source_snapshot(sr_1="held", sr_2=theirs)

    found = await decide(source, await holding(source, base))

    assert (refs(found.say), found.shed) == ([base], ())
    assert found.kept == (f"SR {THEM} needs it as well",)


async def test_data_goes_when_the_last_target_lets_it_go() -> None:
    source = SourceWorld()
    base = source.source_snapshot(sr_1="held", sr_2="bare")

    assert refs((await decide(source, await holding(source, base))).shed) == [base]


async def test_data_stays_while_a_target_may_be_reading_against_it() -> None:
    source = SourceWorld()
    base = source.source_snapshot(sr_1="held", sr_2="bare")

    found = await decide(source, await holding(source, base), read_for={THEM})

    assert (refs(found.say), found.shed) == ([base], ())
    assert found.kept == (f"it is being read for SR {THEM}",)


async def test_base_of_another_target_that_all_let_go_goes_too() -> None:
    source = SourceWorld()
    theirs = source.source_snapshot("run-1", sr_2="bare")
    base = source.source_snapshot("run-2", sr_1="held")

    found = await decide(source, await holding(source, base), Use.HELD)

    assert (found.say, refs(found.shed)) == ((), [theirs])
    assert found.own == ()


async def test_nothing_is_said_on_a_snapshot_that_is_not_the_newest_points() -> None:
    source = SourceWorld()
    older = source.source_snapshot("run-1", sr_1="held")
    base = source.source_snapshot("run-2", sr_1="held")

    found = await decide(source, await holding(source, base))

    assert older not in refs(found.say) + refs(found.shed)


async def test_disks_of_a_record_that_is_gone_are_finished_one_by_one() -> None:
    source = SourceWorld()
    base = source.source_snapshot(sr_1="bare")
    target = await holding(source, base)
    done, left = source.disks(base)
    source.destroy(base)
    source.raw(done)["type"] = "cbt_metadata"

    assert refs((await decide(source, target)).shed) == [left]


async def test_a_snapshot_for_nobody_is_agreed_on_by_nobody() -> None:
    source = SourceWorld()
    base = source.source_snapshot()

    found = await decide(source, await holding(source, base))

    assert (found.say, found.shed) == ((), ())
    assert found.kept == ("no SR is written on it",)
    assert not is_agreed({})


async def test_a_vm_without_disks_has_no_data_to_destroy() -> None:
    source = SourceWorld()
    for vbd in list(source.raw(source.web)["VBDs"]):
        source.detach(vbd)
    base = source.source_snapshot(sr_1="bare")

    assert (await decide(source, await holding(source, base))).shed == ()


# -- what keeps data in spite of that ------------------------------------------------------------


def tracked() -> tuple[SourceWorld, Ref]:
    """Return a source whose disks are tracked, and a base of them."""
    source = SourceWorld()
    for disk in source.roots:
        source.raw(disk)["cbt_enabled"] = True
    return source, source.source_snapshot(sr_1="bare")


async def told(source: SourceWorld) -> list[str]:
    side, cache = await source.read(), await source.cache()
    bases: list[VmSnapshot | Marked] = [*side.snapshots, *side.orphans]
    return [reason_to_keep(cache, base) for base in bases]


async def test_tracked_disks_can_do_without_their_data() -> None:
    source, base = tracked()
    assert await told(source) == [""]

    source.destroy(base)

    assert await told(source) == ["", ""]


async def test_a_base_that_is_not_tracked_keeps_its_data() -> None:
    source, base = tracked()
    disk = source.disks(base)[1]
    source.raw(disk)["cbt_enabled"] = False

    assert await told(source) == [f"changed-block tracking is off on its disk {source.uuid(disk)}"]


async def test_data_stays_when_tracking_of_the_disk_itself_was_lost() -> None:
    source, _ = tracked()
    source.raw(source.roots[0])["cbt_enabled"] = False

    uuid = source.uuid(source.roots[0])
    assert await told(source) == [f"changed-block tracking is off on disk {uuid}"]


async def test_a_disk_that_somebody_attached_keeps_its_data() -> None:
    source, base = tracked()
    disk = source.disks(base)[0]
    source.attach(source.vm("rescue"), disk)

    assert await told(source) == [f"a VM uses its disk {source.uuid(disk)}"]
