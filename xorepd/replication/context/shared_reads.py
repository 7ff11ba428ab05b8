"""Shared reads: the targets of one VM that need the same data of a disk read it together.

Targets meet at two rendezvous: one before any of them reads, because a pool that serves a disk no
longer lists its changed blocks, and one for each disk. A target that comes late reads alone.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from xorepd.data.fanout import Branch, FanOut, OpenReader, most_branches
from xorepd.data.memory_budget import Allocation, MemoryBudget
from xorepd.errors import XorepdError
from xorepd.replication.context.rendezvous import Rendezvous

log = structlog.get_logger(__name__)

CLOSE_S = 30.0
"""How long the last target waits for a shared read to close."""

Key = tuple[str, str]
"""UUIDs of a disk and of its base (empty for a whole disk). Equal keys need equal data."""


@dataclass(frozen=True, slots=True)
class _Shared:
    fan: FanOut
    branches: dict[str, Branch]
    pump: asyncio.Task[None]


class SharedReads:
    """The reads that the targets of one VM share.

    Args:
        places: Names of the targets that may come.
        late: Targets that no other waits for. A target whose branch was too slow is added.
        group: Owns the tasks that read.
        budget: Source of their memory.
    """

    def __init__(
        self,
        places: Iterable[str],
        late: set[str],
        patience_s: float,
        group: asyncio.TaskGroup,
        budget: MemoryBudget,
    ) -> None:
        self._late, self._patience_s, self._group = late, patience_s, group
        self._budget = budget
        self._before = Rendezvous(places, late, patience_s)
        self._wanting: defaultdict[Key, set[str]] = defaultdict(set)
        self._at_disk: dict[Key, Rendezvous] = {}
        self._allocations: dict[tuple[Key, str], Allocation] = {}
        self._shared: dict[Key, _Shared] = {}

    async def announce(self, place: str, keys: Iterable[Key]) -> None:
        """Announce what a target will read, and wait until the others have announced theirs."""
        for key in keys:
            self._wanting[key].add(place)
        if not await self._before.arrive(place):
            self._forget(place)

    @asynccontextmanager
    async def join(
        self, place: str, key: Key, allocation: Allocation, open_reader: OpenReader
    ) -> AsyncIterator[Branch | None]:
        """Give a branch of a shared read; None if no other target shares it.

        Args:
            allocation: Of the disk. It is empty before, because a target at a rendezvous must not
                hold memory. With a branch it has what the disk needs.
            open_reader: Opens the disk, if no other target has. It must work on even if `place`
                fails.
        """
        self._allocations[key, place] = allocation
        shared = await self._shared_read(place, key, open_reader)
        if shared is None:
            yield None
            return
        branch = shared.branches[place]
        try:
            yield branch if await _is_open(branch) else None
        finally:
            branch.part()
            if not shared.fan.attached:  # the read must have ended before the last target cleans up
                shared.pump.cancel()
                await asyncio.wait({shared.pump}, timeout=CLOSE_S)

    def leave(self, place: str) -> None:
        """Stop the others from waiting for a target that is done or has failed."""
        self._forget(place)
        for rendezvous in (self._before, *self._at_disk.values()):
            rendezvous.leave(place)
        for shared in self._shared.values():
            if place in shared.branches:
                shared.branches[place].part()

    def _forget(self, place: str) -> None:
        for places in self._wanting.values():
            places.discard(place)

    async def _shared_read(self, place: str, key: Key, open_reader: OpenReader) -> _Shared | None:
        if len(self._wanting[key] | {place}) < 2 or place not in self._wanting[key]:
            return None
        if key not in self._at_disk:
            self._at_disk[key] = Rendezvous(self._wanting[key], self._late, self._patience_s)
        rendezvous = self._at_disk[key]
        if not await rendezvous.arrive(place):
            return None
        if key not in self._shared:
            if min(len(rendezvous.present), most_branches(self._budget)) < 2:
                return None
            self._shared[key] = self._begin(key, rendezvous.present, open_reader)
        shared = self._shared[key]
        return shared if place in shared.branches else None

    def _begin(self, key: Key, places: Iterable[str], open_reader: OpenReader) -> _Shared:
        def note_slow(branch: Branch) -> None:
            for place, each in branches.items():
                if each is branch:
                    log.info("read.split", disk=key[0], slow=place)
                    self._late.add(place)

        fan = FanOut(open_reader, self._budget, on_slow=note_slow)
        together = sorted(places)[: most_branches(self._budget)]
        branches = {place: fan.attach(self._allocations[key, place]) for place in together}
        pump = self._group.create_task(fan.run(), name=f"shared read of {key[0]}")
        return _Shared(fan, branches, pump)


async def _is_open(branch: Branch) -> bool:
    """Return whether a shared read could be opened. If not, each target opens its own."""
    try:
        await branch.opened()
    except XorepdError as error:
        log.info("read.not_shared", reason=str(error))
        return False
    return True
