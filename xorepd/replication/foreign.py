"""Copies that somebody else made: by Xen Orchestra, or carried by hand and marked as a seed. Pure.

A copy on the target says in `other_config` which snapshot on the source it is a copy of. Where
that snapshot still stands, both are a base like our own: the first run sends a delta, into a clone
of the copy, and what others made stays as it is.

    generation      the copy is                            its disks say
    until 6.2       a VM that cannot be started            xo:copy_of
    seed            the same, made by `xo-cr-seed`         xo:copy_of
    6.3 and later   a snapshot of such a VM                xo:copy_of, later also contentKey

What says so may be wrong, for anybody may write there: a base of others is compared before it is
used (see `adoption`). Where the snapshot on the source is gone, nothing tells what has changed
since. The copy's VM still says which VM it was copied from, and so both sides can be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from xorepd.ids import Ref
from xorepd.replication.markers import signed
from xorepd.xapi.cache import Cache
from xorepd.xapi.records import Vbd, Vdi, Vm

_VM = "xo:backup:vm"
_CONTENT = "xo:backup:contentKey"
_COPY_OF = "xo:copy_of"
_TIME = "xo:backup:datetime"
_EXPORTED = "xo:backup:exported"
_UNFINISHED = "1970"
"""How the time of a copy begins while it is being written."""
_IMPORTING = "Importing…"


@dataclass(frozen=True, slots=True)
class Pair:
    """The same content on both sides, as its labels say."""

    disk: str
    """UUID of the source disk."""
    base: Vdi
    """Snapshot of the source disk."""
    onto: Vdi
    """Disk on the target."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A disk on the target that was copied from a source disk some time ago, as its labels say."""

    disk: str
    """UUID of the source disk."""
    onto: Vdi


def find_pairs(source: Cache, disks: Iterable[Vdi], vm: Ref, target: Cache, sr: Ref) -> list[Pair]:
    """Return the bases of others for some source disks, the newest content first.

    Args:
        disks: disks of the source VM as they are now.
        vm: the source VM.
        sr: the target SR; copies elsewhere are of no use, since clones stay on their SR.
    """
    present = {disk.ref: disk for disk in disks}
    contents = {_key_of(base): base for base in _bases(source, present, vm)}
    pairs = []
    for copy, owner in _copies(target, sr):
        labels = (copy.other_config.get(_CONTENT, ""), copy.other_config.get(_COPY_OF, ""))
        base = next((contents[label] for label in labels if label in contents), None)
        if base is None or (not owner.is_a_snapshot and not _is_exported(source, base)):
            continue
        disk = present[base.snapshot_of]
        if copy.virtual_size <= disk.virtual_size:
            pairs.append(Pair(disk.uuid, base, copy))
    pairs.sort(key=lambda pair: (pair.base.snapshot_time, pair.onto.is_a_snapshot), reverse=True)
    return pairs


def find_copies(disks: Iterable[tuple[Vbd, Vdi]], vm: str, target: Cache, sr: Ref) -> list[Copy]:
    """Return what others copied from some source disks, the newest first.

    Disks are told apart by the device at which they are: nothing else of a disk is on its copy once
    the snapshot is gone. If somebody swapped them, more differs, and that is all.

    Args:
        disks: disks of the source VM as they are now, with their drives.
        vm: UUID of the source VM.
        sr: the target SR.
    """
    at_device = {vbd.userdevice: vdi for vbd, vdi in disks}
    found = []
    for copy, owner in _copies(target, sr):
        devices = [v.userdevice for v in target.present(Vbd, copy.vbds) if v.vm == owner.ref]
        disk = next((at_device[device] for device in devices if device in at_device), None)
        if owner.other_config.get(_VM) != vm or disk is None:
            continue
        if copy.virtual_size <= disk.virtual_size:
            age = (owner.other_config[_TIME], copy.is_a_snapshot)
            found.append((age, Copy(disk.uuid, copy)))
    found.sort(key=lambda each: each[0], reverse=True)
    return [copy for _, copy in found]


def _key_of(base: Vdi) -> str:
    return base.other_config.get(_CONTENT) or base.uuid


def _bases(cache: Cache, present: Collection[Ref], vm: Ref) -> Iterator[Vdi]:
    """Return snapshots that others took of these disks and that nobody can write to."""
    for vdi in cache.vdis.values():
        if not vdi.is_a_snapshot or vdi.snapshot_of not in present or not vdi.has_data:
            continue
        if signed(vdi.other_config, vdi.uuid) is not None:
            continue
        if all(owner.is_a_snapshot and owner.snapshot_of == vm for owner in _owners(cache, vdi)):
            yield vdi


def _copies(cache: Cache, sr: Ref) -> Iterator[tuple[Vdi, Vm]]:
    """Return complete copies on an SR, each with the snapshot or idle VM that it is of."""
    for vdi in cache.vdis.values():
        if vdi.sr != sr or not vdi.has_data or signed(vdi.other_config, vdi.uuid) is not None:
            continue
        if _CONTENT not in vdi.other_config and _COPY_OF not in vdi.other_config:
            continue
        match list(_owners(cache, vdi)):
            case [owner] if owner.is_a_snapshot and vdi.is_a_snapshot and _is_finished(owner):
                yield vdi, owner
            case [owner] if _is_idle(owner) and _is_finished(owner) and not vdi.is_a_snapshot:
                yield vdi, owner


def _owners(cache: Cache, vdi: Vdi) -> Iterator[Vm]:
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


def _is_exported(cache: Cache, base: Vdi) -> bool:
    """Return whether whoever took a snapshot says that it has arrived."""
    keys = [base.other_config, *(owner.other_config for owner in _owners(cache, base))]
    return any(_EXPORTED in each for each in keys)
