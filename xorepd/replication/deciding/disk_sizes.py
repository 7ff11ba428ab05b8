"""Which sizes of disks can be replicated, and which of them fit into a VHD. Pure."""

from __future__ import annotations

from xorepd.errors import Refused
from xorepd.units import GiB, TiB
from xorepd.xapi.records import Vdi

MAX_VHD_SIZE = 2040 * GiB
"""Largest disk that XAPI and its storage drivers put into a VHD."""

LARGEST_DISK = 16 * TiB
"""Largest disk that is replicated, whatever its SR keeps disks in: the largest of any driver (qcow2
of XCP-ng). Its map of 64 KiB units takes 32 MiB, and its bitmap of changed blocks 43 MiB on the
wire; a run has several maps of each disk at a time."""

NOT_VHD = frozenset({"zfs-vol", "rawhba", "udev", "iso"})
"""SR types whose drivers keep disks in something else."""


def check_size(pool: str, vdi: Vdi) -> None:
    """Refuse a disk of a size that nothing of ours is made for, before anything is made of it.

    Raises:
        Refused: with the disk and its size.
    """
    if problem := size_problem(vdi):
        raise Refused(f"pool {pool}: disk {vdi.name_label} {problem}")


def size_problem(vdi: Vdi) -> str | None:
    size = vdi.virtual_size
    if size <= 0 or size % 512:
        return f"has {size} bytes by its record, which no disk has; scan its SR, or detach it"
    if size > LARGEST_DISK:
        return (
            f"has {size / GiB:.1f} GiB, and the largest that can be replicated has "
            f"{LARGEST_DISK // GiB} GiB; split it, or leave it out with exclude_disks"
        )
    return None
