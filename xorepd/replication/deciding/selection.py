"""Which VMs of a pool a job means now, and which of their disks stay behind. Pure.

    named one by one (UUID, exact name)      always: what is wrong with it, its own run says
    found by a pattern or a tag              unless it is excluded, or is a replica

A replica is found by nothing: its copy would be found again by the next run, and that one's copy by
the run after it. A replica is what proves to be one: a mark of ours that names this very VM, or a
block on its start as replicas have it, which no clone inherits. Keys and tags are copied by clones,
so they prove nothing: a VM that a failover has made of a restore point is a VM like others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from xorepd.config.models import JobSettings
from xorepd.config.names import is_pattern, names
from xorepd.replication.format.inventory import Excluded, SourceSide
from xorepd.replication.format.marks import BLOCK_TEXT, Role
from xorepd.replication.format.ownership import own_mark
from xorepd.xapi.records import Vbd, Vdi, Vm

NO_BACKUP = "[NOBAK]"
"""In the name of a disk: Xen Orchestra leaves it out of backups and replicas. Its `[NOSNAP]` is for
snapshots that people take, and says nothing here."""

_NO_BACKUP_TAG = re.compile(r"xo:no-bak(=.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ExcludedVm:
    """A VM that a pattern or a tag means, and that is not replicated."""

    vm: Vm
    reason: str
    is_replica: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    named: tuple[str, ...]
    """As the configuration has them; each one may be missing or ambiguous."""
    found: tuple[Vm, ...]
    """In the order of their names."""
    left_out: tuple[ExcludedVm, ...]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names and UUIDs, one for each VM to replicate."""
        return self.named + tuple(vm.uuid for vm in self.found)

    @property
    def replicas(self) -> tuple[ExcludedVm, ...]:
        """Those that were left out because they are replicas."""
        return tuple(left for left in self.left_out if left.is_replica)

    @property
    def reasons(self) -> dict[str, int]:
        """Why VMs were left out, and how many."""
        return dict(Counter(left.reason for left in self.left_out))


def select_vms(job: JobSettings, vms: Iterable[Vm]) -> Selection:
    """Return the VMs that a job means.

    Args:
        vms: All of the source pool, snapshots and templates among them.
    """
    found, left_out = [], []
    for vm in sorted(vms, key=lambda vm: (vm.name_label, vm.uuid)):
        if not vm.is_ordinary or any(names(text, vm.uuid, vm.name_label) for text in job.named):
            continue
        if not _is_meant(job, vm):
            continue
        if because := replica_trait(vm):
            left_out.append(ExcludedVm(vm, because, is_replica=True))
        elif because := _objection(job, vm):
            left_out.append(ExcludedVm(vm, because))
        else:
            found.append(vm)
    return Selection(job.named, tuple(found), tuple(left_out))


def is_excluded(job: JobSettings, uuid: str, name: str) -> bool:
    """Return whether a job names a VM among those that it does not mean."""
    return any(names(text, uuid, name) for text in job.exclude)


def has_namesake(vms: Iterable[Vm], name: str) -> bool:
    """Return whether a VM of a pool has the name of one that is gone."""
    return any(vm.is_ordinary and vm.name_label == name for vm in vms)


def replica_trait(vm: Vm) -> str:
    """Return what makes a VM a replica; empty if nothing does."""
    mark = own_mark(vm)
    if mark is not None and mark.role in (Role.REPLICA, Role.POINT, Role.MEMORY):
        if vm.power_state == "Halted" or mark.role is not Role.REPLICA:
            return "it is a replica"
        return (
            f"it is a replica, though it is {vm.power_state.lower()}; "
            "`xorepctl forget --keep-replica` makes it an ordinary VM"
        )
    if BLOCK_TEXT in vm.blocked_operations.values():
        return "its start is blocked as a replica's is"
    return ""


def disk_exclusion(job: JobSettings, vm: Vm, vbd: Vbd, vdi: Vdi) -> str:
    """Return why a disk stays behind; empty if it does not."""
    if NO_BACKUP in vdi.name_label:
        return f"{NO_BACKUP} in its name"
    if tag := next((tag for tag in job.exclude_disk_tags if tag in vdi.tags), None):
        return f"tag {tag}"
    for text, disks in job.exclude_disks.items():
        if not names(text, vm.uuid, vm.name_label):
            continue
        for disk in disks:
            if disk == vbd.userdevice or names(disk, vdi.uuid, vdi.name_label):
                return f"exclude_disks has {disk!r}"
    return ""


def without_excluded(job: JobSettings, side: SourceSide) -> SourceSide:
    """Return the source side with the disks parted into those that travel and those that do not."""
    reasons = {vdi.ref: disk_exclusion(job, side.vm, vbd, vdi) for vbd, vdi in side.disks}
    return replace(
        side,
        disks=tuple((vbd, vdi) for vbd, vdi in side.disks if not reasons[vdi.ref]),
        excluded=tuple(
            Excluded(vbd, vdi, reasons[vdi.ref]) for vbd, vdi in side.disks if reasons[vdi.ref]
        ),
    )


def _is_meant(job: JobSettings, vm: Vm) -> bool:
    patterns = (text for text in job.vms if is_pattern(text))
    return any(tag in vm.tags for tag in job.tags) or any(
        names(pattern, vm.uuid, vm.name_label) for pattern in patterns
    )


def _objection(job: JobSettings, vm: Vm) -> str:
    if is_excluded(job, vm.uuid, vm.name_label):
        return "excluded by name"
    if tag := next((tag for tag in job.exclude_tags if tag in vm.tags), None):
        return f"excluded by tag {tag}"
    if tag := next(filter(_NO_BACKUP_TAG.fullmatch, vm.tags), None):
        return f"excluded by tag {tag}"
    if job.power_states and vm.power_state.lower() not in job.power_states:
        return f"it is {vm.power_state.lower()}"
    return ""
