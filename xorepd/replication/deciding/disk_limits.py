"""What a disk must be to be replicated: of a size that fits, in a chain that may grow. Pure.

Every snapshot and every clone of a disk with data makes its chain of VHDs one file longer, and the
storage makes it shorter again when it finds the time (coalescing). XAPI refuses both at a depth of
30: then a run would fail in the middle. It is better not to begin, and to say beforehand that it
gets close.

Source: sm: libs/sm/vhdutil.py (MAX_CHAIN_SIZE), libs/sm/drivers/FileSR.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from xorepd.errors import Refused
from xorepd.units import GiB, TiB
from xorepd.xapi.records import Vdi
from xorepd.xapi.tables import Tables

MAX_VHD_SIZE = 2040 * GiB
"""Largest disk that XAPI and its storage drivers put into a VHD."""

LARGEST_DISK = 16 * TiB
"""Largest disk that is replicated, whatever its SR keeps disks in: the largest of any driver (qcow2
of XCP-ng). Its map of 64 KiB units takes 32 MiB, and its bitmap of changed blocks 43 MiB on the
wire; a run has several maps of each disk at a time."""

NOT_VHD = frozenset({"zfs-vol", "rawhba", "udev", "iso"})
"""SR types whose drivers keep disks in something else."""

MAX_DEPTH = 30
CLOSE = 26
"""Depth from which a warning is due. With the most restore points that a job may keep, a target's
chains stay below it while its storage coalesces in time."""

_PARENT = "vhd-parent"


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


def depth_of(cache: Tables, vdi: Vdi) -> int:
    """Return of how many files a disk consists; 1 where nothing tells of a parent."""
    seen = {vdi.uuid}
    parent = cache.by_uuid(Vdi, vdi.sm_config.get(_PARENT, ""))
    while parent is not None and parent.uuid not in seen:
        seen.add(parent.uuid)
        parent = cache.by_uuid(Vdi, parent.sm_config.get(_PARENT, ""))
    return len(seen)


def deepest(cache: Tables, disks: Iterable[Vdi]) -> tuple[Vdi | None, int]:
    """Return the disk with the longest chain, and its depth; None and 0 of no disks."""
    found = [(depth_of(cache, vdi), vdi) for vdi in disks]
    if not found:
        return None, 0
    depth, vdi = max(found, key=lambda each: each[0])
    return vdi, depth
