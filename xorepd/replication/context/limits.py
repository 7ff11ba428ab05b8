"""How many VMs are worked on at once in each place: a pool, one of its SRs, one of its hosts.

Who needs several places gets all of them at one moment or waits without any, so nobody waits for
somebody who waits. They are served in the order in which they came, but who finds his places free
does not wait for one who needs others.
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where only so many may be at once."""

    key: Key
    most: Callable[[], int | None]
    """Asked anew each time; None: as many as like."""


@dataclass(eq=False, slots=True)
class _Waiter:
    holder: Hashable
    places: Sequence[Place]
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class Limits:
    """Who is where, in all runs of a daemon."""

    def __init__(self) -> None:
        self._holders: defaultdict[Key, Counter[Hashable]] = defaultdict(Counter)
        self._queue: list[_Waiter] = []

    @asynccontextmanager
    async def hold(self, holder: Hashable, places: Sequence[Place]) -> AsyncIterator[None]:
        """Be in some places while a block lasts.

        Args:
            holder: counts once in each place, however often it is there: a VM with its targets.
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

    def at_work(self, key: Key) -> int:
        """Return how many are in a place."""
        return len(self._holders.get(key, ()))

    def waiting(self, key: Key) -> int:
        """Return how many would like to be in a place."""
        places = [place for waiter in self._queue for place in waiter.places]
        return sum(place.key == key for place in places)

    def wake(self) -> None:
        """Admit whoever can be, now that something may have changed."""
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


def places_of(source: Pool, vm: Vm, target: Pool, sr: Sr, limits: Limits) -> list[Place]:
    """Return where a VM is worked on when it is replicated to an SR."""
    disks = [vbd.vdi for vbd in source.cache.present(Vbd, vm.vbds) if vbd.type == "Disk"]
    srs = {source.cache.vdis[vdi].sr for vdi in disks if vdi in source.cache.vdis}
    found = {place.key: place for place in _in_pool(source, srs, vm.resident_on, limits)}
    found |= {place.key: place for place in _in_pool(target, {sr.ref}, None, limits)}
    return list(found.values())


def pool_key(name: str) -> Key:
    return ("pool", name)


def _in_pool(pool: Pool, srs: set[Ref], host: Ref | None, limits: Limits) -> list[Place]:
    """Return the places of one pool, and let it tell when it allows more."""
    key, settings = pool_key(pool.name), pool.settings
    pool.pace.at_work = lambda: limits.at_work(key)
    pool.pace.on_more = limits.wake
    places = [Place(key, lambda: _least(settings.max_vms, pool.pace.at_once))]
    if settings.max_vms_per_sr is not None:
        places += [Place(("sr", pool.name, sr), lambda: settings.max_vms_per_sr) for sr in srs]
    if settings.max_vms_per_host is not None and host in pool.cache.hosts:
        places.append(Place(("host", pool.name, str(host)), lambda: settings.max_vms_per_host))
    return places


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
