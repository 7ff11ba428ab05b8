"""What one run of one VM to one target works with. It is decided before the first step.

    Assignment ─┬─ Pair      both sides and the run
                ├─ job, to   what the operator wants of it
                ├─ shared    what the runs for the job's other targets use as well
                ├─ Carrier   what carries the data
                └─ progress  what is shown of it

The pair is enough to sweep, to stage and to commit: what needs no more takes the pair alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xorepd.config.models import JobSettings, TargetSettings
from xorepd.data.memory_budget import Allocation, MemoryBudget
from xorepd.data.nbd.reader import NbdConnectionLimit
from xorepd.ids import RunId
from xorepd.replication.context.board import Clock, Progress
from xorepd.replication.context.reservations import Reservations
from xorepd.replication.context.shared_source import SharedSource, SourceVm
from xorepd.replication.format.current import Current
from xorepd.replication.format.marks import Mark, ReplicaKey, Role
from xorepd.state.maps import Maps
from xorepd.transports.base import Transport
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


@dataclass(frozen=True, slots=True)
class Carrier:
    """What carries the data of a run, and what it may use for that."""

    transport: Transport
    nbd: NbdConnectionLimit
    budget: MemoryBudget
    reservations: Reservations
    maps: Maps | None = None
    """Of what the restore points hold; None if none are kept."""
    allocation: Allocation | None = None
    """Memory of the disk in transfer; see `Assignment.within`."""

    @property
    def memory(self) -> Allocation:
        assert self.allocation is not None, "there is no disk in transfer"
        return self.allocation


@dataclass(frozen=True, slots=True)
class Assignment:
    """One run of one VM to one target: which pair, by which policy, with what."""

    pair: Pair
    job: JobSettings
    to: TargetSettings
    """The target of the job that this is about."""
    shared: SharedSource
    """What this run shares with the runs for the job's other targets."""
    carrier: Carrier
    progress: Progress

    def within(self, allocation: Allocation) -> Assignment:
        """Return the same for one of its disks, which has this memory."""
        return replace(self, carrier=replace(self.carrier, allocation=allocation))
