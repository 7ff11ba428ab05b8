"""What the targets of one source VM share on the source: the snapshot, the migration block.

`SharedSource` is one source VM in one run of a job. A task of its own serves each target, and
targets wait for each other only at a rendezvous, which ends. Several runs of one VM may be under
way: those of two jobs, or an earlier one that still serves a slow target. All of them share
`SourceVm`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from xorepd.data.memory_budget import MemoryBudget
from xorepd.errors import Refused
from xorepd.replication.context.rendezvous import JOIN_S, Rendezvous
from xorepd.replication.context.shared_reads import Key, SharedReads
from xorepd.replication.deciding.reader_choice import Choice, Facts
from xorepd.replication.format.inventory import VmSnapshot
from xorepd.replication.format.marks import ReplicaKey
from xorepd.xapi.records import OWNER_PREFIX, Sr


def owner_of_shared(stream: ReplicaKey) -> str:
    """Return the name under which the tasks of a shared read run, by the stream that began it."""
    return f"{OWNER_PREFIX}{stream}/shared"


class SourceVm:
    """One source VM, for all runs of this daemon."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        """Held to change something on the source: snapshots, their marks, blocks. Never held during
        a call to a target pool."""
        self.busy: set[str] = set()
        """UUIDs of the target SRs of current runs and of `forget`."""
        self._readers: list[str] = []
        self._lent: list[str] = []

    @contextmanager
    def reading(self, sr: str) -> Iterator[None]:
        """Record that the VM's snapshot is being read for a target, until the block ends."""
        self._readers.append(sr)
        try:
            yield
        finally:
            self._readers.remove(sr)

    @contextmanager
    def lending(self, stream: str) -> Iterator[None]:
        """Record that a read which a stream began serves other targets, until the block ends."""
        self._lent.append(stream)
        try:
            yield
        finally:
            self._lent.remove(stream)

    def is_lent(self, stream: str) -> bool:
        return stream in self._lent

    @property
    def read_for(self) -> set[str]:
        """UUIDs of the SRs for which a snapshot is being read."""
        return set(self._readers)

    @contextmanager
    def busy_for(self, sr: str) -> Iterator[None]:
        """Say that the replica on an SR is being changed; `admission` lets in one at a time."""
        self.busy.add(sr)
        try:
            yield
        finally:
            self.busy.remove(sr)


class SharedSource:
    """One source VM in one run.

    Args:
        places: names of the targets that may come.
        late: targets that no other waits for any more; the VMs of a run share it.
        group: owns what the targets have in common, and outlives any one of them.
        budget: source of the memory of shared reads.
    """

    def __init__(
        self,
        places: Collection[str],
        late: set[str],
        group: asyncio.TaskGroup,
        budget: MemoryBudget,
        patience_s: float = JOIN_S,
    ) -> None:
        self.before_snapshot = Rendezvous(places, late, patience_s)
        self.reads = SharedReads(places, late, patience_s, group, budget)
        self.facts: dict[Key, Facts] = {}
        """What the source pool offers for each disk."""
        self.asking: defaultdict[Key, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.choices: dict[Key, Choice] = {}
        """How the disks that are read together are read."""
        self.snapshot: VmSnapshot | None = None
        """Taken by the first target, for all of them."""
        self.awaiting: dict[str, list[int]] = {}
        """UUID of each target SR of the run → orders of the older restore points there."""
        self._served: set[str] = set()

    @contextmanager
    def serving(self, sr: Sr) -> Iterator[None]:
        """Take part for a target until the block ends.

        Raises:
            Refused: another target of the job is the same SR.
        """
        if sr.uuid in self._served:
            raise Refused(
                f"SR {sr.name_label} is two targets of the job, by its UUID and by its name; "
                "remove one of them"
            )
        self._served.add(sr.uuid)
        try:
            yield
        finally:
            self.awaiting.pop(sr.uuid, None)

    def leave(self, place: str) -> None:
        """Stop the others from waiting for a target that is done or has failed."""
        self.before_snapshot.leave(place)
        self.reads.leave(place)
