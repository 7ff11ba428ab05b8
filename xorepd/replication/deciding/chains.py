"""How long a disk's chain of VHDs is, from the records alone. Pure.

Every snapshot and every clone of a disk with data makes its chain one file longer, and the storage
makes it shorter again when it finds the time (coalescing). XAPI refuses both at a depth of 30: then
a run would fail in the middle. It is better not to begin, and to say beforehand that it gets close.

Source: sm: libs/sm/vhdutil.py (MAX_CHAIN_SIZE), libs/sm/drivers/FileSR.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from xorepd.xapi.records import Vdi
from xorepd.xapi.tables import Tables

MAX_DEPTH = 30
CLOSE = 26
"""Depth from which a warning is due. With the most restore points that a job may keep, a target's
chains stay below it while its storage coalesces in time."""

_PARENT = "vhd-parent"


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
