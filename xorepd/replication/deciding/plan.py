"""The plan of a VM: how each of its disks is sent, decided from evidence and policy. Pure.

A base is a snapshot of the source disk whose content a disk on the target holds: the same UUID is
recorded on both sides, and neither disk has been written to since. The unit is the disk, the unit
of commit is the VM, so a VM with a new disk sends that one whole and the others as deltas.

    resume      what an interrupted run has begun is continued, in the mode of that run
    delta       against our newest base that serves; else against one of other software
    resync      if the job allows it: with a disk that has a base, if nothing tells what changed;
                else with a disk of our restore points; else with a copy of other software
    full        if nothing else is possible, or if the job wants one after so many deltas

Some evidence costs calls or reading. A plan takes it for granted and names the question. The caller
asks it and plans again with the answer, until a plan has no question. This ends, because an answer
only rules something out. So the first plan, made before anything is asked, is the best possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from xorepd.replication.deciding.bases import (
    AskOffer,
    Question,
    comparisons,
    is_silent,
    possible_bases,
    why_no_delta,
)
from xorepd.replication.deciding.consent import fulls_held
from xorepd.replication.deciding.evidence import Evidence, Policy, SourceDisk
from xorepd.replication.deciding.modes import Delta, Full, FullReason, Mode, Resync, ResyncReason
from xorepd.replication.deciding.resume import Begun


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A disk on the target that is no base."""

    onto: str
    """Its UUID."""
    reason: FullReason
    """Why, as if it were the only one."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """How one disk is sent."""

    disk: SourceDisk
    how: Mode
    begun: Begun | None = None
    """What an interrupted run has sent of it, if this run continues that."""
    question: Question | None = None
    """What the caller has to ask first; the plan takes a good answer for granted."""
    passed: tuple[PassedOver, ...] = ()
    """Disks on the target that would have been better bases, and why they are none."""


@dataclass(frozen=True, slots=True)
class VmPlan:
    """How the disks of a VM are sent."""

    disks: tuple[DiskPlan, ...]
    held: Mapping[str, FullReason] = field(default_factory=dict)
    """Device of each disk that would be sent whole and needs consent that is missing → why."""

    @property
    def questions(self) -> tuple[Question, ...]:
        """What the caller has to ask before it carries out the plan."""
        return tuple(disk.question for disk in self.disks if disk.question is not None)

    @property
    def has_full(self) -> bool:
        return any(isinstance(disk.how, Full) for disk in self.disks)


def plan_vm(evidence: Evidence, policy: Policy) -> VmPlan:
    """Return how the disks of a VM are sent."""
    disks = tuple(_plan_disk(disk, evidence, policy) for disk in evidence.disks)
    fulls = {
        plan.disk.device: plan.how.reason
        for plan in disks
        if isinstance(plan.how, Full) and plan.begun is None
    }
    begun = [plan.how.reason for plan in disks if isinstance(plan.how, Full) and plan.begun]
    return VmPlan(disks, fulls_held(policy.full, fulls, begun))


def _plan_disk(disk: SourceDisk, evidence: Evidence, policy: Policy) -> DiskPlan:
    begun = evidence.begun.get(disk.uuid)
    if begun is not None:
        resumed = _resume(disk, begun, evidence, policy)
        if resumed is not None:
            return resumed
    plan = _plan_anew(disk, evidence, policy)
    if not isinstance(plan.how, Full) and _is_due(plan.how.number, policy):
        return replace(plan, how=Full(FullReason.DUE), question=None)
    return plan


def _is_due(number: int, policy: Policy) -> bool:
    return policy.full_every is not None and number > policy.full_every


def _resume(disk: SourceDisk, begun: Begun, evidence: Evidence, policy: Policy) -> DiskPlan | None:
    """Return how a disk that was begun is continued; None if it needs a new plan."""
    how = begun.how
    if not isinstance(how, Delta):
        return DiskPlan(disk, how, begun)
    facts = evidence.offers.get((disk.uuid, how.base))
    if facts is None:
        return DiskPlan(disk, how, begun, AskOffer(disk.uuid, how.base))
    if not is_silent(facts, policy):
        return DiskPlan(disk, how, begun)
    if not policy.resync:
        return None
    return DiskPlan(disk, Resync(how.onto, ResyncReason.CHANGES_UNKNOWN, how.number), begun)


def _plan_anew(disk: SourceDisk, evidence: Evidence, policy: Policy) -> DiskPlan:
    bases = possible_bases(disk, evidence, policy)
    passed: list[PassedOver] = []
    for base in bases:
        if base.against is None:
            how = Delta(base.uuid, base.onto, base.number)
            return DiskPlan(disk, how, question=base.question, passed=tuple(passed))
        passed.append(PassedOver(base.onto, base.against))
    compared = next(comparisons(disk, evidence, policy, bases), None)
    return DiskPlan(disk, compared or Full(why_no_delta(evidence, bases)), passed=tuple(passed))
