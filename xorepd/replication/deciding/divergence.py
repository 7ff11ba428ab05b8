"""Whether a replica is still as its last run left it. Pure.

It is not where one of its disks was written to (see `ownership`), or where another disk is at a
device that a run has filled, or is about to fill. A disk of others at any other device is no
divergence: it stays. Neither is a replica that was reverted to a restore point and not used since:
all that its disks hold stands in that restore point.

While a commit is pending, the same is asked of all disks that it names: to undo or to finish it
would detach them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from xorepd.errors import Refused
from xorepd.replication.format.inventory import TargetSide, is_live
from xorepd.replication.format.ownership import Content, content_of, own_mark
from xorepd.xapi.records import Vdi


@dataclass(frozen=True, slots=True)
class Divergence:
    """One disk of a replica that is not as the last run left it."""

    vdi: Vdi
    how: str
    """To complete "disk … "."""

    def __str__(self) -> str:
        return f"disk {self.vdi.name_label or self.vdi.uuid} {self.how}"


WRITTEN = "was written to"
EXCHANGED = "is at device {}, where a run puts another one"


def find_divergence(side: TargetSide, wanted: Collection[str] = ()) -> list[Divergence]:
    """Return what of a replica is not as the last run left it.

    Args:
        wanted: devices that the next commit is going to fill.
    """
    mark = side.mark
    if mark is None:
        return []
    twins = {disk.vdi.snapshot_of: disk.vdi for point in side.points[:1] for disk in point.disks}
    sent = [disk.mark for point in side.points[:1] for disk in point.disks if disk.mark.disk]
    filled = {*mark.disks, *wanted, *(each.device for each in sent)}
    in_points = {
        disk.vdi.content_id
        for point in side.points
        for disk in point.disks
        if disk.content is Content.PROVEN
    }
    if mark.commit is not None:
        filled.update(mark.commit.old, mark.commit.new)
    found, seen = [], set()
    for vbd, vdi in side.live:
        seen.add(vdi.uuid)
        own = own_mark(vdi)
        if own is not None and is_live(vdi, mark.stream):
            if content_of(vdi, own, twins.get(vdi.ref)) is Content.CHANGED:
                found.append(Divergence(vdi, WRITTEN))
        elif vbd.userdevice in filled and vdi.content_id not in in_points - {""}:
            found.append(Divergence(vdi, EXCHANGED.format(vbd.userdevice)))
    if mark.commit is not None:
        named = {*mark.commit.old.values(), *mark.commit.new.values()} - seen
        found += [Divergence(vdi, WRITTEN) for vdi in side.written if vdi.uuid in named]
    return found


def refuse_divergence(pool: str, job: str, side: TargetSide, wanted: Collection[str] = ()) -> None:
    """Refuse to replace a replica that is not as its last run left it.

    Args:
        pool, job: their names, for the message.
        wanted: devices that the next commit is going to fill.

    Raises:
        Refused: with its disks, and what to do about it.
    """
    changed = find_divergence(side, wanted)
    if side.replica is None or not changed:
        return
    pending = ""
    if side.mark is not None and side.mark.commit is not None:
        pending = f" (the commit of run {side.mark.commit.run} was not finished)"
    raise Refused(
        f"pool {pool}: replica {side.replica.name_label} has changed since its last "
        f"run{pending}: {'; '.join(map(str, changed))}. Keep your work in a copy of the replica. "
        f'Then set diverged = "replace" in job {job}: the next run gives the replica new '
        "disks, and `xorepctl orphans` lists the changed ones, which stay"
    )
