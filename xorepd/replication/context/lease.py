"""The right to replicate one VM to one SR, held by one daemon at a time while a run lasts.

    take ─► the run, whose changes on pools all pass `Lease.check` ─► release
              └ a task renews the claim; where it cannot, the run is cancelled in time

`claims` decides what a claim is and when it counts; this module reads and writes claims. A run that
was stopped and resumes (SIGSTOP, a suspended machine) sees by a clock that did not stop that its
time is over, before its next change and not after: `xapi.pool` and its HTTP side call `check` right
before they send.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import structlog

from xorepd.errors import LeaseHeld, LeaseLost, XapiError, XapiFailure
from xorepd.ids import Ref, RunId
from xorepd.replication.format.claims import (
    Claim,
    Ending,
    Free,
    Owner,
    Taken,
    claims_on,
    decide,
    encode,
    key_of,
    rival_of,
)
from xorepd.replication.format.marks import ReplicaKey
from xorepd.tidying import settled, to_the_end
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr, parse_time

log = structlog.get_logger(__name__)

RENEWALS = 4
"""Renewals in the time that a claim is good for: three may fail in a row."""

_MARGIN = 1 / 8
"""Part of that time at whose beginning a run stops: what has been sent by then must arrive before
another daemon takes over."""

_RETRY_S = 2.0
_TIDYING_S = 10.0

_TRIES = 6
"""Two daemons that begin in the same instant may both withdraw; then each waits a random time."""
PAUSE_S = 1.0


def boot_clock() -> float:
    """Return seconds since boot, including the time in which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leases:
    """The leases of one daemon. It remembers the claims of others that it has seen.

    Args:
        owner: this daemon.
        good_for: seconds that a claim is good for without renewal.
    """

    def __init__(self, owner: Owner, good_for: float) -> None:
        self.owner = owner
        self.good_for = good_for
        self._seen: dict[str, dict[str, float]] = {}

    @asynccontextmanager
    async def hold(
        self, pool: Pool, sr: Sr, stream: ReplicaKey, run: RunId, what: str
    ) -> AsyncIterator[Lease]:
        """Hold the right to write a stream while a block lasts.

        Args:
            pool: the target pool.
            sr: the target SR.
            what: the stream, for messages.

        Raises:
            LeaseHeld: another daemon has it.
            LeaseLost: the claim could not be renewed in time, or another daemon took over. The
                block was cancelled then.
            XapiError: the pool does not answer.
        """
        lease = Lease(pool, sr.ref, stream, run, what, self)
        try:
            await lease.take()
            async with lease.kept():
                yield lease
        finally:
            await lease.release()

    def watch(self, stream: ReplicaKey, claims: Iterable[Claim]) -> dict[str, float]:
        """Return for how many seconds each claim has been seen; new ones count from now."""
        now, known = boot_clock(), self._seen.get(str(stream), {})
        others = [claim.key for claim in claims if claim.owner != self.owner.id]
        seen = {key: known.get(key, now) for key in others}
        self._seen[str(stream)] = seen
        if not seen:
            del self._seen[str(stream)]
        return {key: now - since for key, since in seen.items()}


class Lease:
    """One stream's lease. Made and held by `Leases.hold`."""

    def __init__(
        self, pool: Pool, sr: Ref, stream: ReplicaKey, run: RunId, what: str, leases: Leases
    ) -> None:
        self._pool, self._sr, self._stream = pool, sr, stream
        self._run, self._what = run, what
        self._leases = leases
        self._good_for = leases.good_for
        self._lasts = leases.good_for * (1 - _MARGIN)
        """Seconds for which a claim is good for us, from the beginning of its writing."""
        self._claim: Claim | None = None
        self._number = 0
        """Of the last claim that was written or tried; an unanswered call may have written it."""
        self._written: set[str] = set()
        """Keys of the claims that may stand on the SR: all that were tried and not removed."""
        self._deadline = 0.0
        """By the boot clock: nothing is sent after it."""
        self._lost = ""

    def check(self) -> None:
        """Make sure that a change may be sent to a pool now. May be called from any thread.

        Raises:
            LeaseLost: it may not.
        """
        if not self._lost and boot_clock() >= self._deadline:
            self._lost = "it could not be renewed in time"
        if self._lost:
            raise LeaseLost(self._what, self._lost)

    # -- taking and releasing ----------------------------------------------------------------

    async def take(self) -> None:
        """Claim the stream, after the claim of another daemon has certainly ended.

        Raises:
            LeaseHeld: another daemon holds it.
        """
        rival: Claim | None = None
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(PAUSE_S * random.random())
            epoch, before = await self._wait_until_free()
            self._deadline = boot_clock() + self._lasts
            claim = await self._write(epoch, 0)
            if claim is None:
                continue  # another daemon was faster; the next round sees it
            self._claim = claim
            beaten = {known.key for known in before}
            rival = rival_of(await self._read(), None, claim.epoch, self._leases.owner, beaten)
            if rival is None:
                await self._remove(beaten)
                log.info("lease.taken", epoch=epoch, owner=self._leases.owner.id)
                return
            self._claim = None
            await self._remove([claim.key])
        raise self._held(rival)

    async def _wait_until_free(self) -> tuple[int, list[Claim]]:
        """Return the epoch to take, and the claims that count no more."""
        while True:
            # In this order: a claim must not look as if it began later than now.
            claims, now = await self._read(), await self._now()
            watched = self._leases.watch(self._stream, claims)
            match decide(claims, self._leases.owner, now, watched):
                case Free(epoch):
                    return epoch, claims
                case Ending(claim, left_s) if left_s <= max(claim.good_for, self._good_for):
                    log.info("lease.waiting", host=claim.host, left_s=left_s)
                    await asyncio.sleep(left_s)
                case Ending(claim) | Taken(claim):
                    raise self._held(claim)

    def _held(self, by: Claim | None) -> LeaseHeld:
        until = by.until.isoformat() if by and by.until else "an unknown time"
        return LeaseHeld(self._what, by.host if by else "another machine", until)

    async def release(self) -> None:
        """Remove our claims, so that others need not wait; best effort, because they end anyway."""
        if not self._written:
            return
        with suppress(LeaseLost, XapiError, TimeoutError):
            self.check()  # a later claim may be another daemon's
            await to_the_end(self._remove(sorted(self._written)), _TIDYING_S)

    # -- keeping -----------------------------------------------------------------------------

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew the claim while a block lasts, and cancel the block when that does not succeed.

        Raises:
            LeaseLost: it did not.
        """
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout_at(self._loop_deadline())
        try:
            async with scope:
                renewing = loop.create_task(self._keep(scope), name=f"lease of {self._stream}")
                try:
                    yield
                finally:
                    renewing.cancel()
                    await settled(renewing, _TIDYING_S)
                    if renewing.done() and not renewing.cancelled():
                        renewing.result()  # a fault of ours must not pass for a lost lease
        except TimeoutError:
            if not scope.expired():
                raise
            raise LeaseLost(self._what, self._lost or "it could not be renewed in time") from None

    async def _keep(self, scope: asyncio.Timeout) -> None:
        """Renew in time until cancelled; end the scope when the lease is lost."""
        pause = self._good_for / RENEWALS
        while True:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(self._good_for / 2):
                    await self._renew()
            except LeaseLost as lost:
                self._lost = lost.reason
                log.warning("lease.lost", reason=lost.reason)
            except (XapiError, TimeoutError) as error:
                log.warning("lease.not_renewed", reason=str(error) or "no answer in time")
                pause = min(_RETRY_S, self._good_for / RENEWALS / 2)
                continue
            if scope.expired():
                return
            scope.reschedule(0 if self._lost else self._loop_deadline())
            if self._lost:
                return
            pause = self._good_for / RENEWALS

    async def _renew(self) -> None:
        old = self._claim
        assert old is not None
        self.check()
        began = boot_clock()
        self._number += 1
        new = await self._write(old.epoch, self._number)
        if new is None:
            raise LeaseLost(self._what, "another program wrote a claim in its place")
        there = await self._read()
        rival = rival_of(there, old, old.epoch, self._leases.owner, ())
        ours = [c.key for c in there if (c.owner, c.epoch) == (new.owner, new.epoch)]
        if rival is not None:
            await self._remove(ours)
            raise LeaseLost(self._what, f"the xorepd on {rival.host} has taken over")
        self._claim, self._deadline = new, began + self._lasts
        await self._remove(key for key in ours if key != new.key)

    def _loop_deadline(self) -> float:
        """Return when the lease is lost without renewal, in the time of the event loop."""
        return asyncio.get_running_loop().time() + self._deadline - boot_clock()

    # -- calls -------------------------------------------------------------------------------

    async def _now(self) -> datetime:
        """Return the time by the clock of the pool."""
        master = await self._pool.call("pool.get_master", self._pool.cache.pool.ref)
        return parse_time(await self._pool.call("host.get_servertime", master))

    async def _read(self) -> list[Claim]:
        other = await self._pool.call("SR.get_other_config", self._sr)
        return list(claims_on(other, self._stream))

    async def _write(self, epoch: int, number: int) -> Claim | None:
        """Add a claim of ours, good from now on; None if there is one of that number."""
        now = await self._now()
        key = key_of(self._stream, epoch, number)
        value = encode(self._leases.owner, self._run, now, self._good_for)
        self._written.add(key)
        try:
            await self._pool.call("SR.add_to_other_config", self._sr, key, value)
        except XapiFailure as failure:
            self._written.discard(key)
            if failure.code != "MAP_DUPLICATE_KEY":
                raise
            return None
        [claim] = claims_on({key: value}, self._stream)
        return claim

    async def _remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            await self._pool.call("SR.remove_from_other_config", self._sr, key)
            self._written.discard(key)
