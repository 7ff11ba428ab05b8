"""The disks of a snapshot, each with its plan: how they are attached is what the snapshot says."""

from __future__ import annotations

import pytest

from tests.unit.replication.builders import SourceWorld
from xorepd.errors import Refused
from xorepd.ids import Ref
from xorepd.replication.deciding.evidence import Policy, read_evidence
from xorepd.replication.deciding.plan import VmPlan, plan_vm
from xorepd.replication.format.inventory import TargetSide, VmSnapshot
from xorepd.replication.run.planning import planned_disks
from xorepd.xapi.cache import PoolCache

POLICY = Policy()


async def planned(source: SourceWorld, taken: Ref) -> tuple[PoolCache, VmSnapshot, VmPlan]:
    """Return the records of the source, one of our snapshots, and the plan of its disks."""
    side = await source.read()
    [snapshot] = [each for each in side.snapshots if each.vm.ref == taken]
    evidence = read_evidence(side, TargetSide(None, None)).of_snapshot(snapshot)
    return await source.cache(), snapshot, plan_vm(evidence, POLICY)


async def test_disk_that_was_attached_after_the_sources_were_read_is_planned() -> None:
    source = SourceWorld()
    source.attach(source.web, late := source.disk(), "2")
    attached = [source.uuid(disk) for disk in (*source.roots, late)]
    taken = source.source_snapshot()
    for vbd in list(source.raw(source.web)["VBDs"]):
        source.detach(vbd)  # the VM has no disk any more

    disks = planned_disks(*await planned(source, taken))

    assert [disk.source.mark.disk for disk in disks] == attached
    assert {disk.mode for disk in disks} == {"RW"}


async def test_disk_that_was_detached_from_the_snapshot_is_named() -> None:
    source = SourceWorld()
    taken = source.source_snapshot()
    records, snapshot, plan = await planned(source, taken)
    source.detach(source.raw(taken)["VBDs"][0])

    with pytest.raises(
        Refused, match=r"was detached from snapshot snapshot of run-1 .*new snapshot"
    ):
        planned_disks(await source.cache(), snapshot, plan)

    assert len(planned_disks(records, snapshot, plan)) == 2
