"""What one run of one VM is about, decided before its first step and not changed after."""

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
from xorepd.xapi.records import Sr, Vdi, Vm


@dataclass(frozen=True, slots=True)
class Assignment:
    job: JobSettings
    to: TargetSettings
    """Which of the job's targets."""
    run_id: RunId
    source: Pool
    target: Pool
    vm: Vm
    """The source VM as it was found."""
    sr: Sr
    """The target SR as it was found."""
    stream: ReplicaKey
    source_vm: SourceVm
    """What this run shares with all that concern its source VM."""
    shared: SharedSource
    """What it shares with those for the job's other targets."""
    transport: Transport
    reservations: Reservations
    nbd: NbdConnectionLimit
    budget: MemoryBudget
    progress: Progress
    clock: Clock
    current: Current
    """What the source VM takes itself for."""
    attempt: str
    """UUID of this one, among all for the VMs and targets of the run."""
    maps: Maps | None = None
    """Of what the restore points hold; None where none are kept."""

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
            job=self.job.name,
        )

    def new_content(self, device: str) -> str:
        """Return a content id for a staging disk of this attempt, which no other disk has."""
        return f"xorepd-{self.attempt}-{device}"

    @property
    def place(self) -> str:
        """Name of the target in this run."""
        return self.to.place

    @property
    def memory(self) -> Allocation:
        """Memory of the disk that this is about; see `within`."""
        assert self.nbd.allocation is not None, "there is no disk in transfer"
        return self.nbd.allocation

    def within(self, allocation: Allocation) -> Assignment:
        """Return the same for one of its disks, which has this memory."""
        return replace(self, nbd=self.nbd.within(allocation))

    def source_endpoint(self, vdi: Vdi) -> DiskEndpoint:
        return DiskEndpoint(self.source, vdi.sr)

    def target_endpoint(self) -> DiskEndpoint:
        return DiskEndpoint(self.target, self.sr.ref)
