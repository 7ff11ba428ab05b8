"""Our marks on a pool, found by what they say, however their records come and go."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.unit.replication.builders import OTHER_STREAM, SR, STREAM, SourceWorld, TargetWorld
from xorepd.ids import Ref
from xorepd.replication.format.foreign import Labels
from xorepd.replication.format.index import MarkIndex, marks_on
from xorepd.replication.format.marks import Role
from xorepd.xapi.records import Record, Vdi, Vm
from xorepd.xapi.tables import Tables


async def test_marks_are_found_by_stream_role_and_signature() -> None:
    world = TargetWorld()
    point = world.run()
    clone = world.clone(world.replica)
    stranger = world.vm("another replica")
    world.mark(stranger, Role.REPLICA, stream=OTHER_STREAM)
    world.vm("not ours")

    vms = marks_on(await world.cache()).vms

    assert {each.what.ref for each in vms.find()} == {world.replica, point, clone, stranger}
    assert {each.what.ref for each in vms.find(STREAM)} == {world.replica, point, clone}
    assert {each.what.ref for each in vms.find(STREAM, signed=True)} == {world.replica, point}
    assert {each.what.ref for each in vms.find(role=Role.POINT)} == {point}
    assert {each.what.ref for each in vms.find(role=Role.REPLICA, signed=False)} == {clone}
    [other] = vms.find(OTHER_STREAM, Role.REPLICA, signed=True)
    assert (other.what.ref, other.mark) == (stranger, world.mark_on(stranger))


@pytest.mark.parametrize("earlier", [True, False])
async def test_source_snapshots_are_found_by_their_source_in_either_form(earlier: bool) -> None:
    world = SourceWorld()
    made = world.earlier_snapshot(confirmed=True) if earlier else world.source_snapshot(sr_1="held")

    marks = marks_on(await world.cache())

    source = STREAM.of_source
    assert [each.what.ref for each in marks.vms.find(source, Role.SOURCE, signed=True)] == [made]
    assert len(marks.disks.find(source, Role.SOURCE, signed=True)) == 2
    assert len(marks.vms.find(STREAM)) == earlier


async def test_mark_of_one_object_is_told_with_whether_it_is_its_own() -> None:
    world = TargetWorld()
    world.run()
    clone, other = world.clone(world.replica), world.vm()

    vms = marks_on(await world.cache()).vms

    mark = world.mark_on(world.replica)
    assert (vms.mark(world.replica), vms.own_mark(world.replica)) == (mark, mark)
    assert (vms.mark(clone), vms.own_mark(clone)) == (mark, None)
    assert (vms.mark(other), vms.own_mark(other)) == (None, None)


def told(marks: MarkIndex, labels: Labels) -> object:
    """Return all that indexes answer, in no order."""
    answers = [
        {each.what.ref: each for each in bearers.find(stream, role, signed=signed)}
        for bearers in (marks.vms, marks.disks)
        for stream in (None, STREAM, OTHER_STREAM, STREAM.of_source)
        for role in (None, *Role)
        for signed in (None, True, False)
    ]
    copies = {vdi.ref: vdi for vdi in labels.saying()}
    return answers, copies, len(labels.saying("c-0"))


@pytest.mark.parametrize("seed", range(20))
async def test_index_that_is_kept_up_to_date_is_as_one_that_is_made_anew(seed: int) -> None:
    rng, sources, targets = random.Random(seed), SourceWorld(), TargetWorld()
    sources.source_snapshot(sr_1="held")
    sources.earlier_snapshot("run-2", confirmed=False)
    targets.clone(targets.run())
    for disk in targets.disks(targets.run("run-2")):
        targets.set_key(disk, "xo:copy_of", "c-0")
        targets.set_key(disk, "xo:backup:contentKey", rng.choice(["c-0", "c-1"]))
    records: list[Record] = []
    for world in (sources, targets):
        cache = await world.cache()
        records += [*cache.vms.values(), *cache.vdis.values(), *cache.vbds.values()]
    tables = Tables()
    tables.index(MarkIndex)
    tables.index(Labels)

    for _ in range(300):
        record = rng.choice(records)
        if rng.random() < 0.4:
            tables.drop(type(record), record.ref)
        elif isinstance(record, Vm | Vdi) and rng.random() < 0.5:
            others = [each.other_config for each in records if isinstance(each, Vm | Vdi)]
            tables.put(replace(record, other_config=rng.choice(others)))
        else:
            tables.put(record)

    anew = Tables()
    for cls in (Vm, Vdi):
        for kept in tables.table(cls).values():
            anew.put(kept)
    assert told(tables.index(MarkIndex), tables.index(Labels)) == told(
        anew.index(MarkIndex), anew.index(Labels)
    )
    for ref in (SR, sources.web, targets.replica, *sources.roots, Ref("OpaqueRef:NULL")):
        for cls in (Vm, Vdi):
            pointing = {each.ref for each in tables.pointing(cls, "snapshot_of", ref)}
            assert pointing == {each.ref for each in anew.pointing(cls, "snapshot_of", ref)}
