"""The plan of a run: ask both pools what the plan depends on, until no question is left."""

from __future__ import annotations

import structlog

from xorepd.errors import Refused
from xorepd.replication.context.assignment import Assignment
from xorepd.replication.deciding.bases import AskOffer, AskSample, Question
from xorepd.replication.deciding.evidence import Evidence, Policy
from xorepd.replication.deciding.modes import Delta, Full, reason_of
from xorepd.replication.deciding.plan import VmPlan, plan_vm
from xorepd.replication.format.inventory import Marked, VmSnapshot, disks_of
from xorepd.replication.transfer.foreign_base import is_alike
from xorepd.replication.transfer.reading import known_facts
from xorepd.replication.transfer.staging import PlannedDisk
from xorepd.xapi.cache import PoolCache

log = structlog.get_logger(__name__)


async def plan_snapshot(a: Assignment, evidence: Evidence, snapshot: VmSnapshot) -> VmPlan:
    """Return how the disks of a snapshot are sent.

    Args:
        evidence: From before the snapshot.

    Raises:
        XapiError: a base is gone by now.
    """
    evidence, policy = evidence.of_snapshot(snapshot), Policy.of(a.job)
    plan = plan_vm(evidence, policy)
    while plan.questions:
        for question in plan.questions:
            evidence = await _ask(a, snapshot, evidence, question)
        plan = plan_vm(evidence, policy)
    _tell(evidence, plan)
    return plan


def _tell(evidence: Evidence, plan: VmPlan) -> None:
    """Log how each disk is sent."""
    theirs = {copy.onto.uuid for copy in evidence.copies}
    for each in plan.disks:
        log.info(
            "disk.planned",
            device=each.disk.device,
            mode=type(each.how).__name__.lower(),
            reason=reason_of(each.how),
            is_resumed=each.begun is not None,
            passed=[f"{passed.onto} ({passed.reason.value})" for passed in each.passed],
        )
        if isinstance(each.how, Full) or each.begun is not None or each.how.onto not in theirs:
            continue
        if isinstance(each.how, Delta):
            log.info("base.adopted", disk=each.disk.name, base=each.how.base, onto=each.how.onto)
        else:
            log.info("copy.adopted", disk=each.disk.name, onto=each.how.onto)


def planned_disks(cache: PoolCache, snapshot: VmSnapshot, plan: VmPlan) -> list[PlannedDisk]:
    """Return the disks of a snapshot, each with its plan.

    How a disk is attached is what the snapshot says: for the source VM it may have changed since.

    Raises:
        Refused: a disk was detached from the snapshot.
    """
    drives = {vdi.uuid: vbd for vbd, vdi in disks_of(cache, snapshot.vm)}
    planned = []
    for each in plan.disks:
        disk = _content(snapshot, each.disk.uuid)
        vbd = drives.get(disk.vdi.uuid)
        if vbd is None:
            raise Refused(
                f"{cache.describe('VDI', disk.vdi.ref)} was detached from "
                f"{cache.describe('VM', snapshot.vm.ref)}, of which this run copies it; the "
                "next run takes a new snapshot"
            )
        planned.append(PlannedDisk(disk, each.how, vbd.bootable, vbd.mode, each.begun))
    return planned


async def _ask(
    a: Assignment, snapshot: VmSnapshot, evidence: Evidence, question: Question
) -> Evidence:
    """Return the evidence with the answer to a question."""
    pair = a.pair
    match question:
        case AskOffer(disk=disk, base=uuid):
            base = pair.source.disk(uuid)
            facts = await known_facts(a, _content(snapshot, disk).vdi, base)
            if facts.is_bare and facts.changes is None:
                log.warning("base.cbt_unusable", base=uuid, reason=facts.without_changes)
            return evidence.with_offer(disk, uuid, facts)
        case AskSample(copy=copy):
            assert copy.base is not None, "only a copy with its base is compared with it"
            name = _content(snapshot, copy.disk).vdi.name_label
            what = f"disk {name} of VM {pair.vm.name_label}"
            is_equal = await is_alike(a, copy.base, copy.onto, what)
            return evidence.with_sample(copy.onto.uuid, is_equal)


def _content(snapshot: VmSnapshot, disk: str) -> Marked:
    """Return the disk of a snapshot that is one of a source disk."""
    return next(each for each in snapshot.disks if each.mark.disk == disk)
