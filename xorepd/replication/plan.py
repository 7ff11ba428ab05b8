"""Which base each disk is sent against: decided from what both sides prove. Pure.

A base is a snapshot of the source disk whose content a restore point on the target holds: the same
UUID is recorded on both sides. The unit is the disk, the unit of commit is the VM, so a VM with a
new disk sends that one whole and the others as deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class SourceBase:
    """A snapshot of a source disk that still holds its data."""

    uuid: str
    disk: str
    """UUID of the source disk."""


@dataclass(frozen=True, slots=True)
class PointDisk:
    """A disk in a restore point."""

    uuid: str
    disk: str
    """UUID of the source disk."""
    content: str
    """UUID of the source snapshot's disk whose content it is."""
    virtual_size: int
    is_usable: bool
    """It exists, holds data, and may be cloned."""
    deltas: int = 0
    """How many it has had since it was sent whole."""


@dataclass(frozen=True, slots=True)
class Point:
    """A restore point, as far as base choice looks at it."""

    uuid: str
    disks: tuple[PointDisk, ...]


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
class Full:
    """Send everything, into a new disk."""

    reason: FullReason


def choose_base(
    disk: SourceDisk, points: Sequence[Point], bases: Sequence[SourceBase]
) -> Delta | Full:
    """Return how one disk is sent.

    Args:
        points: restore points of this VM on the target SR, newest first.
        bases: snapshots of the source VM's disks that still hold data.
    """
    if not points:
        return Full(FullReason.FIRST_RUN)
    on_source = {base.uuid for base in bases if base.disk == disk.uuid}
    # By content as well: after a revert the source disk is another one, and its snapshots are its.
    copies = [
        copy
        for point in points
        for copy in point.disks
        if copy.disk == disk.uuid or copy.content in on_source
    ]
    if not copies:
        return Full(FullReason.NEW_DISK)
    common = [copy for copy in copies if copy.content in on_source]
    if not common:
        return Full(FullReason.BASE_GONE_ON_SOURCE)
    usable = [copy for copy in common if copy.is_usable]
    if not usable:
        return Full(FullReason.BASE_GONE_ON_TARGET)
    fitting = [copy for copy in usable if copy.virtual_size <= disk.virtual_size]
    if not fitting:
        return Full(FullReason.DISK_SHRANK)
    best = fitting[0]
    return Delta(base=best.content, onto=best.uuid, number=best.deltas + 1)


def limit_deltas(how: Delta | Full, full_every: int | None) -> Delta | Full:
    """Return how a disk is sent where a job wants a full after so many deltas."""
    if isinstance(how, Delta) and full_every is not None and how.number > full_every:
        return Full(FullReason.DUE)
    return how
