"""What an operator may give up, on which terms, and what that comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xorepd.ids import PoolName
from xorepd.replication.deciding.forgetting import Terms, actions, objections
from xorepd.replication.deciding.orphans import Orphan

ORPHAN = Orphan(
    stream="pool-1/vm-1/sr-1",
    pool=PoolName("dr"),
    sr="dr-storage",
    replica="replica-1",
    name="[XO Backup web] web01",
    vm="vm-1",
    job="web",
    points=3,
    newest_point_at=None,
    source="prod",
    source_vm_exists=True,
    snapshots=1,
    disks=8,
    known=True,
)
USED = replace(ORPHAN, signs_of_use=("was written to (root)", "has snapshots of others (by hand)"))
UP = replace(USED, power_state="Running")
STRANGE = replace(ORPHAN, known=False)
CUT_OFF = replace(ORPHAN, source="")
DOUBTFUL = replace(CUT_OFF, possible_job="web2")
EVERYTHING = Terms(even_if_used=True, even_if_unknown=True, leave_source=True)
KEEP = Terms(keep_replica=True)


@pytest.mark.parametrize(
    ("orphan", "terms", "why"),
    [
        (ORPHAN, Terms(), ""),
        (ORPHAN, KEEP, ""),
        (USED, Terms(), "was written to (root) and has snapshots of others (by hand); say"),
        (USED, Terms(even_if_used=True), ""),
        (USED, KEEP, ""),
        (UP, EVERYTHING, "its replica is running; shut it down first"),
        (UP, KEEP, ""),
        (STRANGE, Terms(), "another daemon may maintain it"),
        (STRANGE, KEEP, "another daemon may maintain it"),
        (STRANGE, Terms(even_if_unknown=True), ""),
        (CUT_OFF, Terms(), "or say --leave-source"),
        (CUT_OFF, Terms(leave_source=True), ""),
        (DOUBTFUL, EVERYTHING, "job web2 has this target"),
    ],
)
def test_what_somebody_may_miss_is_destroyed_only_when_it_is_said(
    orphan: Orphan, terms: Terms, why: str
) -> None:
    found = objections(orphan, terms)

    assert bool(found) == bool(why)
    assert why in "; ".join(found)


@pytest.mark.parametrize(
    ("orphan", "terms", "expected"),
    [
        (
            ORPHAN,
            Terms(),
            (
                "destroy 3 restore points",
                "release 1 snapshot of the source VM on pool prod",
                "destroy the replica [XO Backup web] web01 with its disks",
            ),
        ),
        (
            replace(ORPHAN, replica="", points=1, memories=1, snapshots=0),
            Terms(),
            (
                "destroy 1 restore point",
                "destroy 1 suspended VM beside its points",
                "destroy 8 disks without a VM",
            ),
        ),
        (
            replace(ORPHAN, points=1, snapshots=0),
            KEEP,
            (
                "destroy 1 restore point",
                "make [XO Backup web] web01 an ordinary VM, which may be started",
            ),
        ),
        (
            replace(ORPHAN, replica="", points=0, source="", disks=2),
            EVERYTHING,
            ("leave what the source pool has of it", "destroy 2 disks without a VM"),
        ),
    ],
)
def test_it_is_said_in_its_order_what_will_be_done(
    orphan: Orphan, terms: Terms, expected: tuple[str, ...]
) -> None:
    assert actions(orphan, terms) == expected
