"""Replicas of jobs that were removed or changed: list them, and forget them on command."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import datetime

import structlog

from xorepd.config.models import PoolSettings, Settings
from xorepd.control.protocol import ForgetPlanReply, OrphanReply, OrphansReply, UnresolvedReply
from xorepd.errors import ControlError, Refused, StateError, XorepdError
from xorepd.ids import PoolName, RunId
from xorepd.process.lending import Pools
from xorepd.replication.cleanup.forget import Forgetting, forget
from xorepd.replication.context.admission import Admission, replica_place
from xorepd.replication.context.board import Board, Progress
from xorepd.replication.context.lease import Leases
from xorepd.replication.context.shared_source import SourceVm
from xorepd.replication.deciding.forgetting import Terms, actions, objections
from xorepd.replication.deciding.orphans import Known, Orphan, find_orphans
from xorepd.replication.format.doubts import find_unresolved
from xorepd.replication.format.marks import ReplicaKey
from xorepd.state.maps import Maps
from xorepd.xapi.cache import PoolCache
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr

log = structlog.get_logger(__name__)

ASK_S = 20.0
"""Longest wait for a pool. After that the operator sees what the other pools answered."""


class Orphans:
    """The replicas without a job, on the pools of the current configuration.

    Args:
        settings: Returns the current configuration.
        sources: What the runs of one source VM share, by its UUID.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        pools: Pools[Pool],
        *,
        board: Board,
        admission: Admission,
        leases: Leases,
        sources: Mapping[str, SourceVm],
        clock: Callable[[], datetime],
        maps: Maps | None = None,
    ) -> None:
        self._maps = maps
        self._settings, self._pools, self._board = settings, pools, board
        self._admission, self._leases = admission, leases
        self._sources, self._clock = sources, clock

    async def find_orphans(self, known: Known = ()) -> OrphansReply:
        """Return the replicas that no job of the current configuration maintains.

        Args:
            known: UUIDs of the source VMs and target SRs in the history of this daemon.
        """
        pools, not_asked = await self._ask()
        found = find_orphans(self._settings().jobs.values(), pools, known)
        running = {record.run_id for record in self._board.records()}
        doubts = [
            doubt
            for name, cache in pools.items()
            for doubt in find_unresolved(name, cache, running)
        ]
        return OrphansReply(
            orphans=tuple(map(_told, found)),
            unresolved=tuple(UnresolvedReply(**asdict(doubt)) for doubt in doubts),
            not_asked=not_asked,
        )

    async def forget_plan(self, stream: str, terms: Terms, known: Known) -> ForgetPlanReply:
        """Return what forgetting a replica would do, and what forbids it.

        Raises:
            ControlError: a job maintains the replica, or it does not exist.
        """
        orphan = await self._orphan(stream, known)
        return ForgetPlanReply(
            orphan=_told(orphan),
            actions=actions(orphan, terms),
            objections=objections(orphan, terms),
        )

    async def forget(
        self, stream: str, terms: Terms, known: Known, report: Callable[[str], None]
    ) -> None:
        """Forget a replica, while no run of any daemon works on it.

        Raises:
            XorepdError: The replica is not forgotten, and why. What was removed is gone; the next
                call continues.
        """
        orphan = await self._orphan(stream, known)
        _check(orphan, terms)
        configured = self._settings().pools
        if not {orphan.pool, orphan.source or orphan.pool} <= configured.keys():
            raise Refused("the configuration has just changed; forget the replica again")
        async with AsyncExitStack() as stack:
            target = await stack.enter_async_context(self._pools.lend(configured[orphan.pool]))
            source = None
            if orphan.source:
                lent = self._pools.lend(configured[PoolName(orphan.source)])
                source = await stack.enter_async_context(lent)
            ids = ReplicaKey(*stream.split("/"))
            sr = target.cache.by_uuid(Sr, ids.sr)
            if sr is None:
                raise Refused(f"pool {orphan.pool}: SR {ids.sr} is gone; plug it in again")
            source_vm = self._sources[ids.vm]
            place = replica_place(ids.vm, ids.sr)
            if self._admission.at_work(place.key):
                raise Refused(
                    f"a run replicates {orphan.name} to SR {orphan.sr} now; wait for its end, or "
                    f"`xorepctl cancel {orphan.job}`"
                )
            run_id = RunId(str(uuid.uuid4()))
            progress = self._progress(orphan, run_id)
            what = f"replication of VM {orphan.name} to SR {orphan.sr} of pool {orphan.pool}"
            await stack.enter_async_context(self._admission.hold(run_id, [place]))
            stack.enter_context(source_vm.busy_for(ids.sr))
            report("waiting for the lease")
            lease = await stack.enter_async_context(
                self._leases.hold(target, sr, ids, run_id, what)
            )
            # Check again: its job may be back, or another daemon may have changed it.
            _check(await self._orphan(stream, known), terms)
            stack.enter_context(self._board.show(progress))
            log.info("forget.started", stream=stream, job=orphan.job, **asdict(terms))
            await forget(
                Forgetting(
                    stream=ids,
                    run_id=run_id,
                    job=orphan.job,
                    terms=terms,
                    source=source.guarded(lease.check) if source else None,
                    target=target.guarded(lease.check),
                    sr=sr,
                    source_vm=source_vm,
                    progress=progress,
                    clock=self._clock,
                    report=report,
                )
            )
        await self._forget_maps(stream)

    async def _forget_maps(self, stream: str) -> None:
        if self._maps is not None:
            try:
                await self._maps.retain(stream, ())
            except StateError as error:  # they expire by themselves
                log.warning("maps.not_removed", stream=stream, reason=str(error))

    def _progress(self, orphan: Orphan, run_id: RunId) -> Progress:
        """Return the progress that the status shows while the replica is being forgotten."""
        progress = Progress(
            self._board,
            run_id=run_id,
            job=orphan.job,
            vm_uuid=orphan.vm,
            vm_name=orphan.name,
            source=orphan.source,
            target=orphan.pool,
            sr=orphan.sr,
            now=self._clock(),
        )
        progress.begin(self._clock())
        return progress

    async def _orphan(self, stream: str, known: Known) -> Orphan:
        pools, not_asked = await self._ask()
        for orphan in find_orphans(self._settings().jobs.values(), pools, known):
            if orphan.stream == stream:
                return orphan
        silent = f" ({', '.join(not_asked)} did not answer)" if not_asked else ""
        raise ControlError(
            f"nothing to forget of {stream}{silent}: it is gone, or a job maintains it; then "
            "remove the VM from the job first",
            status=404,
        )

    async def _ask(self) -> tuple[dict[PoolName, PoolCache], dict[str, str]]:
        """Refresh and return the records of all pools; and for each that did not answer, why."""
        settings = self._settings()
        caches: dict[PoolName, PoolCache] = {}
        not_asked: dict[str, str] = {}

        async def ask(configured: PoolSettings) -> None:
            try:
                async with asyncio.timeout(ASK_S), self._pools.lend(configured) as pool:
                    await pool.refresh()
                    caches[configured.name] = pool.cache
            except TimeoutError:
                not_asked[configured.name] = f"no answer within {ASK_S:.0f} s"
            except (XorepdError, OSError) as error:
                not_asked[configured.name] = str(error)

        async with asyncio.TaskGroup() as group:
            for configured in settings.pools.values():
                group.create_task(ask(configured), name=f"orphans of {configured.name}")
        # In the order of the configuration.
        return {name: caches[name] for name in settings.pools if name in caches}, not_asked


def _told(orphan: Orphan) -> OrphanReply:
    return OrphanReply(**asdict(orphan))


def _check(orphan: Orphan, terms: Terms) -> None:
    """Refuse a replica that may not be forgotten on these terms."""
    for objection in objections(orphan, terms):
        raise Refused(f"{orphan.name} on {orphan.pool}/{orphan.sr}: {objection}")
