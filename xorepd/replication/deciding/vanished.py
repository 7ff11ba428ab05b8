"""Replicas whose source VM a job means no more, or that is gone. Pure.

What was replicated before is read from the marks on the target: a daemon without any history knows
it too. Such a replica stays as it is; a job that selects by patterns or tags would not miss its VM
otherwise.

So do our snapshots of a VM that is gone, though no delta can follow them. They are the last that
the source pool has of it, and somebody may have destroyed it by mistake, or be about to import it
with the UUID that it had. They go with the rest of the stream, by `forget`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from xorepd.config.models import JobSettings
from xorepd.ids import VmUuid
from xorepd.replication.deciding.selection import Selection, has_namesake, is_excluded
from xorepd.replication.format.marks import ReplicaKey, Role
from xorepd.replication.format.ownership import own_mark
from xorepd.xapi.records import Vm


@dataclass(frozen=True, slots=True)
class Stray:
    """A replica that the job's runs do not reach any more."""

    vm: str
    """UUID of the source VM."""
    name: str
    """Of the source VM, when it was last replicated."""
    replica: Vm
    exists: bool
    """The source VM is still in its pool, and the job does not mean it now."""
    snapshots: int = 0
    """Ours of the source VM that are still in its pool."""
    is_replaced: bool = False
    """It is gone, and another VM has its name."""


def find_strays(
    job: JobSettings, selection: Selection, vms: Iterable[Vm], targets: Iterable[Vm], sr: ReplicaKey
) -> Iterator[Stray]:
    """Return the replicas that a job made on one SR and that this run leaves alone.

    VMs that are named in `vms` are left out, because their own runs fail and say so, and so are
    those in `exclude`, where an operator puts what may be gone.

    Args:
        vms: All of the source pool.
        targets: All VMs of the target pool.
        sr: Source pool and target SR; its VM does not count.
    """
    vms = list(vms)
    by_uuid = {vm.uuid: vm for vm in vms if vm.is_ordinary}
    snapshots = Counter(_snapshotted(vms, sr.pool))
    chosen = {vm.uuid for vm in selection.found}
    for replica in targets:
        mark = own_mark(replica)
        if mark is None or mark.role is not Role.REPLICA or mark.job != job.name:
            continue
        uuid = VmUuid(mark.stream.vm)
        if uuid in chosen or mark.stream != replace(sr, vm=uuid):
            continue
        found = by_uuid.get(uuid)
        former = replica.name_label.removeprefix(f"[XO Backup {job.name}] ")
        name = found.name_label if found else former
        if {uuid, name}.isdisjoint(selection.named) and not is_excluded(job, uuid, name):
            replaced = found is None and has_namesake(vms, name)
            yield Stray(uuid, name, replica, found is not None, snapshots[uuid], replaced)


def _snapshotted(vms: Iterable[Vm], pool: str) -> Iterator[str]:
    """Yield the UUID of the source VM of each snapshot of ours."""
    for vm in vms:
        mark = own_mark(vm) if vm.is_a_snapshot else None
        if mark is not None and mark.role is Role.SOURCE and mark.stream.pool == pool:
            yield mark.stream.vm
