"""Replicas whose source VM is gone, or is no longer selected by its job. Pure.

The marks on the target say what was replicated before, so a daemon without a history knows it, too.
Such a replica stays as it is. A job that selects by patterns or tags would not miss its VM
otherwise.

Our snapshots of a VM that is gone stay as well, although no delta can follow them. They are the
last copy that the source pool has of it: a person may have destroyed the VM by mistake, or may be
about to import it with the same UUID. They go with the rest of the stream, by `forget`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xorepd.config.models import JobSettings
from xorepd.ids import VmUuid
from xorepd.replication.deciding.selection import Selection, has_namesake, is_excluded
from xorepd.replication.format.index import marks_on
from xorepd.replication.format.marks import ReplicaKey, Role
from xorepd.xapi.records import Vm
from xorepd.xapi.tables import Tables


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
    job: JobSettings, selection: Selection, source: Tables, target: Tables, sr: ReplicaKey
) -> Iterator[Stray]:
    """Return the replicas that a job made on one SR and that this run leaves alone.

    VMs that are named in `vms` are left out, because their own runs fail and say so, and so are
    those in `exclude`, where an operator puts what may be gone.

    Args:
        sr: Source pool and target SR; its VM does not count.
    """
    chosen = {vm.uuid for vm in selection.found}
    for bearer in marks_on(target).vms.find(role=Role.REPLICA, signed=True):
        replica, stream = bearer.what, bearer.mark.stream
        uuid = VmUuid(stream.vm)
        if bearer.mark.job != job.name or uuid in chosen or stream != replace(sr, vm=uuid):
            continue
        found = source.by_uuid(Vm, uuid)
        found = found if found is not None and found.is_ordinary else None
        former = replica.name_label.removeprefix(f"[XO Backup {job.name}] ")
        name = found.name_label if found else former
        if {uuid, name}.isdisjoint(selection.named) and not is_excluded(job, uuid, name):
            replaced = found is None and has_namesake(source.vms.values(), name)
            ours = marks_on(source).vms.find(stream.of_source, Role.SOURCE, signed=True)
            snapshots = sum(each.what.is_a_snapshot for each in ours)
            yield Stray(uuid, name, replica, found is not None, snapshots, replaced)
