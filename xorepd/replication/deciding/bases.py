"""What a disk can be sent against: a base for a delta, or a disk to compare with. Pure.

A base is a snapshot of the source disk whose content a disk on the target holds: the same UUID is
recorded on both sides, and neither disk has been written to since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from xorepd.replication.deciding.evidence import Evidence, Policy, SourceDisk
from xorepd.replication.deciding.modes import FullReason, Resync, ResyncReason
from xorepd.replication.deciding.reader_choice import Facts
from xorepd.replication.format.evidence import PointDisk
from xorepd.replication.format.foreign import Copy
from xorepd.replication.format.ownership import Content

FURTHEST_LAST = (
    FullReason.BASE_GONE_ON_SOURCE,
    FullReason.BASE_GONE_ON_TARGET,
    FullReason.BASE_CHANGED,
    FullReason.POINT_CHANGED,
    FullReason.CONTENT_UNKNOWN,
    FullReason.DISK_SHRANK,
    FullReason.CHANGES_UNKNOWN,
)
"""Why a disk on the target is no base, in the order of the checks. If several disks are none, the
plan gives the reason of the one that passed most checks."""


@dataclass(frozen=True, slots=True)
class AskOffer:
    """What does the source offer for a disk, against a base?"""

    disk: str
    """UUID of the source disk."""
    base: str
    """UUID of the source snapshot's disk."""


@dataclass(frozen=True, slots=True)
class AskSample:
    """Is a sample of a copy of other software equal to its base?"""

    copy: Copy


Question = AskOffer | AskSample


@dataclass(frozen=True, slots=True)
class Base:
    """A base, or a disk on the target that nearly has one."""

    uuid: str
    """Of the source snapshot's disk; empty where it is not known."""
    onto: str
    """UUID of the target's disk."""
    number: int = 1
    """Which delta one against it would be since the disk was sent whole."""
    against: FullReason | None = None
    """Why no delta can be sent against it; None: one can."""
    question: Question | None = None
    """What has to be asked before such a delta is sent."""
    is_ours: bool = True


def possible_bases(disk: SourceDisk, evidence: Evidence, policy: Policy) -> list[Base]:
    """Return the disks on the target that are copies of a source disk, best first."""
    ours = [_ours(disk, copy, evidence, policy) for copy in _copies_of_ours(disk, evidence)]
    return ours + [_theirs(disk, copy, evidence, policy) for copy in _of_others(disk, evidence)]


def why_no_delta(evidence: Evidence, bases: Sequence[Base]) -> FullReason:
    """Return why none of the possible bases is one."""
    if any(base.against is FullReason.CHANGES_UNKNOWN for base in bases):
        return FullReason.CHANGES_UNKNOWN
    return _why_none_of_ours(evidence, bases)


def comparisons(
    disk: SourceDisk, evidence: Evidence, policy: Policy, bases: Sequence[Base]
) -> Iterator[Resync]:
    """Yield the comparisons that can replace a delta, best first; none if the job allows none."""
    if not policy.resync:
        return
    for base in bases:
        if base.against is FullReason.CHANGES_UNKNOWN:
            yield Resync(base.onto, ResyncReason.CHANGES_UNKNOWN, base.number)
    yield from _comparisons_with_ours(disk, evidence, _why_none_of_ours(evidence, bases))
    yield from _comparisons_with_theirs(disk, evidence, policy)


def is_silent(facts: Facts, policy: Policy) -> bool:
    """Return whether a base does not tell what changed since, so that no delta can be sent.

    If the base has data and the job allows no comparison, the whole disk is read and sent into a
    clone of the base: that is a delta, too.
    """
    return facts.can_only_be_compared and (policy.resync or facts.is_bare)


# -- restore points ------------------------------------------------------------------------------


def _copies_of_ours(disk: SourceDisk, evidence: Evidence) -> list[PointDisk]:
    """Return the disks of restore points that are copies of a source disk, newest first.

    They are told by their content as well: a revert gives the VM another disk, which takes over the
    snapshots of the old one.
    """
    on_source = _bases_of(disk, evidence)
    return [
        copy
        for point in evidence.points
        for copy in point.disks
        if copy.disk == disk.uuid or copy.snapshot in on_source
    ]


def _bases_of(disk: SourceDisk, evidence: Evidence) -> dict[str, Content]:
    """Return the snapshots of a source disk, and whether they hold what they held."""
    return {base.uuid: base.content for base in evidence.bases if base.disk == disk.uuid}


def _ours(disk: SourceDisk, copy: PointDisk, evidence: Evidence, policy: Policy) -> Base:
    base = Base(copy.snapshot, copy.uuid, copy.deltas + 1)
    against = _not_proven(disk, copy, _bases_of(disk, evidence))
    if against is not None:
        return replace(base, against=against)
    return _as_offered(disk, base, evidence, policy)


def _not_proven(
    disk: SourceDisk, copy: PointDisk, on_source: Mapping[str, Content]
) -> FullReason | None:
    """Return why a disk of a restore point has no base; None if both sides prove that it has."""
    if copy.snapshot not in on_source:
        return FullReason.BASE_GONE_ON_SOURCE
    if not copy.is_usable:
        return FullReason.BASE_GONE_ON_TARGET
    if on_source[copy.snapshot] is Content.CHANGED:
        return FullReason.BASE_CHANGED
    match copy.content:
        case Content.CHANGED:
            return FullReason.POINT_CHANGED
        case Content.UNKNOWN:
            return FullReason.CONTENT_UNKNOWN
        case Content.PROVEN:
            return FullReason.DISK_SHRANK if copy.virtual_size > disk.virtual_size else None


def _as_offered(disk: SourceDisk, base: Base, evidence: Evidence, policy: Policy) -> Base:
    """Return a proven base with what the source offers against it."""
    facts = evidence.offers.get((disk.uuid, base.uuid))
    if facts is None:
        return replace(base, question=AskOffer(disk.uuid, base.uuid))
    if is_silent(facts, policy):
        return replace(base, against=FullReason.CHANGES_UNKNOWN)
    return base


def _why_none_of_ours(evidence: Evidence, bases: Sequence[Base]) -> FullReason:
    against = [base.against for base in bases if base.is_ours and base.against is not None]
    if not evidence.points:
        return FullReason.FIRST_RUN
    if not against:
        lost = any(copy.is_lost for point in evidence.points for copy in point.disks)
        return FullReason.MARKS_LOST if lost else FullReason.NEW_DISK
    return max(against, key=FURTHEST_LAST.index)


def _comparisons_with_ours(
    disk: SourceDisk, evidence: Evidence, why: FullReason
) -> Iterator[Resync]:
    """Yield the comparisons with disks of restore points, those that hold what they held first."""
    alike = [*_copies_of_ours(disk, evidence), *_former(disk, evidence)]
    alike.sort(key=lambda copy: copy.content is not Content.PROVEN)
    for copy in alike:
        if copy.is_usable and copy.virtual_size <= disk.virtual_size:
            moved = why is FullReason.NEW_DISK
            reason = ResyncReason.DISK_MOVED if moved else ResyncReason(why.value)
            yield Resync(copy.uuid, reason, copy.deltas + 1)


def _former(disk: SourceDisk, evidence: Evidence) -> Iterator[PointDisk]:
    """Yield copies of a disk that is gone, and that had the same device and the same size."""
    others = set(evidence.present) - {disk.uuid}
    for point in evidence.points:
        for copy in point.disks:
            is_gone = copy.disk not in others
            if is_gone and copy.device == disk.device and copy.virtual_size == disk.virtual_size:
                yield copy


# -- copies of other software --------------------------------------------------------------------


def _of_others(disk: SourceDisk, evidence: Evidence) -> list[Copy]:
    return [copy for copy in evidence.copies if copy.disk == disk.uuid]


def _theirs(disk: SourceDisk, copy: Copy, evidence: Evidence, policy: Policy) -> Base:
    if copy.base is None:
        return Base("", copy.onto.uuid, against=FullReason.BASE_GONE_ON_SOURCE, is_ours=False)
    base = Base(copy.base.uuid, copy.onto.uuid, is_ours=False)
    if not _is_believed(copy, policy):
        return replace(base, against=FullReason.CONTENT_UNKNOWN)
    is_equal = evidence.samples.get(copy.onto.uuid)
    if is_equal is False:
        return replace(base, against=FullReason.POINT_CHANGED)
    base = _as_offered(disk, base, evidence, policy)
    is_open = is_equal is None and copy.base.has_data  # without data there is nothing to compare
    return replace(base, question=AskSample(copy)) if is_open and base.against is None else base


def _is_believed(copy: Copy, policy: Policy) -> bool:
    """Return whether a copy of other software is a base, if a sample of it is equal."""
    return copy.base is not None and copy.is_proven and policy.believes_copies


def _comparisons_with_theirs(
    disk: SourceDisk, evidence: Evidence, policy: Policy
) -> Iterator[Resync]:
    for copy in _of_others(disk, evidence):
        if not _is_believed(copy, policy):
            yield Resync(copy.onto.uuid, ResyncReason.COPY_OF_OTHERS)
