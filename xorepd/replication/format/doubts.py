"""What may be ours on a pool and cannot be proven, or holds what we did not write. Pure.

No run touches these objects. An operator settles each with one command: to remove it, or to keep
it as an object like any other.

    a disk of ours in no VM that something wrote to  perhaps the work of a person
    a restore point or source snapshot, the same     the same
    a disk in no VM, with the mark of another one    made by a run that died, or copied by a person
    a disk in no VM, with a mark that is not signed  the same
    a snapshot in no VM, taken while a run took one  left by a toolstack that died, or by a person
    a disk in no VM that a restore point names       its SR was introduced again, and lost all marks
    a VM that bears the UUID of one of ours          imported with it
    a VM that our restore points are snapshots of    its marks were wiped
    a VM or snapshot like ours, with disks we signed the same, or others were written over them
    a disk in no VM that a run took out of a replica people had put it there
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from xorepd.replication.format.index import MarkIndex, marks_on
from xorepd.replication.format.inventory import disks_of
from xorepd.replication.format.marks import (
    BLOCK_TEXT,
    FOR,
    KEY,
    PREFIX,
    REPLICA_TAG,
    SNAPSHOTTING,
    TRACKED,
    Role,
    snapshotting_on,
)
from xorepd.replication.format.ownership import (
    Content,
    content_of,
    is_changed,
    run_that_named,
    used_by_vms,
)
from xorepd.xapi.records import EPOCH, Vbd, Vdi, Vm
from xorepd.xapi.tables import Tables

SETTLED = "none"
"""What an operator writes in place of a mark: an object without any may have lost its own."""

_KINDS = {Role.POINT: "restore point", Role.SOURCE: "source snapshot"}


@dataclass(frozen=True, slots=True)
class Unresolved:
    """One object that no run touches, and what settles it."""

    pool: str
    kind: str
    """`VDI` or `VM`."""
    uuid: str
    name: str
    sr: str
    """Name of the SR; empty for a VM."""
    size: int
    """Bytes that the disk takes up on its SR; 0 for a VM."""
    since: datetime | None
    """When it was made, by its pool's clock, where that is known."""
    why: str
    """Why it is doubtful, to complete "it …"."""
    remove: str
    """The command that removes it."""
    keep: str
    """The command that makes it an object like any other."""


def find_unresolved(pool: str, cache: Tables, running: Collection[str] = ()) -> list[Unresolved]:
    """Return the doubtful objects of one pool, by their names.

    Args:
        pool: its name.
        running: runs that are under way: they are going to sign what they have made.
    """
    marks = marks_on(cache)
    found = [*_disks(pool, cache, marks), *_vms(pool, cache, marks, running)]
    return sorted(found, key=lambda doubt: (doubt.kind, doubt.name, doubt.uuid))


def _disks(pool: str, cache: Tables, marks: MarkIndex) -> Iterator[Unresolved]:
    named = dict(_named_disks(marks))
    for vdi in cache.vdis.values():
        if not vdi.managed or vdi.missing:
            continue
        why = _about_disk(cache, marks, vdi, named)
        if why:
            sr = cache.srs.get(vdi.sr)
            yield Unresolved(
                pool=pool,
                kind="VDI",
                uuid=vdi.uuid,
                name=vdi.name_label,
                sr=sr.name_label if sr else "",
                size=vdi.physical_utilisation,
                since=vdi.snapshot_time if vdi.snapshot_time != EPOCH else None,
                why=why,
                remove=f"xe vdi-destroy uuid={vdi.uuid}",
                keep=f"xe vdi-param-set uuid={vdi.uuid} other-config:{KEY}={SETTLED}",
            )


def _about_disk(cache: Tables, marks: MarkIndex, vdi: Vdi, named: Mapping[str, str]) -> str:
    """Return why a disk is doubtful; empty where it is not."""
    mark, own = marks.disks.mark(vdi.ref), marks.disks.own_mark(vdi.ref)
    if used_by_vms(cache, vdi):
        return ""  # its VM is looked at
    if mark is None and KEY in vdi.other_config:
        return ""  # settled
    if own is not None:
        is_streaming = any(vbd.currently_attached for vbd in cache.present(Vbd, vdi.vbds))
        if content_of(vdi, own) is Content.CHANGED and not is_streaming:
            return "is a disk of ours, and was written to since its run left it"
        return ""
    if mark is not None and mark.self:
        return f"carries the mark of disk {mark.self}: a run that died cloned it, or a person did"
    if mark is not None:
        return f"was made by run {mark.run}, which never signed it, or was copied from such a disk"
    if SNAPSHOTTING in vdi.other_config and vdi.is_a_snapshot:
        run, _ = snapshotting_on(vdi.other_config)
        return f"was snapshotted while run {run} took a snapshot, which has not got it"
    if vdi.is_a_snapshot and any(key.startswith(PREFIX) for key in vdi.other_config):
        return "is a snapshot with keys of ours, and carries no mark: people changed its keys"
    if any(key.startswith(PREFIX) and key != TRACKED for key in vdi.other_config):
        return "bears keys of ours, and carries no mark: people changed its keys"
    if vdi.type == "suspend" and vdi.is_a_snapshot:
        return "is the memory of a snapshot that no VM has"
    return named.get(vdi.uuid, "")


def _named_disks(marks: MarkIndex) -> Iterator[tuple[str, str]]:
    """Yield the UUIDs of the disks that our VMs say they have or had, and why they are doubtful."""
    for each in marks.vms.find(signed=True):
        vm, mark = each.what, each.mark
        kind = _KINDS.get(mark.role, "replica")
        lost = f"was the disk of {kind} {vm.name_label}, and has lost its marks"
        yield from ((uuid, lost) for uuid in mark.disks.values())
        for uuid, device in mark.displaced.items():
            yield (uuid, f"was disk {device} of {kind} {vm.name_label} until a run put another")


def _vms(
    pool: str, cache: Tables, marks: MarkIndex, running: Collection[str]
) -> Iterator[Unresolved]:
    for vm in cache.vms.values():
        why = "" if run_that_named(vm) in running else _about_vm(cache, marks, vm)
        if why:
            yield Unresolved(
                pool=pool,
                kind="VM",
                uuid=vm.uuid,
                name=vm.name_label,
                sr="",
                size=0,
                since=vm.snapshot_time if vm.snapshot_time != EPOCH else None,
                why=why,
                remove=f"xe {'snapshot' if vm.is_a_snapshot else 'vm'}-uninstall uuid={vm.uuid}",
                keep=f"xe vm-param-set uuid={vm.uuid} other-config:{KEY}={SETTLED}",
            )


def _about_vm(cache: Tables, marks: MarkIndex, vm: Vm) -> str:
    """Return why a VM is doubtful; empty where it is not."""
    mark = marks.vms.mark(vm.ref)
    if (own := marks.vms.own_mark(vm.ref)) is not None:
        changed = [vdi for _, vdi in disks_of(cache, vm) if is_changed(vdi)]
        if not changed or own.role not in _KINDS:
            return ""  # a replica that has changed is refused by its own run
        what = _KINDS[own.role]
        names = ", ".join(vdi.name_label or vdi.uuid for vdi in changed)
        return f"is a {what} that was written to since it was taken (disk {names})"
    if mark is not None and mark.self == vm.uuid:
        return f"bears the UUID of our {mark.role.value}, and is another object: it was imported"
    if mark is None and KEY in vm.other_config:
        return ""  # settled
    if mark is None and not vm.is_a_snapshot:
        for point in cache.present(Vm, vm.snapshots):
            theirs = marks.vms.own_mark(point.ref)
            if theirs is not None and theirs.role is Role.POINT:
                return f"has lost its marks: restore point {point.name_label} is a snapshot of it"
    disks = [vdi for _, vdi in disks_of(cache, vm)]
    run = run_that_named(vm)
    origin = cache.vms.get(vm.snapshot_of) if vm.is_a_snapshot else None
    if mark is None and origin is not None and marks.vms.own_mark(origin.ref) is not None:
        return f"is a snapshot of replica {origin.name_label}, and has lost the mark of one"
    if run and vm.is_a_snapshot:
        return _about_unsigned(marks, vm, origin, run)
    if run and not (vm.is_a_template and not vm.vbds):  # else a sweep takes it
        return f"was made by run {run}, which never signed it, and has been used since"
    inherited = marks.vms.mark(origin.ref) if origin is not None else mark
    if mark is not None and (inherited is None or inherited.self != mark.self):
        return f"carries the mark of {mark.self or 'an object of ours'}, and is no snapshot of it"
    if not vm.is_a_snapshot and not run and _is_kept_from_starting(vm):
        return "looks like a replica, which xorepd keeps from starting, and carries no mark of one"
    looks_ours = vm.is_a_snapshot or mark is not None or REPLICA_TAG in vm.tags
    if looks_ours and disks and all(marks.disks.own_mark(vdi.ref) for vdi in disks) and not run:
        names = ", ".join(vdi.name_label or vdi.uuid for vdi in disks)
        return f"carries no mark of its own any more, and its disks are signed by a run ({names})"
    has_keys = any(key.startswith(FOR) for key in vm.other_config)
    has_keys |= any(marks.disks.mark(vdi.ref) for vdi in disks)
    if mark is None and vm.is_a_snapshot and has_keys:
        return "carries no mark of its own any more, and other keys of ours are on it or its disks"
    return ""


def _about_unsigned(marks: MarkIndex, vm: Vm, origin: Vm | None, run: str) -> str:
    """Return why no sweep settles a snapshot that a run has not signed; empty if one does."""
    if origin is None:
        return f"was taken by run {run}, which never signed it, of a VM that is gone"
    inherited, replica = marks.vms.mark(vm.ref), marks.vms.own_mark(origin.ref)
    if inherited is None:
        return ""  # of a source VM
    if replica is not None and replica.commit and replica.commit.point == vm.name_label:
        return ""
    return f"was taken by run {run}, which did not sign it: the replica had been worked on"


def _is_kept_from_starting(vm: Vm) -> bool:
    """Return whether a VM is blocked as we block it. XAPI does not give that to clones.

    Xen Orchestra blocks `start` and `start_on` of its replicas with the same text.
    """
    return vm.blocked_operations.get("resume") == BLOCK_TEXT
