"""Whether what an interrupted run left can be continued, decided from both inventories. Pure.

Data is sent in ascending order, so one number tells how far a disk came: the target pool has
confirmed everything below that offset, which is kept on the staging disk. Data that was on its way
above it may have arrived or not. It belongs to the same snapshot and place, and is sent again.

    both exist, and agree                                        →
    source snapshot, wanted by this target, young enough           read it again, take no new one
    staging disk of its content, its base and origin still there   continue at the confirmed offset
    staging disk of its content, otherwise                         sweep it, plan that disk again
    nothing confirmed on any disk                                  sweep everything
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from xorepd.errors import (
    ConsentMissing,
    DigestMismatch,
    Refused,
    TransportFailed,
    XorepdError,
)
from xorepd.ids import VdiUuid
from xorepd.replication.deciding.modes import (
    Delta,
    Full,
    FullReason,
    Mode,
    Resync,
    ResyncReason,
)
from xorepd.replication.format.inventory import Marked, SourceSide, TargetSide, VmSnapshot
from xorepd.replication.format.marks import Mark, Use, confirmed_on
from xorepd.replication.format.ownership import Content

MOST_TRIES = 5
"""How many runs begin at one offset. If all of them stop there, the next one will, too."""


@dataclass(frozen=True, slots=True)
class Begun:
    """One disk that an interrupted run has sent a part of."""

    staging: Marked
    how: Mode
    """As it was begun."""
    start: int
    """Offset in bytes: everything below it has arrived."""
    tries: int
    """How many runs have begun there and come no further."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What an interrupted run left and the next one continues."""

    snapshot: VmSnapshot
    """Of the source VM."""
    disks: Mapping[str, Begun] = field(default_factory=dict)
    """By UUID of the snapshot's disk. A disk that was not begun is missing."""

    @property
    def spared(self) -> Collection[VdiUuid]:
        """UUIDs of the staging disks: no sweep takes them."""
        return {begun.staging.vdi.uuid for begun in self.disks.values()}


def find_leftover(
    source: SourceSide,
    target: TargetSide,
    sr: str,
    *,
    now: datetime,
    within: float,
    others: Collection[str] = (),
) -> Leftover | None:
    """Return what can be continued, if anything.

    Args:
        sr: UUID of the target SR.
        now: by the clock of the source pool.
        within: the most seconds that the snapshot may be old; 0 continues nothing.
        others: UUIDs of bases and copies that other software made and that still exist.
    """
    newest = target.points[0].mark.order if target.points else 0
    for group in source.snapshots:
        age = (now - group.vm.snapshot_time).total_seconds()
        if group.uses.get(sr) is not Use.WANTED or age >= within or group.mark.order <= newest:
            continue
        if not _can_be_read(source, group):
            continue
        disks = {
            begun.staging.mark.snapshot: begun for begun in _begun(source, target, group, others)
        }
        if any(begun.start for begun in disks.values()):
            return Leftover(group, disks)
    return None


def _can_be_read(source: SourceSide, group: VmSnapshot) -> bool:
    """Return whether all of a snapshot is there, and its disks are still those of the VM."""
    present = {vdi.uuid for vdi in source.drives}
    signed = {str(disk.vdi.uuid) for disk in group.disks}
    return signed.issuperset(group.mark.disks.values()) and all(
        disk.vdi.has_data and disk.content is not Content.CHANGED and disk.mark.disk in present
        for disk in group.disks
    )


def _begun(
    source: SourceSide, target: TargetSide, group: VmSnapshot, others: Collection[str]
) -> Iterator[Begun]:
    """Yield the disks that can be continued; of two with one content the farther one comes last."""
    contents = {disk.mark.snapshot: disk.vdi for disk in group.disks}
    bases = {base.uuid for base in source.bases() if base.content is not Content.CHANGED}
    bases.update(others)
    origins = {
        disk.vdi.uuid
        for point in target.points
        for disk in point.disks
        if disk.vdi.has_data and disk.content is not Content.CHANGED
    }.union(others)
    found = []
    for staging in target.staging:
        content, mark = contents.get(VdiUuid(staging.mark.snapshot)), staging.mark
        if content is None or staging.vdi.virtual_size > content.virtual_size:
            continue
        if (mark.onto and mark.onto not in origins) or (mark.base and mark.base not in bases):
            continue
        how = _how(mark)
        start, tries = confirmed_on(staging.vdi.other_config, staging.vdi.uuid)
        if how is not None and start <= content.virtual_size and tries < MOST_TRIES:
            found.append(Begun(staging, how, start, tries))
    yield from sorted(found, key=lambda begun: begun.start)


def _how(mark: Mark) -> Mode | None:
    """Return how a staging disk was begun; None where its mark does not say."""
    try:
        if mark.base:
            return Delta(mark.base, mark.onto, mark.deltas) if mark.onto else None
        if mark.onto:
            return Resync(mark.onto, ResyncReason(mark.reason), mark.deltas)
        return Full(FullReason(mark.reason))
    except ValueError:
        return None


def may_be_resumed(error: BaseException) -> bool:
    """Return whether what a failed run leaves is worth keeping for a later one.

    Not after a refusal, damage, or a fault of ours or of a transport: the next run would fail in
    the same way. But consent to a full may still come.
    """
    if isinstance(error, ConsentMissing):
        return True
    if isinstance(error, Refused | DigestMismatch | TransportFailed):
        return False
    return isinstance(error, XorepdError)
