"""The current runs: at most one per job and target, each supervised until its records are written.

A run that starts while an earlier one is still busy with some of the job's targets leaves those
out. So a slow target delays its own next run and no other.

A run is two tasks. The *work* is the replication; it may be cancelled, and records each VM when the
VM ends. The *supervisor* waits for the end of the work and records every VM that the work did not.
Nothing cancels the supervisor.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import product
from typing import Any, Protocol, Self

import structlog

from xorepd.config.models import JobSettings, TargetSettings
from xorepd.config.names import as_uuid
from xorepd.errors import ControlError, InternalError, Remedy, XorepdError
from xorepd.ids import JobName, RunId
from xorepd.replication.deciding.selection import ExcludedVm
from xorepd.replication.run.jobs import Report
from xorepd.state.history import History, without
from xorepd.state.records import Outcome, RunRecord
from xorepd.tasks import background, first_of, lone_error

log = structlog.get_logger()

STOPPED = "the daemon was stopped"

LAST_WRITE_S = 30.0
"""How long a daemon that stops keeps trying to write its last records."""


NAMED = 20
"""Most VM names in one line of the log."""


KEEP_UP_S, KEEP_UP_BYTES_PER_S = 1.0, 50_000
"""Bounds on how often the progress of a run is written, and how much: a run of 200 VMs takes 150 KB
each time."""


class JobRunner(Protocol):
    """Executes a job once."""

    async def __call__(self, job: JobSettings, run_id: RunId, report: Report) -> object:
        """Report each VM and target when it ends. Raise only if no VM has been reported."""
        ...


class Board(Protocol):
    """The state of the current runs, readable at any time."""

    def records(self) -> list[RunRecord]:
        """Return the records of the VMs that are being replicated."""
        ...

    def waiting(self) -> list[RunRecord]:
        """Return the records of the VMs that wait for their turn."""
        ...

    async def changed(self, since: int) -> int:
        """Wait until something changed after version `since`, and return the new version."""
        ...


class AlreadyRunning(ControlError):
    """A job was started while its runs are busy with all of its targets."""

    def __init__(self, job: str, run_id: str) -> None:
        self.job, self.run_id = job, run_id
        super().__init__(f"job {job} is running already (run {run_id})", status=409)


@dataclass(eq=False, slots=True)
class Run:
    """One execution of a job."""

    id: RunId
    job: JobSettings
    """As configured at the start of the run, without `busy_targets`."""
    started_at: datetime
    busy_targets: tuple[TargetSettings, ...] = ()
    """Targets with which an earlier run is still busy."""
    work: asyncio.Task[None] | None = None
    cancel_reason: str = ""
    error: XorepdError | None = None
    """Why the run as a whole failed."""
    expected: Sequence[RunRecord] = ()
    """A record for each VM and target that the run will replicate."""
    records: list[RunRecord] = field(default_factory=list)
    """The records of the VMs and targets that have ended; complete when `ended` is set."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Runs:
    """All current runs, and the writing of their history.

    An async context manager. Its exit waits for every run.
    """

    def __init__(
        self, runner: JobRunner, board: Board, history: History, clock: Callable[[], datetime]
    ) -> None:
        self._runner = runner
        self._board = board
        self._history = history
        self._clock = clock
        self._group = asyncio.TaskGroup()
        self._writing = AsyncExitStack()
        self._running: list[Run] = []
        self._replicas: dict[str, tuple[ExcludedVm, ...]] = {}
        self._closed = False
        self.on_end: Callable[[JobName], None] = lambda job: None
        """Called when a run has ended, so that its job may start again."""

    async def __aenter__(self) -> Self:
        writing = background(("history", self._history.write()))
        await self._writing.enter_async_context(writing)
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        with lone_error():
            async with self._writing:
                await self._group.__aexit__(*exc_info)
                if not await self._history.flush():
                    log.error(
                        "history.lost",
                        records=len(self._history.unwritten) + self._history.lost,
                        error=self._history.problem,
                    )

    async def take_over(self, scheduled: Collection[str]) -> set[str]:
        """Record the runs that an earlier process started and did not end.

        Args:
            scheduled: Jobs whose interrupted run may be repeated.

        Returns:
            The jobs among them whose last run the end of that process has interrupted.

        Raises:
            StateError: the history cannot be read.
        """
        found, cut = await self._history.take_over(self._clock(), scheduled)
        for record in found:
            _log_finished(record)
        return cut

    def start(self, job: JobSettings, *, cause: str) -> Run:
        """Start a run of a job, to those of its targets that no earlier run is busy with.

        Raises:
            AlreadyRunning: there is no such target.
            ControlError: the daemon is stopping.
        """
        if self._closed:
            raise ControlError("xorepd is stopping and starts no runs", status=503)
        rivals = self.of_job(job.name)
        busy = [to for to in job.targets if any(self._serves(rival, to) for rival in rivals)]
        if len(busy) == len(job.targets):
            raise AlreadyRunning(job.name, rivals[-1].id)
        free = tuple(to for to in job.targets if to not in busy)
        job = job.model_copy(update={"targets": free})
        run = Run(RunId(str(uuid.uuid4())), job, self._clock(), tuple(busy))
        run.work = self._spawn(self._attempt(run), f"run of {job.name}")
        self._spawn(self._supervise(run, run.work), f"supervisor of {job.name}")
        self._running.append(run)
        busy_targets = [to.place for to in busy]
        log.info("run.started", job=job.name, run_id=run.id, cause=cause, busy_targets=busy_targets)
        return run

    def of_job(self, job: str) -> list[Run]:
        """Return the current runs of a job, the oldest first."""
        return [run for run in self._running if run.job.name == job]

    def of_id(self, run_id: str) -> Run | None:
        """Return a current run; None if it is not running."""
        return next((run for run in self._running if run.id == run_id), None)

    def _serves(self, run: Run, to: TargetSettings) -> bool:
        """Return whether a run still has work for a target."""
        shown = [*self.shown(run), *(r for r in self._board.waiting() if r.run_id == run.id)]
        if not shown:  # the run has just started
            return any(to.place == own.place for own in run.job.targets)
        return any(r.outcome is Outcome.RUNNING and r.is_to(to.pool, to.sr) for r in shown)

    def __len__(self) -> int:
        return len(self._running)

    def cancel(self, run: Run, *, reason: str) -> None:
        """Ask a run to end. It cleans up on both pools first. A second call changes nothing."""
        # A second cancellation would interrupt the cleanup.
        if run.cancel_reason or run.work is None:
            return
        run.cancel_reason = reason
        log.info("run.cancelling", job=run.job.name, run_id=run.id, reason=reason)
        run.work.cancel()

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Start no more runs, wait up to `grace_s` seconds for the current ones, then cancel them.

        Args:
            grace_s: Seconds that the runs may take.
            hurry: Ends the wait at once.
        """
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await first_of(self._all_ended(), hurry.wait())
        for run in list(self._running):
            self.cancel(run, reason=STOPPED)
        await self._all_ended()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WRITE_S):
                await first_of(self._history.written(), hurry.wait())

    async def _all_ended(self) -> None:
        for run in list(self._running):
            await run.ended.wait()

    def shown(self, run: Run) -> list[RunRecord]:
        """Return the records of a run: the VMs that have ended, then the current ones."""
        under_way = [record for record in self._board.records() if record.run_id == run.id]
        return [*run.records, *under_way]

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._group.create_task(work, name=name)

    async def _attempt(self, run: Run) -> None:
        """Execute a run. If it fails as a whole, keep the error for the supervisor."""
        structlog.contextvars.bind_contextvars(job=run.job.name, run_id=run.id)
        run.expected = _never_begun(run)
        self._history.begin(run.job.name, run.started_at, run.id, run.expected)
        await self._history.settled()
        try:
            async with background((f"keeping up with {run.job.name}", self._keep_up(run))):
                await self._runner(run.job, run.id, _RunReport(self, run))
        except XorepdError as error:
            run.error = error
        except Exception as error:
            log.exception("run.internal_error")
            run.error = InternalError(error)

    async def _keep_up(self, run: Run) -> None:
        """Write the progress of a run to the history while it lasts, in case the process dies."""
        version = 0
        while True:
            version = await self._board.changed(version)
            shown = self.shown(run)
            begun = [record for record in shown if record.outcome is Outcome.RUNNING]
            to_come = without(run.expected, shown)
            size = self._history.expect(run.job.name, run.id, [*begun, *to_come]) if begun else 0
            await asyncio.sleep(max(KEEP_UP_S, size / KEEP_UP_BYTES_PER_S))

    async def _supervise(self, run: Run, work: asyncio.Task[None]) -> None:
        await asyncio.wait([work])
        if not run.records:
            for record in _never_begun(run):
                self.vm_ended(run, _unmet(record, run.error, self._clock()))
        if work.cancelled() and run.cancel_reason in {"", STOPPED}:
            self._history.cut(run.job.name, run.id)
        else:
            self._history.end(run.id)
        await self._history.settled()
        self._running.remove(run)
        run.ended.set()
        self.on_end(run.job.name)

    def vm_ended(self, run: Run, record: RunRecord) -> None:
        """Record how one VM of a run ended on one target."""
        if record.outcome is Outcome.CANCELLED:
            because = run.cancel_reason or "it was interrupted; the daemon's log says why"
            record = replace(record, error=because, remedy=Remedy.RETRY.value)
        run.records.append(record)
        _log_finished(record)
        self._history.add(record)

    def expects(
        self, run: Run, records: Sequence[RunRecord], replicas: Sequence[ExcludedVm]
    ) -> None:
        """Remember which VMs and targets a run will replicate, and which replicas it leaves out."""
        run.expected = records
        self._history.expect(run.job.name, run.id, records)
        known = {left.vm.uuid for left in self.replicas_of(run.job.name)}
        self._replicas[run.job.name] = tuple(replicas)
        if fresh := [left for left in replicas if left.vm.uuid not in known]:
            log.warning(
                "vms.replicas_excluded",
                job=run.job.name,
                count=len(fresh),
                vms=[f"{left.vm.name_label}: {left.reason}" for left in fresh[:NAMED]],
            )

    def replicas_of(self, job: str) -> tuple[ExcludedVm, ...]:
        """Return the replicas that the last run of a job matched and left out."""
        return self._replicas.get(job, ())


class _RunReport:
    """Receives the progress of one run (`replication.run.jobs.Report`)."""

    def __init__(self, runs: Runs, run: Run) -> None:
        self._runs, self._run = runs, run

    def expects(self, records: Sequence[RunRecord], replicas: Sequence[ExcludedVm]) -> None:
        self._runs.expects(self._run, records, replicas)

    def ended(self, record: RunRecord) -> None:
        self._runs.vm_ended(self._run, record)


def _never_begun(run: Run) -> Sequence[RunRecord]:
    job = run.job
    return [
        RunRecord(
            run_id=run.id,
            job=job.name,
            vm_uuid=as_uuid(vm),
            vm_name=vm,
            source=job.source,
            target=target.pool,
            sr=target.sr,
            outcome=Outcome.RUNNING,
            step="preflight",
            started_at=run.started_at,
        )
        for vm, target in product(job.wanted, job.targets)
    ]


def _unmet(record: RunRecord, error: XorepdError | None, now: datetime) -> RunRecord:
    """Return the final record of a VM that its run has not started."""
    if error is None:
        return replace(record, outcome=Outcome.CANCELLED, finished_at=now)
    return replace(
        record,
        outcome=Outcome.FAILED,
        finished_at=now,
        error=str(error),
        remedy=error.remedy.value,
    )


def _log_finished(record: RunRecord) -> None:
    """Write the one log line that tells all of the run of a VM."""
    facts = {key: value for key, value in record.to_json().items() if value not in (None, "")}
    facts["disks"] = [
        {key: value for key, value in disk.items() if value not in (None, "")}
        for disk in facts.pop("disks", [])
    ]
    if record.finished_at is not None:
        duration = record.finished_at - record.started_at
        facts["duration_s"] = round(duration.total_seconds(), 3)
    if record.outcome not in (Outcome.FAILED, Outcome.FROZEN):
        log.info("run.finished", **facts)
    elif record.remedy == Remedy.OPERATOR.value:
        log.error("run.finished", **facts)
    else:
        log.warning("run.finished", **facts)
