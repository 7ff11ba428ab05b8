"""What one run of one VM is about, decided before its first step and not changed after."""

from __future__ import annotations

from dataclasses import dataclass

from xorepd.config.models import JobSettings, TargetSettings
from xorepd.data.nbd_reader import NbdBudget
from xorepd.ids import RunId
from xorepd.replication.board import Progress
from xorepd.replication.markers import Stream
from xorepd.replication.room import Room
from xorepd.replication.visit import SourceVm, Visit
from xorepd.transports.base import Transport
from xorepd.xapi.doors import DiskDoor
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
    stream: Stream
    source_vm: SourceVm
    """What this run shares with all that concern its source VM."""
    visit: Visit
    """What it shares with those for the job's other targets."""
    transport: Transport
    room: Room
    nbd: NbdBudget
    progress: Progress

    @property
    def place(self) -> str:
        """Name of the target in this run."""
        return self.to.place

    def source_door(self, vdi: Vdi) -> DiskDoor:
        return DiskDoor(self.source, vdi.sr)

    def target_door(self) -> DiskDoor:
        return DiskDoor(self.target, self.sr.ref)
