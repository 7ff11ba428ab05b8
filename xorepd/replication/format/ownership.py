"""What is ours on a pool, and whether it still holds what we put there. Pure.

`other_config` is copied by clone, snapshot, copy, migration and import, with `restore` even the
UUID is. So what an object inherits proves nothing. Two things do:

    signed    its mark names its own UUID and its own reference, which no copy has
    named     a VM bears the name that a run gave to the very call that made it; every call that
              copies a VM gives the copy a name of its own

and, for disks that were made a moment before a crash, a third: the task of our own call says that
it returned this reference (`sweep`). What none of them proves is left alone and listed (`doubts`).

Disks have a second question: do they hold what we left there? XAPI takes the content id off a disk
that is attached for writing. The mark keeps the id that the disk had when we signed it:

    PROVEN     the disk has it still: nothing has written to it since
    CHANGED    it has another one, or none: something wrote to it, or is about to
    UNKNOWN    the mark is of the earlier form and does not say

No run destroys a disk that was written to, or uses it as a base: a person may need what is on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from xorepd.ids import NULL_REF, Ref
from xorepd.replication.format.marks import Mark, ReplicaKey, Role, decode
from xorepd.xapi.records import CONTENT_ID, Vbd, Vdi, Vm
from xorepd.xapi.tables import Tables


class Content(StrEnum):
    """Whether a disk holds what it held when we signed it."""

    PROVEN = "proven"
    CHANGED = "changed"
    UNKNOWN = "unknown"


def own_mark(what: Vm | Vdi) -> Mark | None:
    """Return the mark on an object if it was written on this very object."""
    mark = decode(what.other_config)
    return mark if mark is not None and is_signed(what, mark) else None


def is_signed(what: Vm | Vdi, mark: Mark) -> bool:
    """Return whether the mark on an object was written on this very object."""
    return mark.self == what.uuid and mark.ref in ("", what.ref)  # the earlier form names no ref


def temporary_name(run: str) -> str:
    """Return the name under which a run makes VMs and snapshots of them, until they are signed."""
    return f"xorepd-unmarked-{run}"


def run_that_named(vm: Vm) -> str:
    """Return the run whose own call made a VM, as its name tells; empty where none did."""
    prefix = temporary_name("")
    return vm.name_label.removeprefix(prefix) if vm.name_label.startswith(prefix) else ""


# -- content ------------------------------------------------------------------------------------


def content_of(vdi: Vdi, mark: Mark, twin: Vdi | None = None) -> Content:
    """Return whether a disk of ours holds what it held when its mark was written.

    Args:
        mark: its own.
        twin: a disk that had the same content then: where the mark does not say, both tell it.
    """
    if not vdi.has_data:  # nothing can write to it
        return Content.PROVEN
    now = vdi.content_id
    if mark.content:
        return Content.PROVEN if now == mark.content else Content.CHANGED
    if twin is not None and now and twin.content_id:
        return Content.PROVEN if now == twin.content_id else Content.CHANGED
    return Content.UNKNOWN


def is_as_made(cache: Tables, vdi: Vdi) -> bool:
    """Return whether a disk that was never signed holds what it held when our call made it.

    A new disk has no content id then. A copy has that of its origin. The mark that it inherited
    names it; where there is none, as on copies of others, another disk has the same.
    """
    inherited = decode(vdi.other_config)
    if inherited is not None and not inherited.self:
        return not vdi.content_id
    if inherited is not None and inherited.content:
        return vdi.content_id == inherited.content
    return not vdi.content_id or any(
        other.content_id == vdi.content_id
        for other in cache.vdis.values()
        if other.ref != vdi.ref and other.sr == vdi.sr
    )


def was_made_of_changed(inherited: Mapping[str, str]) -> bool:
    """Return whether the origin of a clone had been written to since we signed it.

    Args:
        inherited: the clone's `other_config` as XAPI copied it.
    """
    mark = decode(inherited)
    return mark is not None and mark.content not in ("", inherited.get(CONTENT_ID, ""))


def is_changed(vdi: Vdi) -> bool:
    """Return whether a disk of ours is known to have been written to since we signed it."""
    mark = own_mark(vdi)
    return mark is not None and content_of(vdi, mark) is Content.CHANGED


# -- use ----------------------------------------------------------------------------------------


def used_by_vms(cache: Tables, vdi: Vdi, *, but: Ref = NULL_REF) -> bool:
    """Return whether any VM, `but` and control domains left out, has this disk, or memory in it."""
    holders = cache.pointing(Vm, "suspend_vdi", vdi.ref) if vdi.type == "suspend" else ()
    if any(vm.ref != but for vm in holders):
        return True
    owners = (cache.vms.get(vbd.vm) for vbd in cache.present(Vbd, vdi.vbds))
    return any(
        owner is not None and not owner.is_control_domain and owner.ref != but for owner in owners
    )


# -- what may be destroyed ----------------------------------------------------------------------


def objection(what: Vm | Vdi, *, even_if_changed: bool = False) -> str:
    """Return why an object is not to be destroyed by itself; empty where it is.

    Args:
        what: its record as it is now.
        even_if_changed: an operator has said that what others wrote on it may be lost.
    """
    mark = own_mark(what)
    if isinstance(what, Vm):
        if mark is None and not run_that_named(what):
            return "it is not signed as ours"
        if not what.is_a_snapshot and what.power_state not in ("Halted", "Suspended"):
            return f"it is {what.power_state.lower()}"
        return ""
    if mark is None:
        return "it is not signed as ours"
    if content_of(what, mark) is Content.CHANGED and not even_if_changed:
        return "something wrote to it since it was signed"
    return ""


def is_of(what: Vm | Vdi, role: Role, stream: ReplicaKey) -> Mark | None:
    """Return the mark on an object if it is our own, of a role and of a stream."""
    mark = own_mark(what)
    is_it = mark is not None and mark.role is role and mark.stream == stream
    return mark if is_it else None
