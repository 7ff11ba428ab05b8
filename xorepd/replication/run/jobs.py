"""One execution of a job: its VMs, a few at a time, to all targets. Each has an outcome.

    run_job ─► _VmRun, one for each VM: what its targets share
                  └► serve, one for each target ─► run.replicate

A target works through the job's VMs at its own pace. A slow target does not delay the others:
`max_vms` counts for each target separately, and waits at a rendezvous on the source are short.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol
from uuid import uuid4

import structlog
from structlog.contextvars import bound_contextvars

from xorepd.config.models import JobSettings, TargetSettings
from xorepd.config.names import as_uuid
from xorepd.data.memory_budget import MemoryBudget
from xorepd.data.nbd.reader import NbdConnectionLimit
from xorepd.errors import Frozen, InternalError, LeaseHeld, Refused, XorepdError
from xorepd.ids import PoolName, RunId
from xorepd.replication.context.admission import Admission, Place, places_of
from xorepd.replication.context.assignment import Assignment, Carrier, Pair
from xorepd.replication.context.board import Board, Clock, Progress
from xorepd.replication.context.lease import Leases
from xorepd.replication.context.rendezvous import JOIN_S
from xorepd.replication.context.reservations import Reservations
from xorepd.replication.context.shared_source import SharedSource, SourceVm
from xorepd.replication.deciding.selection import ExcludedVm, Selection
from xorepd.replication.format.current import source_of
from xorepd.replication.format.marks import ReplicaKey
from xorepd.replication.run.preflight import find_sr, find_vm
from xorepd.replication.run.replicate import replicate
from xorepd.replication.run.select_vms import find_missing, wanted_vms
from xorepd.state.maps import Maps
from xorepd.state.records import Outcome, RunRecord
from xorepd.transports.base import Surroundings, Transport
from xorepd.transports.links import Links
from xorepd.transports.registry import open_inner, open_transport
from xorepd.units import format_duration
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vm

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """What all runs of a daemon share."""

    pools: Mapping[PoolName, Pool]
    board: Board
    admission: Admission
    clock: Clock
    leases: Leases
    reservations: Reservations = field(default_factory=Reservations)
    nbd: NbdConnectionLimit = field(default_factory=NbdConnectionLimit)
    budget: MemoryBudget = field(default_factory=MemoryBudget)
    """Memory for data in transit."""
    links: Links = field(default_factory=Links)
    maps: Maps | None = None
    """Fingerprint maps of restore points; None where none are kept."""
    sources: defaultdict[str, SourceVm] = field(default_factory=lambda: defaultdict(SourceVm))
    """By UUID of the source VM: what its runs share."""
    closed: Mapping[PoolName, XorepdError] = field(default_factory=dict)
    """Target pools that could not be opened, and why."""
    join_s: float = JOIN_S
    """How long the targets of a VM wait for each other at most."""


class Report(Protocol):
    """Receives the progress of a run; it neither waits nor fails."""

    def expects(self, records: Sequence[RunRecord], replicas: Sequence[ExcludedVm]) -> None:
        """Receive a first record for each VM and target of the run.

        Args:
            replicas: VMs that patterns and tags match and that the run leaves out.
        """
        ...

    def ended(self, record: RunRecord) -> None:
        """Receive the final record of one VM and target."""
        ...


async def run_job(
    job: JobSettings, run_id: RunId, context: Context, report: Report | None = None
) -> list[RunRecord]:
    """Replicate each VM of a job once to each of its targets.

    Args:
        report: called for each VM and target when it ends, even if the run is cancelled.

    Returns:
        One record per VM and target, in the job's order, and then one for each VM that is gone
        and has a replica. A failure stops no other VM or target.

    Raises:
        asyncio.CancelledError: on cancellation, after every VM has cleaned up.
    """
    turns = {to.place: asyncio.Semaphore(job.max_vms) for to in job.targets}
    late = set[str]()

    def tell(record: RunRecord) -> RunRecord:
        if report is not None:
            report.ended(record)
        return record

    async def serve(vm: _VmRun, to: TargetSettings, progress: Progress) -> RunRecord:
        try:
            with context.board.show(progress):
                async with turns[to.place]:
                    with bound_contextvars(
                        job=job.name, run_id=run_id, vm=vm.wanted, target=to.place
                    ):
                        record = await vm.serve(to, progress)
        except asyncio.CancelledError:
            tell(progress.finished(Outcome.CANCELLED, None, context.clock()))
            raise
        finally:
            vm.shared.leave(to.place)
        return tell(record)

    async def miss(selection: Selection, to: TargetSettings) -> list[RunRecord]:
        pools = context.pools
        records = await find_missing(
            job, run_id, selection, to, pools[job.source], pools[to.pool], context.clock
        )
        return [tell(record) for record in records]

    selected = await wanted_vms(job, run_id, context.pools[job.source], context.clock)
    async with asyncio.TaskGroup() as group:
        tasks, missing = [], []
        expected: list[RunRecord] = []
        if selection := selected.selection:
            for to in (to for to in job.targets if to.pool in context.pools):
                name = f"{job.name} missing on {to.place}"
                missing.append(group.create_task(miss(selection, to), name=name))
        found = selection.found if selection else ()
        names: dict[str, str] = {vm.uuid: vm.name_label for vm in found}
        for wanted in selected.wanted:
            vm = _VmRun(job, run_id, wanted, names.get(wanted, wanted), context, late, group)
            for to in job.targets:
                progress = vm.progress_to(to)
                expected.append(progress.running())
                name = f"{job.name} {wanted} to {to.place}"
                tasks.append(group.create_task(serve(vm, to, progress), name=name))
        if report is not None:
            report.expects(expected, selection.replicas if selection else ())
        for record in selected.records:
            tell(record)
    served = [task.result() for task in tasks]
    return [*selected.records, *served, *chain(*(task.result() for task in missing))]


class _VmRun:
    """One VM in one run of a job, with all its targets."""

    def __init__(
        self,
        job: JobSettings,
        run_id: RunId,
        wanted: str,
        label: str,
        context: Context,
        late: set[str],
        group: asyncio.TaskGroup,
    ) -> None:
        self._job, self._run_id, self._context = job, run_id, context
        self.wanted, self._label = wanted, label
        self._finding = asyncio.Lock()
        self._vm: Vm | None = None
        places = [to.place for to in job.targets]
        self.shared = SharedSource(places, late, group, context.budget, context.join_s)

    def progress_to(self, to: TargetSettings) -> Progress:
        """Return the progress of the VM on one target; at first it waits."""
        return Progress(
            self._context.board,
            run_id=self._run_id,
            job=self._job.name,
            vm_uuid=as_uuid(self.wanted),
            vm_name=self._label,
            source=self._job.source,
            target=to.pool,
            sr=to.sr,
            now=self._context.clock(),
        )

    async def serve(self, to: TargetSettings, progress: Progress) -> RunRecord:
        """Replicate the VM to one target, independently of the others; return the final record."""
        job, context = self._job, self._context
        progress.begin(context.clock())
        try:
            async with asyncio.timeout(job.deadline) as deadline:
                outcome = await self._replicate(to, progress, deadline)
        except asyncio.CancelledError:
            log.info("run.cancelled", step=progress.step)
            raise
        except Exception as error:
            if deadline.expired():  # whatever came of the cancellation
                late = Refused(
                    f"VM {self.wanted}: not done after {format_duration(job.deadline)}, the "
                    f"deadline of job {job.name} (in step {progress.step}); raise it if that "
                    "is too short"
                )
                return progress.finished(Outcome.FAILED, late, context.clock())
            if isinstance(error, LeaseHeld):
                return progress.finished(Outcome.LEASE_HELD, error, context.clock())
            if isinstance(error, Frozen):
                return progress.finished(Outcome.FROZEN, error, context.clock())
            if isinstance(error, XorepdError):
                return progress.finished(Outcome.FAILED, error, context.clock())
            # A bug that concerns one VM must not stop the others, and must be visible.
            log.exception("run.internal_error", step=progress.step)
            return progress.finished(Outcome.FAILED, InternalError(error), context.clock())
        return progress.finished(outcome, None, context.clock())

    async def _replicate(
        self, to: TargetSettings, progress: Progress, deadline: asyncio.Timeout
    ) -> Outcome:
        job, context = self._job, self._context
        if to.pool in context.closed:
            raise context.closed[to.pool]
        source, target = context.pools[job.source], context.pools[to.pool]
        transport = await _open_transport(job, to, context)
        vm = await self._find(source)
        progress.vm_uuid, progress.vm_name = vm.uuid, vm.name_label
        await target.refresh()
        sr = find_sr(target.cache, target.name, to.sr)
        progress.sr, progress.sr_uuid = sr.name_label, sr.uuid
        stream = ReplicaKey(pool=source.cache.pool.uuid, vm=vm.uuid, sr=sr.uuid)
        what = f"replication of VM {vm.name_label} to SR {sr.name_label} of pool {target.name}"
        source_vm = context.sources[vm.uuid]
        places = places_of(source, vm, target, sr, context.admission)
        with self.shared.serving(sr):
            async with (
                self._admitted(places, source_vm.busy_for(sr.uuid), progress, deadline),
                context.leases.hold(target, sr, stream, self._run_id, what) as lease,
            ):
                pair = Pair(
                    source=source.guarded(lease.check),
                    target=target.guarded(lease.check),
                    vm=vm,
                    sr=sr,
                    stream=stream,
                    source_vm=source_vm,
                    current=source_of(vm, stream.pool),
                    run_id=self._run_id,
                    attempt=str(uuid4()),
                    job=job.name,
                    job_id=job.id,
                    clock=context.clock,
                )
                carrier = Carrier(
                    transport, context.nbd, context.budget, context.reservations, context.maps
                )
                return await replicate(Assignment(pair, job, to, self.shared, carrier, progress))

    @asynccontextmanager
    async def _admitted(
        self,
        places: Sequence[Place],
        busy: AbstractContextManager[None],
        progress: Progress,
        deadline: asyncio.Timeout,
    ) -> AsyncIterator[None]:
        """Wait until the VM has all its places; that does not count towards its deadline.

        A VM that is alone never waits: each place takes at least one VM.
        """
        progress.enter("queue")
        deadline.reschedule(None)
        async with self._context.admission.hold(self, places):
            progress.enter("connect")
            deadline.reschedule(asyncio.get_running_loop().time() + self._job.deadline)
            with busy:
                yield

    async def _find(self, source: Pool) -> Vm:
        """Return the source VM, the same for all targets."""
        async with self._finding:
            if self._vm is None:
                await source.refresh()
                self._vm = find_vm(source.cache, source.name, self.wanted)
            return self._vm


async def _open_transport(job: JobSettings, to: TargetSettings, context: Context) -> Transport:
    settings = job.transport_to(to)
    surroundings = Surroundings(
        job=job.name,
        source=job.source,
        target=to.pool,
        links=context.links,
        clock=context.clock,
        opener=open_inner,
    )
    # In a thread, because it is the code of others and may be slow.
    return await asyncio.to_thread(open_transport, settings.name, settings.options, surroundings)
