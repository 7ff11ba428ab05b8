"""The pair that one attempt of a run works on: a source VM and its replica on a target SR."""

from __future__ import annotations

from dataclasses import dataclass

from xorepd.ids import RunId
from xorepd.replication.context.board import Clock
from xorepd.replication.context.shared_source import SourceVm
from xorepd.replication.format.current import Current
from xorepd.replication.format.marks import Mark, ReplicaKey, Role
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr, Vm


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides as they were found, and the run that works on them."""

    source: Pool
    target: Pool
    vm: Vm
    """The source VM."""
    sr: Sr
    """The target SR."""
    stream: ReplicaKey
    source_vm: SourceVm
    """Locks of the source VM, for all runs that concern it."""
    current: Current
    """The state of the source VM: whether it is the current side."""
    run_id: RunId
    attempt: str
    """UUID of this attempt; a run has one for each VM and target."""
    job: str
    """Name of the job."""
    job_id: str
    """What is written to snapshots and restore points for Xen Orchestra."""
    clock: Clock

    def blank(self, role: Role) -> Mark:
        """Return what every mark of this attempt says, not signed yet."""
        origin = f"{self.stream.pool}/{self.stream.vm}"
        return Mark(
            role=role,
            stream=self.stream,
            run=self.run_id,
            attempt=self.attempt,
            lineage="" if self.current.lineage == origin else self.current.lineage,
            epoch=self.current.epoch,
            job=self.job,
        )

    def new_content(self, device: str) -> str:
        """Return a content id for a staging disk of this attempt, which no other disk has."""
        return f"xorepd-{self.attempt}-{device}"

    def target_endpoint(self) -> DiskEndpoint:
        return DiskEndpoint(self.target, self.sr.ref)
