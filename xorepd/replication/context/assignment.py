"""What one run of one VM to one target works with. It is decided before the first step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xorepd.config.models import JobSettings, TargetSettings
from xorepd.data.budget import Budget, Holding
from xorepd.data.nbd.reader import NbdBudget
from xorepd.replication.context.board import Progress
from xorepd.replication.context.pair import Pair
from xorepd.replication.context.reservations import Reservations
from xorepd.replication.context.shared_source import SharedSource
from xorepd.state.maps import Maps
from xorepd.transports.base import Transport


@dataclass(frozen=True, slots=True)
class Carrier:
    """What carries the data of a run, and what it may use for that."""

    transport: Transport
    nbd: NbdBudget
    budget: Budget
    reservations: Reservations
    maps: Maps | None = None
    """Of what the restore points hold; None if none are kept."""

    @property
    def memory(self) -> Holding:
        """Memory of the disk in transfer; see `within`."""
        assert self.nbd.holding is not None, "there is no disk in transfer"
        return self.nbd.holding

    def within(self, holding: Holding) -> Carrier:
        """Return the same for one disk, which has this memory."""
        return replace(self, nbd=self.nbd.within(holding))


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

    @property
    def place(self) -> str:
        """Name of the target in this run."""
        return self.to.place

    def within(self, holding: Holding) -> Assignment:
        """Return the same for one of its disks, which has this memory."""
        return replace(self, carrier=self.carrier.within(holding))
