"""What the marks on both sides prove of each disk: what the choice of a base looks at. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from xorepd.replication.format.ownership import Content


@dataclass(frozen=True, slots=True)
class SourceBase:
    """A snapshot of a source disk that holds its data, or tells what changed since."""

    uuid: str
    disk: str
    """UUID of the source disk."""
    content: Content = Content.PROVEN


@dataclass(frozen=True, slots=True)
class PointDisk:
    """A disk in a restore point."""

    uuid: str
    disk: str
    """UUID of the source disk."""
    snapshot: str
    """UUID of the source snapshot's disk whose content it is."""
    virtual_size: int
    is_usable: bool
    """It exists, holds data, and may be cloned."""
    content: Content = Content.PROVEN
    """Whether it holds what it held when it was signed."""
    deltas: int = 0
    """How many it has had since it was sent whole."""
    device: str = ""
    """`userdevice` of the source disk."""
    is_lost: bool = False
    """The restore point names it, and it carries no mark any more: only its UUID and its device are
    known."""


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A restore point, as far as base choice looks at it."""

    uuid: str
    disks: tuple[PointDisk, ...]
