"""What to do with what an earlier run left, decided from both inventories. Pure.

The commit point of a run is the record of the restore point on the target: `VM.snapshot` makes it
last, after its disks. Before it, recovery rolls back; after it, recovery rolls forward.

    left behind                                          →
    source snapshot, wanted, no point holds it             release: destroy unless others want it
    source snapshot, wanted, a point holds it              hold
    source snapshot, for no target                         destroy
    replica in a commit, its restore point exists          finish the commit
    replica in a commit, nothing swapped yet               end the commit
    replica in a commit, no restore point of it            put the old disks back
    the same, and there were no old disks (first run)      destroy the replica, unless people put
                                                           disks of theirs into it
    disks of ours that belong to no VM                     destroy, unless something wrote to them
    source snapshot and disks of an interrupted transfer   keep for a while (see `resume`)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from xorepd.replication.format.inventory import (
    Marked,
    SourceSide,
    TargetSide,
    VmSnapshot,
    is_live,
)
from xorepd.replication.format.marks import Commit, Use


@dataclass(frozen=True, slots=True)
class FinishCommit:
    """The restore point is there: mark it, and release the replica from the commit."""

    point: VmSnapshot


@dataclass(frozen=True, slots=True)
class UndoCommit:
    """Put the replica's old disks back."""

    commit: Commit


@dataclass(frozen=True, slots=True)
class CancelCommit:
    """Nothing has been swapped yet: the replica only has to be told so."""


@dataclass(frozen=True, slots=True)
class DestroyReplica:
    """It was created for a first restore point that never came."""


def decide_commit(
    side: TargetSide,
) -> FinishCommit | UndoCommit | CancelCommit | DestroyReplica | None:
    """Return what becomes of a replica that a run left in the middle of its commit."""
    if side.mark is None:
        return None
    commit = side.mark.commit
    if commit is None:
        # Signed, but its first run never came to its commit: it is an empty, unfinished shell.
        return None if side.mark.snapshot or side.live else DestroyReplica()
    point = side.fresh or next((p for p in side.points if p.mark.run == commit.run), None)
    if point is not None:
        return FinishCommit(point)
    present = {vbd.userdevice: vdi.uuid for vbd, vdi in side.live}
    if commit.old and commit.old.items() <= present.items():
        return CancelCommit()
    has_others = any(not is_live(vdi, side.mark.stream) for _, vdi in side.live)
    if commit.old or has_others or _has_points(side):
        return UndoCommit(commit)
    return DestroyReplica()


def _has_points(side: TargetSide) -> bool:
    """Return whether a replica without disks has restore points: its source had no disks, or they
    were removed.
    """
    replica = side.replica
    return replica is not None and any(p.vm.snapshot_of == replica.ref for p in side.points)


@dataclass(frozen=True, slots=True)
class SourceCleaning:
    """What a run for one target does on the source side, before its first step and after its last.

    To be *released* means that this target is struck off; what stands for no other is destroyed.
    """

    destroy: tuple[VmSnapshot, ...]
    hold: tuple[VmSnapshot, ...]
    release: tuple[VmSnapshot | Marked, ...]
    """Snapshots, and disks of snapshots whose record is gone."""

    @property
    def is_needed(self) -> bool:
        return bool(self.destroy or self.hold or self.release)


def decide_source(
    source: SourceSide, target: TargetSide, sr: str, *, spared: str = ""
) -> SourceCleaning:
    """Return what becomes of our snapshots of the source VM, as far as one target has a say.

    What is held stays even when no restore point is seen that needs it: a target that shows less
    than it has must not cost the base. The next successful run releases it.

    Args:
        sr: UUID of the target SR.
        spared: UUID of the snapshot from which an interrupted run can be continued, if any.
    """
    held = set[str]().union(*(point.contents for point in target.points))
    based = set[str]().union(*(group.contents for group in source.snapshots))
    newest = target.points[0].contents if target.points else set[str]()
    # What older points hold is a base as well, but only while the newest one has none.
    needed = newest if newest and newest <= based else held
    replicated = {point.mark.snapshot for point in target.points}
    common = [
        group
        for group in source.snapshots
        if group.contents & held or group.vm.uuid in replicated  # a VM may have no disks
    ]
    # A target that has the content needs the base, even if its key was lost.
    claimed = [group for group in common if group is common[0] or sr in group.uses]
    return SourceCleaning(
        destroy=source.unsigned,
        hold=tuple(group for group in claimed if group.uses.get(sr, Use.WANTED) is Use.WANTED),
        release=(
            *(
                group
                for group in source.snapshots
                if group not in claimed
                and group.vm.uuid != spared
                and (group.uses.get(sr) is Use.WANTED or not group.uses)
            ),
            *(
                disk
                for disk in source.orphans
                if disk.vdi.uuid not in needed
                and (disk.uses.get(sr) is Use.WANTED or not disk.uses)
            ),
        ),
    )


@dataclass(frozen=True, slots=True)
class Release:
    """One target is struck off a source snapshot, or off a disk whose snapshot's record is gone."""

    what: VmSnapshot | Marked
    sr: str


def decide_prune(
    source: SourceSide,
    target: TargetSide,
    sr: str,
    *,
    hold_bases: float,
    busy: Collection[str] = (),
) -> list[Release]:
    """Return which targets no longer need which source snapshots, after a commit.

    This target keeps what its newest restore point holds. Each other target releases its own, but
    one that has had no run for too long is released here.

    Args:
        sr: UUID of the target SR whose run this is.
        hold_bases: seconds for which a target without runs keeps its base.
        busy: UUIDs of the target SRs of current runs.
    """
    newest = target.points[:1]
    own = {point.mark.snapshot for point in newest}
    content = set[str]().union(*(point.contents for point in newest))
    releases = [
        Release(group, sr)
        for group in source.snapshots
        if group.vm.uuid not in own and (sr in group.uses or not group.uses)
    ]
    releases += [
        Release(disk, sr)
        for disk in source.orphans
        if disk.vdi.uuid not in content and (sr in disk.uses or not disk.uses)
    ]
    everything: list[VmSnapshot | Marked] = [*source.snapshots, *source.orphans]
    newest_one = max(everything, key=lambda what: what.mark.order, default=None)
    now = newest_one.mark.taken_at if newest_one else None  # moments may be wrong, orders are not
    for what in everything:
        taken = what.mark.taken_at
        if now is None or taken is None or (now - taken).total_seconds() <= hold_bases:
            continue
        releases += [Release(what, other) for other in what.uses if other not in {sr, *busy}]
    return releases
