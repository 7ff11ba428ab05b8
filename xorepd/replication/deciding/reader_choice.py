"""How the data of a disk is read: the best way that the source pool offers. Pure.

    reader          gives                                 needs
    nbd-changes     a delta, in blocks of 64 KiB          NBD; changed-block tracking or a resync
    export-changes  the same, out of blocks of 2 MiB      the latter, a VHD
    export          a delta or a whole disk, 2 MiB        a VHD of at most 2040 GiB
    nbd-allocated   a whole disk, what it has allocated   NBD, a VHD of at most 2040 GiB
    nbd-everything  a whole disk, every byte              NBD
    export-raw      a whole disk, every byte              nothing

Where the base has no data, `export-changes` picks them out of all that the disk has allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from xorepd.data.blocks import BlockMap
from xorepd.data.nbd.exports import NbdExport
from xorepd.replication.deciding.disk_limits import MAX_VHD_SIZE, NOT_VHD
from xorepd.xapi.records import Sr, Vdi


class ReaderKind(StrEnum):
    NBD_CHANGES = "nbd-changes"
    EXPORT_CHANGES = "export-changes"
    EXPORT = "export"
    NBD_ALLOCATED = "nbd-allocated"
    NBD_EVERYTHING = "nbd-everything"
    EXPORT_RAW = "export-raw"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the source pool offers for one disk. A missing thing has its reason."""

    is_delta: bool
    is_vhd: bool
    """Whether XAPI can export it as a VHD."""
    is_bare: bool = False
    """Whether the base has no data: then no VHD tells what changed since."""
    nbd: tuple[NbdExport, ...] = ()
    without_nbd: str = ""
    changes: BlockMap | None = None
    without_changes: str = ""

    @property
    def can_only_be_compared(self) -> bool:
        """Whether there is a base, and nothing on the source that tells what changed since."""
        return self.is_delta and self.changes is None and (self.is_bare or not self.is_vhd)

    @property
    def is_unchanged(self) -> bool:
        """Whether the disk is known to be equal to its base."""
        return self.changes is not None and next(iter(self.changes), None) is None


@dataclass(frozen=True, slots=True)
class Choice:
    kind: ReaderKind
    reason: str = ""
    """Why none of the better ones; empty when there is no better one."""


def choose_readers(facts: Facts) -> list[Choice]:
    """Return the readers that are open for a disk, best first; there is always one."""
    choices = []
    why = "; ".join(reason for reason in (facts.without_changes, facts.without_nbd) if reason)
    if facts.is_delta and facts.changes is not None:
        if facts.nbd:
            choices.append(Choice(ReaderKind.NBD_CHANGES))
        if facts.is_vhd:
            choices.append(Choice(ReaderKind.EXPORT_CHANGES, facts.without_nbd))
    elif facts.is_delta and facts.is_vhd and not facts.is_bare:
        choices.append(Choice(ReaderKind.EXPORT, facts.without_changes))
    elif facts.is_vhd and not facts.is_delta:
        if facts.nbd:
            choices.append(Choice(ReaderKind.NBD_ALLOCATED))
        choices.append(Choice(ReaderKind.EXPORT, facts.without_nbd))
    if not choices:
        nothing = "the disk is no VHD that XAPI exports"
        if facts.is_bare:
            nothing = "the base has no data"
        why = f"{nothing}; {why}" if why else nothing
        if facts.nbd:
            choices.append(Choice(ReaderKind.NBD_EVERYTHING, why))
        choices.append(Choice(ReaderKind.EXPORT_RAW, why))
    return choices


def is_vhd(vdi: Vdi, sr: Sr | None) -> bool:
    """Whether XAPI can export a disk as a VHD, as far as its record tells."""
    return (
        vdi.virtual_size <= MAX_VHD_SIZE
        and vdi.sm_config.get("type") != "raw"
        and vdi.sm_config.get("image-format", "vhd") == "vhd"
        and (sr is None or sr.type not in NOT_VHD)
    )
