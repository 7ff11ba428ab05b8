"""What to do with what an earlier run left, decided from both inventories. Pure.

The commit point of a run is the record of the restore point on the target: `VM.snapshot` makes it
last, after its disks. Before it, recovery rolls back; after it, recovery rolls forward.

    left behind                                          →
    source snapshot, not confirmed, no point holds it      destroy
    source snapshot, not confirmed, a point holds it       confirm
    replica in a commit, its restore point exists          finish the commit
    replica in a commit, no restore point of it            put the old disks back
    the same, and there were no old disks (first run)      destroy the replica
    disks of ours that belong to no VM                     destroy
    disks of a snapshot that XAPI did not finish           destroy
"""

from __future__ import annotations

from dataclasses import dataclass

from xorepd.replication.inventory import Group, Marked, SourceSide, TargetSide
from xorepd.replication.markers import Commit


@dataclass(frozen=True, slots=True)
class FinishCommit:
    """The restore point is there: mark it, and release the replica from the commit."""

    point: Group


@dataclass(frozen=True, slots=True)
class UndoCommit:
    """Put the replica's old disks back."""

    commit: Commit


@dataclass(frozen=True, slots=True)
class DestroyReplica:
    """It was created for a first restore point that never came."""


def decide_commit(side: TargetSide) -> FinishCommit | UndoCommit | DestroyReplica | None:
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
    if commit.old or _has_points(side):
        return UndoCommit(commit)
    return DestroyReplica()


def _has_points(side: TargetSide) -> bool:
    """Return whether a replica without disks has been one before: its source had none, or somebody
    took them off.
    """
    replica = side.replica
    return replica is not None and any(p.vm.snapshot_of == replica.ref for p in side.points)


@dataclass(frozen=True, slots=True)
class SourceCleaning:
    """What is to be done on the source side."""

    destroy: tuple[Group, ...]
    confirm: tuple[Group, ...]
    destroy_disks: tuple[Marked, ...]


def decide_source(source: SourceSide, target: TargetSide) -> SourceCleaning:
    """Return what becomes of our snapshots of the source VM, before a run.

    A confirmed snapshot stays even when no restore point is seen that needs it: a target that
    shows less than it has must not cost the base. The next successful run removes it.
    """
    held = set[str]().union(*(point.contents for point in target.points))
    based = set[str]().union(*(group.contents for group in source.snapshots))
    newest = target.points[0].contents if target.points else set[str]()
    # What older points hold is a base as well, but only while the newest one has none.
    needed = newest if newest and newest <= based else held
    return SourceCleaning(
        destroy=source.unsigned
        + tuple(
            group
            for group in source.snapshots
            if not group.mark.confirmed and not group.contents & held
        ),
        confirm=tuple(
            group
            for group in source.snapshots
            if not group.mark.confirmed and group.contents & held
        ),
        destroy_disks=tuple(disk for disk in source.orphans if disk.vdi.uuid not in needed),
    )
