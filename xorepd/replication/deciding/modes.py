"""The three modes in which a disk is sent, and the reasons for the two that cost more. Pure.

mode      reads                                  sends              into
delta     what changed since the base            all of that        a clone of the base's copy
resync    both sides, whole                      what differs       a clone of a similar disk
full      the source, whole                      all of that        a new disk
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    """The restore points have lost their disks, or the disks have lost their marks."""


class ResyncReason(StrEnum):
    """Why both sides of a disk have to be read and compared."""

    BASE_GONE_ON_SOURCE = "base-gone-on-source"
    BASE_GONE_ON_TARGET = "base-gone-on-target"
    DISK_SHRANK = "disk-shrank"
    """An older restore point's disk is small enough."""
    DISK_MOVED = "disk-moved"
    """The VM has another disk in the place of one that is gone. A move to another SR looks so."""
    COPY_OF_OTHERS = "copy-of-others"
    """Other software copied the disk to the target; the snapshot that it copied is gone."""
    CHANGES_UNKNOWN = "changes-unknown"
    """There is a base, but the source cannot tell what changed since."""
    POINT_CHANGED = "point-changed"
    BASE_CHANGED = "base-changed"
    CONTENT_UNKNOWN = "content-unknown"
    MARKS_LOST = "marks-lost"
    """A disk of a restore point is there, but has lost its marks."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Send what changed since `base`, into a clone of `onto`."""

    base: str
    """UUID of the source snapshot's disk."""
    onto: str
    """UUID of the target's disk with the same content."""
    number: int = 1
    """It is the nth delta since the disk was sent whole, from 1."""


@dataclass(frozen=True, slots=True)
class Resync:
    """Read both sides, send what differs, into a clone of `onto`.

    The result is right however much the two differ; only the amount sent depends on it.
    """

    onto: str
    """UUID of the target's disk."""
    reason: ResyncReason
    number: int = 1
    """Counted among the deltas since the disk was sent whole."""


@dataclass(frozen=True, slots=True)
class Full:
    """Send everything, into a new disk."""

    reason: FullReason


Mode = Delta | Resync | Full


def reason_of(how: Mode) -> str:
    """Return why a disk is not sent as a delta; empty where it is."""
    return "" if isinstance(how, Delta) else how.reason.value
