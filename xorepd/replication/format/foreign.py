"""Copies that other software made: Xen Orchestra, or a seed that was carried by hand. Pure.

A copy on the target says in `other_config` which snapshot on the source it is a copy of. Where
that snapshot still stands, or what changed-block tracking knows of it, both are a base:

    generation      the copy is                            its disks say
    until 6.2       a VM that cannot be started            xo:copy_of
    seed            the same, made by `xo-cr-seed`         xo:copy_of
    6.3 and later   a snapshot of such a VM                xo:copy_of, later also contentKey

What says so is a hint and no more: clones and snapshots inherit it. So both sides are compared, and
what differs is sent into a clone of the copy, unless these prove that the copy holds what its maker
wrote into it:

- no other disk on the pool says the same;
- it is a snapshot, and its VM's record says the same;
- the disk that it was taken of says it no more, stands in a halted VM that cannot be started, is
  older than the snapshot (a revert would make a newer one), and has the snapshot's content id: so
  nothing has written to either since.

Where the snapshot on the source is gone, nothing tells what has changed since. The copy's VM still
says which VM it was copied from, and so both sides can be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from xorepd.ids import Ref
from xorepd.replication.format.ownership import own_mark
from xorepd.xapi.records import Record, Vbd, Vdi, Vm
from xorepd.xapi.tables import Tables

_VM = "xo:backup:vm"
_CONTENT = "xo:backup:contentKey"
_COPY_OF = "xo:copy_of"
_TIME = "xo:backup:datetime"
_UNFINISHED = "1970"
"""How the time of a copy begins while it is being written."""
_IMPORTING = "Importing…"


@dataclass(frozen=True, slots=True)
class Copy:
    """A disk on the target that was copied from a source disk some time ago, as its labels say."""

    disk: str
    """UUID of the source disk."""
    onto: Vdi
    base: Vdi | None = None
    """Snapshot of the source disk that was copied; None where it is gone."""
    is_proven: bool = False
    """Nothing has written to it since it was made."""


class Labels:
    """The disks of a pool that say whose copies they are, ours among them."""

    def __init__(self) -> None:
        self._by_label: defaultdict[str, dict[Ref, Vdi]] = defaultdict(dict)
        self._all: dict[Ref, Vdi] = {}

    def saying(self, label: str | None = None) -> Collection[Vdi]:
        """Return the disks that have a label; None stands for any."""
        return (self._all if label is None else self._by_label.get(label, {})).values()

    def put(self, record: Record) -> None:
        if isinstance(record, Vdi):
            self.drop(record)
            for label in _labels(record):
                self._by_label[label][record.ref] = self._all[record.ref] = record

    def drop(self, record: Record) -> None:
        former = self._all.pop(record.ref, None)
        for label in set(_labels(former)) if former is not None else ():
            del self._by_label[label][record.ref]
            if not self._by_label[label]:
                del self._by_label[label]


def find_copies(
    source: Tables, disks: Iterable[tuple[Vbd, Vdi]], vm: Vm, target: Tables, sr: Ref
) -> list[Copy]:
    """Return what others copied from some source disks, best first.

    Those whose base stands come before the others, and newer ones before older ones. Without its
    base, a copy is told by the device at which it is. If the disks were swapped, more differs, and
    that is all.

    Args:
        disks: disks of the source VM as they are now, with their drives.
        vm: the source VM.
        sr: the target SR; copies elsewhere are of no use, since clones stay on their SR.
    """
    drives = list(disks)
    present = {vdi.ref: vdi for _, vdi in drives}
    at_device = {vbd.userdevice: vdi for vbd, vdi in drives}
    contents = {_key_of(base): base for base in _bases(source, present, vm.ref)}
    found = []
    for copy, owner in _copies(target, sr):
        base = next((contents[label] for label in _labels(copy) if label in contents), None)
        disk = present[base.snapshot_of] if base else None
        if disk is None and owner.other_config.get(_VM) == vm.uuid:
            devices = [v.userdevice for v in target.present(Vbd, copy.vbds) if v.vm == owner.ref]
            disk = next((at_device[device] for device in devices if device in at_device), None)
        if disk is None or copy.virtual_size > disk.virtual_size:
            continue
        is_proven = base is not None and _is_proven(target, copy, owner)
        age = (owner.other_config[_TIME], copy.is_a_snapshot)
        found.append(((base is not None, age), Copy(disk.uuid, copy, base, is_proven)))
    found.sort(key=lambda each: each[0], reverse=True)
    return [copy for _, copy in found]


def _labels(vdi: Vdi) -> list[str]:
    return [vdi.other_config[key] for key in (_CONTENT, _COPY_OF) if key in vdi.other_config]


def _is_proven(cache: Tables, copy: Vdi, owner: Vm) -> bool:
    """Return whether nothing has written to a copy since its maker took a snapshot of it."""
    labels = set(_labels(copy))
    if not copy.is_a_snapshot or _COPY_OF not in owner.other_config:
        return False
    if any(vdi.ref != copy.ref for label in labels for vdi in cache.index(Labels).saying(label)):
        return False
    origin, replica = cache.vdis.get(copy.snapshot_of), cache.vms.get(owner.snapshot_of)
    if origin is None or replica is None or not _is_idle(replica):
        return False
    has_it = any(vbd.vm == replica.ref for vbd in cache.present(Vbd, origin.vbds))
    is_older = origin.snapshot_time < copy.snapshot_time
    return has_it and is_older and bool(copy.content_id) and copy.content_id == origin.content_id


def _key_of(base: Vdi) -> str:
    return base.other_config.get(_CONTENT) or base.uuid


def _bases(cache: Tables, present: Collection[Ref], vm: Ref) -> Iterator[Vdi]:
    """Return snapshots that others took of these disks and that cannot be written to."""
    for vdi in (each for ref in present for each in cache.pointing(Vdi, "snapshot_of", ref)):
        if not vdi.is_a_snapshot or (not vdi.has_data and not vdi.is_bare):
            continue
        if own_mark(vdi) is not None:
            continue
        if all(owner.is_a_snapshot and owner.snapshot_of == vm for owner in _owners(cache, vdi)):
            yield vdi


def _copies(cache: Tables, sr: Ref) -> Iterator[tuple[Vdi, Vm]]:
    """Return complete copies on an SR, each with the snapshot or idle VM that it is of."""
    for vdi in cache.index(Labels).saying():
        if vdi.sr != sr or not vdi.has_data or own_mark(vdi) is not None:
            continue
        match list(_owners(cache, vdi)):
            case [owner] if owner.is_a_snapshot and vdi.is_a_snapshot and _is_finished(owner):
                yield vdi, owner
            case [owner] if _is_idle(owner) and _is_finished(owner) and not vdi.is_a_snapshot:
                yield vdi, owner


def _owners(cache: Tables, vdi: Vdi) -> Iterator[Vm]:
    for vbd in cache.present(Vbd, vdi.vbds):
        owner = cache.vms.get(vbd.vm)
        if owner is not None and not owner.is_control_domain:
            yield owner


def _is_finished(vm: Vm) -> bool:
    moment = vm.other_config.get(_TIME, _UNFINISHED)
    return not moment.startswith(_UNFINISHED)


def _is_idle(vm: Vm) -> bool:
    blocked = vm.blocked_operations.get("start", _IMPORTING)
    return not vm.is_a_snapshot and vm.power_state == "Halted" and blocked != _IMPORTING
