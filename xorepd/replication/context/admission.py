"""Which VMs are at work: each takes all places that it needs at one moment, or waits without any.

    place                              takes at most
    the daemon                         `max_vms` of [daemon]
    a pool, as source or target        `max_vms` of the pool; fewer while it answers slowly
    an SR of a pool                    `max_vms_per_sr` of the pool
    a host of the source pool          `max_vms_per_host` of the pool
    a replica: one VM on one SR        one: two runs, or a run and `forget`, take turns

So no VM that waits keeps another one waiting. The VMs are served in the order in which they came,
but a VM whose places are free does not wait for one that needs others.

What a VM cannot take at that moment, or does not have to wait for, is elsewhere:

    how many VMs a run begins    `run.jobs`: which places a VM needs is known when both pools have
                                 been asked, and a run asks for a few VMs at a time
    leases                       `lease`: they keep other daemons away; a pool grants them, or fails
    memory, NBD connections      `data.budget`, `data.nbd.reader`: single disks take them while
                                 their VM is at work, and make do with fewer
    free space of SRs            `reservations`: a run that finds too little fails at once
    open pools                   `process.lending`: any number of runs use one
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from xorepd.ids import Ref
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr, Vbd, Vm

Key = tuple[str, ...]
DAEMON: Key = ("daemon",)


@dataclass(frozen=True, slots=True)
class Place:
    """One place, and how many it takes."""

    key: Key
    most: Callable[[], int | None]
    """Called for each decision; None: any number."""


@dataclass(eq=False, slots=True)
class _Waiter:
    holder: Hashable
    places: Sequence[Place]
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """The places that are taken and the VMs that wait, in all runs of a daemon.

    Args:
        max_vms: VMs at work at once, over all jobs; None: any number.
    """

    def __init__(self, max_vms: int | None = None) -> None:
        self._max_vms = max_vms
        self._holders: defaultdict[Key, Counter[Hashable]] = defaultdict(Counter)
        self._queue: list[_Waiter] = []

    @asynccontextmanager
    async def hold(self, holder: Hashable, places: Sequence[Place]) -> AsyncIterator[None]:
        """Wait until all these places are free, and hold them while a block lasts.

        Args:
            holder: counts once in each place, however often it holds it: a VM with its targets.
        """
        waiter = _Waiter(holder, places)
        self._queue.append(waiter)
        self.wake()
        try:
            await waiter.admitted.wait()
            yield
        finally:
            if waiter in self._queue:
                self._queue.remove(waiter)
            else:
                self._leave(waiter)
            self.wake()

    @property
    def max_vms(self) -> int | None:
        """VMs at work at once, over all jobs. Those at work stay when it falls."""
        return self._max_vms

    @max_vms.setter
    def max_vms(self, most: int | None) -> None:
        self._max_vms = most
        self.wake()

    def at_work(self, key: Key) -> int:
        """Return how many hold a place."""
        return len(self._holders.get(key, ()))

    def waiting(self, key: Key) -> int:
        """Return how many need a place and wait, for this place or for another one."""
        places = [place for waiter in self._queue for place in waiter.places]
        return sum(place.key == key for place in places)

    def wake(self) -> None:
        """Admit every waiter whose places are free now, the first one first."""
        for waiter in list(self._queue):
            if all(self._has_room(place, waiter.holder) for place in waiter.places):
                self._queue.remove(waiter)
                for place in waiter.places:
                    self._holders[place.key][waiter.holder] += 1
                waiter.admitted.set()

    def _has_room(self, place: Place, holder: Hashable) -> bool:
        most, there = place.most(), self._holders.get(place.key, Counter())
        return most is None or holder in there or len(there) < most

    def _leave(self, waiter: _Waiter) -> None:
        for place in waiter.places:
            there = self._holders[place.key]
            there[waiter.holder] -= 1
            if not there[waiter.holder]:
                del there[waiter.holder]
            if not there:
                del self._holders[place.key]


def places_of(source: Pool, vm: Vm, target: Pool, sr: Sr, admission: Admission) -> list[Place]:
    """Return what a VM needs to be replicated to an SR."""
    disks = [vbd.vdi for vbd in source.cache.present(Vbd, vm.vbds) if vbd.type == "Disk"]
    srs = {source.cache.vdis[vdi].sr for vdi in disks if vdi in source.cache.vdis}
    found = {place.key: place for place in _in_pool(source, srs, vm.resident_on, admission)}
    found |= {place.key: place for place in _in_pool(target, {sr.ref}, None, admission)}
    daemon = Place(DAEMON, lambda: admission.max_vms)
    return [replica_place(vm.uuid, sr.uuid), daemon, *found.values()]


def replica_place(vm: str, sr: str) -> Place:
    """Return the place that stands for the replica of a VM on an SR, by their UUIDs."""
    return Place(("replica", vm, sr), lambda: 1)


def pool_key(name: str) -> Key:
    return ("pool", name)


def _in_pool(pool: Pool, srs: set[Ref], host: Ref | None, admission: Admission) -> list[Place]:
    """Return the places of one pool, and let it tell when it allows more."""
    key, settings = pool_key(pool.name), pool.settings
    pool.pace.at_work = lambda: admission.at_work(key)
    pool.pace.on_more = admission.wake
    places = [Place(key, lambda: _least(settings.max_vms, pool.pace.at_once))]
    if settings.max_vms_per_sr is not None:
        places += [Place(("sr", pool.name, sr), lambda: settings.max_vms_per_sr) for sr in srs]
    if settings.max_vms_per_host is not None and host in pool.cache.hosts:
        places.append(Place(("host", pool.name, str(host)), lambda: settings.max_vms_per_host))
    return places


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
