"""Which base each disk is sent against: decided from what both sides prove. Pure.

A base is a snapshot of the source disk whose content a restore point on the target holds: the same
UUID is recorded on both sides, and neither disk has been written to since. The unit is the disk,
the unit of commit is the VM, so a VM with a new disk sends that one whole and the others as deltas.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from xorepd.replication.format.evidence import PointDisk, RestorePoint, SourceBase
from xorepd.replication.format.ownership import Content


class FullReason(StrEnum):
    """Why a disk has to be sent whole."""

    FIRST_RUN = "first-run"
    """The target holds no restore point of this VM."""
    NEW_DISK = "new-disk"
    """No restore point holds this disk."""
    BASE_GONE_ON_SOURCE = "base-gone-on-source"
    """The target holds the disk, but the source snapshots that it holds are gone."""
    BASE_GONE_ON_TARGET = "base-gone-on-target"
    """The restore point is there, but the disk in it is gone or unusable."""
    DISK_SHRANK = "disk-shrank"
    """The base on the target is larger than the source disk; VHDs cannot shrink."""
    DUE = "due"
    """The job wants a full after so many deltas."""
    CHANGES_UNKNOWN = "changes-unknown"
    """The base has no data, and the source cannot tell what changed since."""
    POINT_CHANGED = "point-changed"
    """The restore point's disk was written to since it was taken."""
    BASE_CHANGED = "base-changed"
    """The source snapshot's disk was written to since it was taken."""
    CONTENT_UNKNOWN = "content-unknown"
    """Nothing tells whether the restore point's disk was written to."""
    MARKS_LOST = "marks-lost"
    """The restore points have lost their disks, or these have lost their marks."""


class ResyncReason(StrEnum):
    """Why both sides of a disk have to be read and compared."""

    BASE_GONE_ON_SOURCE = "base-gone-on-source"
    BASE_GONE_ON_TARGET = "base-gone-on-target"
    DISK_SHRANK = "disk-shrank"
    """An older restore point's disk is small enough."""
    DISK_MOVED = "disk-moved"
    """A disk of another UUID is where a disk was that is gone: moves to another SR look so."""
    COPY_OF_OTHERS = "copy-of-others"
    """Somebody else copied the disk to the target; the snapshot that he copied is gone."""
    CHANGES_UNKNOWN = "changes-unknown"
    """There is a base, but the source cannot tell what changed since."""
    POINT_CHANGED = "point-changed"
    BASE_CHANGED = "base-changed"
    CONTENT_UNKNOWN = "content-unknown"
    MARKS_LOST = "marks-lost"
    """A disk of a restore point is there, but has lost its marks."""


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """A disk of the source VM, to be replicated."""

    uuid: str
    device: str
    name: str
    virtual_size: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Send what changed since `base`, into a clone of `onto`."""

    base: str
    """UUID of the source snapshot's disk."""
    onto: str
    """UUID of the restore point's disk with the same content."""
    number: int = 1
    """Which one it is since the disk was sent whole."""


@dataclass(frozen=True, slots=True)
class Resync:
    """Read both sides, send what differs, into a clone of `onto`.

    Nothing depends on how alike the two are, but how much is sent.
    """

    onto: str
    """UUID of the restore point's disk."""
    reason: ResyncReason
    number: int = 1
    """Counted among the deltas since the disk was sent whole."""


@dataclass(frozen=True, slots=True)
class Full:
    """Send everything, into a new disk."""

    reason: FullReason


def choose_base(
    disk: SourceDisk,
    points: Sequence[RestorePoint],
    bases: Sequence[SourceBase],
    *,
    others: Collection[str] = (),
    resync: bool = False,
) -> Delta | Resync | Full:
    """Return how one disk is sent.

    Args:
        points: restore points of this VM on the target SR, newest first.
        bases: snapshots of the source VM's disks.
        others: UUIDs of the other disks that the source VM has now.
        resync: whether a full may be avoided by reading both sides.
    """
    on_source = {base.uuid: base.content for base in bases if base.disk == disk.uuid}
    # By content as well: after a revert the source disk is another one, and its snapshots are its.
    copies = [
        copy
        for point in points
        for copy in point.disks
        if copy.disk == disk.uuid or copy.snapshot in on_source
    ]
    how = _prove_base(disk, points, copies, on_source)
    if not isinstance(how, Full) or not resync:
        return how
    alike = [*copies, *_former(disk, points, others)]
    alike.sort(key=lambda copy: copy.content is not Content.PROVEN)
    for copy in alike:
        if copy.is_usable and copy.virtual_size <= disk.virtual_size:
            moved = how.reason is FullReason.NEW_DISK
            reason = ResyncReason.DISK_MOVED if moved else ResyncReason(how.reason.value)
            return Resync(copy.uuid, reason, copy.deltas + 1)
    return how


def _prove_base(
    disk: SourceDisk,
    points: Sequence[RestorePoint],
    copies: Sequence[PointDisk],
    on_source: Mapping[str, Content],
) -> Delta | Full:
    """Return the delta that both sides prove, or why there is none.

    Args:
        on_source: UUID of each snapshot of the disk → whether it holds what it held.
    """
    if not points:
        return Full(FullReason.FIRST_RUN)
    if not copies:
        lost = any(copy.is_lost for point in points for copy in point.disks)
        return Full(FullReason.MARKS_LOST if lost else FullReason.NEW_DISK)
    common = [copy for copy in copies if copy.snapshot in on_source]
    if not common:
        return Full(FullReason.BASE_GONE_ON_SOURCE)
    usable = [copy for copy in common if copy.is_usable]
    if not usable:
        return Full(FullReason.BASE_GONE_ON_TARGET)
    unchanged = [copy for copy in usable if on_source[copy.snapshot] is not Content.CHANGED]
    if not unchanged:
        return Full(FullReason.BASE_CHANGED)
    proven = [copy for copy in unchanged if copy.content is Content.PROVEN]
    if not proven:
        known = all(copy.content is Content.CHANGED for copy in unchanged)
        return Full(FullReason.POINT_CHANGED if known else FullReason.CONTENT_UNKNOWN)
    fitting = [copy for copy in proven if copy.virtual_size <= disk.virtual_size]
    if not fitting:
        return Full(FullReason.DISK_SHRANK)
    best = fitting[0]
    return Delta(base=best.snapshot, onto=best.uuid, number=best.deltas + 1)


def limit_deltas(how: Delta | Resync | Full, full_every: int | None) -> Delta | Resync | Full:
    """Return how a disk is sent where a job wants a full after so many deltas."""
    if not isinstance(how, Full) and full_every is not None and how.number > full_every:
        return Full(FullReason.DUE)
    return how


def without_changes(how: Delta, *, resync: bool) -> Resync | Full:
    """Return how a disk is sent whose base has no data and does not tell what changed since.

    Args:
        resync: whether a full may be avoided by reading both sides.
    """
    if resync:
        return Resync(how.onto, ResyncReason.CHANGES_UNKNOWN, how.number)
    return Full(FullReason.CHANGES_UNKNOWN)


def _former(
    disk: SourceDisk, points: Sequence[RestorePoint], others: Collection[str]
) -> Iterator[PointDisk]:
    """Yield copies of a disk that was at the same device and has the same size, and is gone."""
    for point in points:
        for copy in point.disks:
            is_gone = copy.disk not in others
            if is_gone and copy.device == disk.device and copy.virtual_size == disk.virtual_size:
                yield copy
