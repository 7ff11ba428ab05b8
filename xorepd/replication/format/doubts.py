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
    all else that bears a name, a key or a block of  people did something to it
    ours, and that no run settles and no person copied
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from xorepd.replication.format.current import KEY as CURRENT
from xorepd.replication.format.current import State, own_current
from xorepd.replication.format.index import MarkIndex, marks_on
from xorepd.replication.format.inventory import disks_of
from xorepd.replication.format.marks import (
    BLOCK_TEXT,
    DISPLACED,
    KEY,
    PREFIX,
    REPLICA_TAG,
    RESTART,
    SNAPSHOTTING,
    TRACKED,
    Role,
    displaced_from,
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

_LASTING = {CURRENT, DISPLACED, RESTART, TRACKED}
"""Keys on source VMs and on disks of others, and so on all that people make of them."""

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
    if device := displaced_from(vdi.other_config, vdi.uuid):
        return f"was disk {device} of a replica until a run put another there"
    if any(key.startswith(PREFIX) and key not in _LASTING for key in vdi.other_config):
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
    if _is_settled_by_a_run(cache, marks, vm) or _is_made_by_others(cache, marks, vm):
        return ""
    origin = cache.vms.get(vm.snapshot_of) if vm.is_a_snapshot else None
    is_of_replica = origin is not None and marks.vms.own_mark(origin.ref) is not None
    if run := run_that_named(vm):
        if not vm.is_a_snapshot:
            return f"was made by run {run}, which never signed it, and has been used since"
        if is_of_replica:
            return f"was taken by run {run}, which did not sign it: the replica had been worked on"
        return f"was taken by run {run}, which never signed it, of a VM that is gone or forgotten"
    disks = [vdi for _, vdi in disks_of(cache, vm)]
    looks_ours = vm.is_a_snapshot or mark is not None or REPLICA_TAG in vm.tags
    for point in () if vm.is_a_snapshot else cache.present(Vm, vm.snapshots):
        theirs = marks.vms.own_mark(point.ref)
        if theirs is not None and theirs.role is Role.POINT:
            return f"has lost its marks: restore point {point.name_label} is a snapshot of it"
    if mark is None and is_of_replica and origin is not None:
        return f"is a snapshot of replica {origin.name_label}, and has lost the mark of one"
    if not vm.is_a_snapshot and _is_kept_from_starting(vm):
        return "looks like a replica, which xorepd keeps from starting, and carries no mark of one"
    if looks_ours and disks and all(marks.disks.own_mark(vdi.ref) for vdi in disks):
        names = ", ".join(vdi.name_label or vdi.uuid for vdi in disks)
        return f"carries no mark of its own any more, and its disks are signed by a run ({names})"
    if mark is not None:
        return f"carries the mark of {mark.self or 'an object of ours'}, and is no copy of it"
    keys = {*vm.other_config}
    if vm.is_a_snapshot:
        keys.update(*(vdi.other_config for vdi in disks))
    if any(key.startswith(PREFIX) for key in keys - _LASTING):
        return "carries no mark of its own any more, and other keys of ours are on it or its disks"
    return ""


def _is_settled_by_a_run(cache: Tables, marks: MarkIndex, vm: Vm) -> bool:
    """Return whether the next run of its stream signs or removes what a run has not signed."""
    mark = marks.vms.mark(vm.ref)
    if not run_that_named(vm):
        return False
    if not vm.is_a_snapshot:  # see `TargetSide.shells`
        return mark is not None and not mark.self and vm.is_a_template and not vm.vbds
    origin = cache.vms.get(vm.snapshot_of)
    if origin is None:
        return False
    replica = marks.vms.own_mark(origin.ref)
    if replica is None:  # see `SourceSide.unsigned`
        current = own_current(origin)
        return current is not None and current.state is State.ACTIVE
    return mark is not None and replica.commit is not None and replica.commit.point == vm.name_label


def _is_made_by_others(cache: Tables, marks: MarkIndex, vm: Vm) -> bool:
    """Return whether all marks are copies: a person cloned, copied or snapshotted a VM of ours."""
    mark = marks.vms.mark(vm.ref)
    if mark is None or run_that_named(vm) or _is_kept_from_starting(vm):
        return False
    if vm.is_a_snapshot:
        origin = marks.vms.mark(vm.snapshot_of)
        if origin is None or origin.self != mark.self:
            return False
    elif mark.role is Role.SOURCE and REPLICA_TAG in vm.tags:
        return False  # a replica that lost its keys to those of a source snapshot
    return all(_is_copied(cache, marks, vdi) for _, vdi in disks_of(cache, vm))


def _is_copied(cache: Tables, marks: MarkIndex, vdi: Vdi) -> bool:
    """Return whether the mark of a disk, if it has one, came with a copy of a disk of ours."""
    mark, origin = marks.disks.mark(vdi.ref), cache.vdis.get(vdi.snapshot_of)
    if mark is None:
        return True
    if not vdi.is_a_snapshot:
        return marks.disks.own_mark(vdi.ref) is None
    return mark.role in (Role.DISK, Role.MEMORY) and origin in (None, cache.by_uuid(Vdi, mark.self))


def _is_kept_from_starting(vm: Vm) -> bool:
    """Return whether a VM is blocked as we block it. XAPI does not give that to clones.

    Xen Orchestra blocks `start` and `start_on` of its replicas with the same text.
    """
    return vm.blocked_operations.get("resume") == BLOCK_TEXT
