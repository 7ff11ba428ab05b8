"""Whether somebody worked on a replica since its last restore point. Pure.

XAPI drops `content_id` from a disk's `other_config` when the disk is attached for writing, and
gives it a new one afterwards; snapshots inherit it. So a disk of the replica and its snapshot in
the restore point show the same one for as long as nobody wrote, which costs nothing to find out.

Source: sm: libs/sm/VDI.py (activate, deactivate); xapi: ocaml/xapi/storage_smapiv1.ml.
"""

from __future__ import annotations

from xorepd.replication.inventory import TargetSide
from xorepd.xapi.records import Vdi

_CONTENT = "content_id"


def diverged_disks(side: TargetSide) -> list[Vdi]:
    """Return the replica's disks that hold other content than its newest restore point.

    Where a storage driver keeps no such id, nothing can be told, and nothing is said. The same goes
    for a commit that an earlier run left: its sweep comes before any restore point of it counts.
    """
    if not side.points or side.mark is None or side.mark.commit is not None:
        return []
    taken = {disk.vdi.snapshot_of: disk.vdi for disk in side.points[0].disks}
    return [
        vdi
        for _, vdi in side.live
        if (point := taken.get(vdi.ref)) is not None
        and _CONTENT in point.other_config
        and vdi.other_config.get(_CONTENT) != point.other_config[_CONTENT]
    ]
