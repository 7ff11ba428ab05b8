"""Which bases on the source may lose their data, decided from the inventory. Pure.

The snapshot that the next delta starts from makes the source keep a chain for as long as it stands.
Where tracking is on, its data is not needed: `VDI.data_destroy` leaves a VDI of type `cbt_metadata`
against which XAPI still lists changed blocks. Each target says for itself whether that will do:

    use of a snapshot        its data
    wanted, by any           stays: it is on the way
    held, by any             stays: the job that serves that target keeps it
    bare, for all            goes, if tracking is on and the source serves NBD

XAPI wants the snapshot's VM record to go first, so the disks are known by their own marks and keys
from then on, like those of a snapshot whose VM record is gone (`SourceSide.orphans`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from xorepd.ids import NULL_REF
from xorepd.replication.format.inventory import Marked, SourceSide, TargetSide, VmSnapshot
from xorepd.replication.format.marks import Use
from xorepd.replication.format.ownership import used_by_vms
from xorepd.xapi.tables import Tables


@dataclass(frozen=True, slots=True)
class Shedding:
    """What one target's run says of the data of bases after its commit, and what follows."""

    use: Use
    """How this target holds its bases."""
    say: tuple[VmSnapshot | Marked, ...]
    """Bases of it on which that is not written yet."""
    shed: tuple[VmSnapshot | Marked, ...]
    """Bases that every target agrees to have without data, once that has been said."""
    kept: tuple[str, ...] = ()
    """Why the data of this target's own bases stays, in words, as far as it does."""
    own: tuple[VmSnapshot | Marked, ...] = ()
    """Those of `shed` that are this target's own."""


def decide_shedding(
    source: SourceSide, target: TargetSide, sr: str, use: Use, *, read_for: Collection[str]
) -> Shedding:
    """Return whose data may go.

    Args:
        sr: UUID of the target SR.
        use: how its job holds its bases: `HELD` or `BARE`.
        read_for: UUIDs of SRs for which a snapshot is being read, maybe against one of these.
    """
    newest = target.points[:1]
    own = {point.mark.snapshot for point in newest}
    content = set[str]().union(*(point.contents for point in newest))
    groups = [group for group in source.snapshots if group.disks]
    disks = [disk for disk in source.orphans if disk.vdi.has_data]
    bases: list[VmSnapshot | Marked] = [group for group in groups if group.vm.uuid in own]
    bases += [disk for disk in disks if disk.vdi.uuid in content]
    say = [base for base in bases if sr in base.uses and base.uses[sr] is not use]
    everything: list[VmSnapshot | Marked] = [*groups, *disks]
    shed = []
    for each in everything:
        uses = {**each.uses, sr: use} if each in say else each.uses
        if is_agreed(uses) and uses.keys().isdisjoint(read_for):
            shed.append(each)
    kept = [_reason_to_wait(base, sr, use, read_for) for base in bases if base not in shed]
    own_shed = [base for base in bases if base in shed]
    return Shedding(use, tuple(say), tuple(shed), tuple(kept), tuple(own_shed))


def is_agreed(uses: Mapping[str, Use]) -> bool:
    """Return whether every target of a base will have it without its data."""
    return bool(uses) and all(use is Use.BARE for use in uses.values())


def _reason_to_wait(base: VmSnapshot | Marked, sr: str, use: Use, read_for: Collection[str]) -> str:
    """Return why the data of a target's base does not go now."""
    if use is not Use.BARE:
        return 'the job has base_data = "keep"'
    needing = sorted(each for each, how in base.uses.items() if each != sr and how is not use)
    if needing:
        return f"SR {', '.join(needing)} needs it as well"
    reading = sorted(base.uses.keys() & set(read_for))
    return f"it is being read for SR {', '.join(reading)}" if reading else "no SR is written on it"


def disks_in(base: VmSnapshot | Marked) -> tuple[Marked, ...]:
    """Return the disks of a base."""
    return base.disks if isinstance(base, VmSnapshot) else (base,)


def reason_to_keep(cache: Tables, base: VmSnapshot | Marked) -> str:
    """Return why the data of a base is needed all the same; empty where it is not."""
    own = base.vm.ref if isinstance(base, VmSnapshot) else NULL_REF
    for disk in disks_in(base):
        now = cache.vdis.get(disk.vdi.ref, disk.vdi)
        if used_by_vms(cache, now, but=own):
            return f"a VM uses its disk {now.uuid}"
        if not now.cbt_enabled:
            return f"changed-block tracking is off on its disk {now.uuid}"
        live = cache.vdis.get(now.snapshot_of)
        if live is not None and not live.cbt_enabled:
            return f"changed-block tracking is off on disk {live.uuid}"
    return ""
