"""Runs under way: at most one per job and target, each supervised until its records are written.

A run that starts while an earlier one is still busy with some of the job's targets leaves those
out: a slow target holds up its own next run, and not that of the others.

A run is two tasks. The *work* is the replication, and may be cancelled. The *supervisor* waits for
the work, whatever becomes of it, and writes down how it ended: nothing ever cancels it, so that no
run ends unrecorded.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import product
from typing import Any, Protocol, Self

import structlog

from xorepd.config.models import JobSettings, TargetSettings
from xorepd.errors import ControlError, Remedy, StateError, XorepdError
from xorepd.ids import JobName, RunId
from xorepd.state.history import History
from xorepd.state.records import Outcome, RunRecord
from xorepd.tasks import first_of, lone_error

log = structlog.get_logger()


class JobRunner(Protocol):
    """Executes a job once."""

    async def __call__(self, job: JobSettings, run_id: RunId) -> list[RunRecord]:
        """Return one finished record per VM; raise only when nothing can be said per VM."""
        ...


class Board(Protocol):
    """What is under way now, readable at any time."""

    def records(self) -> list[RunRecord]:
        """Return the records of runs that have not ended, as they stand."""
        ...

    def waiting(self) -> list[RunRecord]:
        """Return the records of what runs have not come to yet."""
        ...

    async def changed(self, since: int) -> int:
        """Wait until something changed after version `since`, and return the new version."""
        ...


class AlreadyRunning(ControlError):
    """A job was started while runs of it are busy with each of its targets."""

    def __init__(self, job: str, run_id: str) -> None:
        self.job, self.run_id = job, run_id
        super().__init__(f"job {job} is running already (run {run_id})", status=409)


@dataclass(eq=False, slots=True)
class Run:
    """One execution of a job."""

    id: RunId
    job: JobSettings
    """As configured when the run began, without the targets that it left out."""
    started_at: datetime
    left_out: tuple[TargetSettings, ...] = ()
    """Targets with which an earlier run is still busy."""
    work: asyncio.Task[list[RunRecord]] | None = None
    cancelled_because: str = ""
    seen: tuple[RunRecord, ...] = ()
    """What the board showed when the run was cancelled: its work clears the board as it ends."""
    records: tuple[RunRecord, ...] = ()
    """Final, once `ended` is set."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Runs:
    """All runs under way. An async context manager, whose end waits for every run."""

    def __init__(
        self, runner: JobRunner, board: Board, history: History, clock: Callable[[], datetime]
    ) -> None:
        self._runner = runner
        self._board = board
        self._history = history
        self._clock = clock
        self._group = asyncio.TaskGroup()
        self._running: list[Run] = []
        self._closed = False
        self.on_end: Callable[[JobName], None] = lambda job: None
        """Called when a run has ended and its job may start again."""

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        with lone_error():
            await self._group.__aexit__(*exc_info)

    async def take_over(self) -> None:
        """Record the runs that an earlier process began and did not end.

        Raises:
            StateError: the history cannot be used.
        """
        _log_finished(await self._history.interrupted(self._clock()))

    def start(self, job: JobSettings, *, cause: str) -> Run:
        """Start a run of a job, to those of its targets that no earlier run is busy with.

        Raises:
            AlreadyRunning: there is none.
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
        left_out = [to.place for to in busy]
        log.info("run.started", job=job.name, run_id=run.id, cause=cause, left_out=left_out)
        return run

    def of_job(self, job: str) -> list[Run]:
        """Return the runs of a job that are under way, the oldest first."""
        return [run for run in self._running if run.job.name == job]

    def of_id(self, run_id: str) -> Run | None:
        """Return a run that is under way."""
        return next((run for run in self._running if run.id == run_id), None)

    def _serves(self, run: Run, to: TargetSettings) -> bool:
        """Return whether a run under way has still something to do for a target."""
        shown = [*self._shown(run), *self._waiting(run)]
        if not shown:  # it has not come so far
            return any(to.place == own.place for own in run.job.targets)
        return any(r.outcome is Outcome.RUNNING and r.is_to(to.pool, to.sr) for r in shown)

    def __len__(self) -> int:
        return len(self._running)

    def cancel(self, run: Run, *, because: str) -> None:
        """Ask a run to end; it cleans up on both pools first. Repeating that changes nothing."""
        # A second cancellation would strike the cleaning up.
        if run.cancelled_because or run.work is None:
            return
        run.cancelled_because = because
        run.seen = (*self._shown(run), *self._waiting(run))
        log.info("run.cancelling", job=run.job.name, run_id=run.id, because=because)
        run.work.cancel()

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Start nothing more, let runs end, and cancel those that have not after `grace_s`.

        Args:
            grace_s: Seconds that they may take.
            hurry: Ends the waiting at once.
        """
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await first_of(self._all_ended(), hurry.wait())
        for run in list(self._running):
            self.cancel(run, because="the daemon was stopped")
        await self._all_ended()

    async def _all_ended(self) -> None:
        for run in list(self._running):
            await run.ended.wait()

    def _shown(self, run: Run) -> list[RunRecord]:
        return [record for record in self._board.records() if record.run_id == run.id]

    def _waiting(self, run: Run) -> list[RunRecord]:
        return [record for record in self._board.waiting() if record.run_id == run.id]

    def _spawn(
        self, work: Coroutine[Any, Any, list[RunRecord] | None], name: str
    ) -> asyncio.Task[Any]:
        return self._group.create_task(work, name=name)

    async def _attempt(self, run: Run) -> list[RunRecord]:
        """Execute a run; whatever goes wrong becomes the outcome of its VMs."""
        structlog.contextvars.bind_contextvars(job=run.job.name, run_id=run.id)
        try:
            await self._history.begin(run.job.name, run.started_at, run.id, _never_begun(run))
        except StateError as error:
            log.error("history.failed", error=str(error))  # noqa: TRY400 -- the sentence says all
        try:
            return await self._runner(run.job, run.id)
        except XorepdError as error:
            return self._unfinished(run, Outcome.FAILED, str(error), error.remedy)
        except Exception as error:
            log.exception("run.crashed")
            text = f"internal error: {type(error).__name__}: {error}"
            return self._unfinished(run, Outcome.FAILED, text, Remedy.OPERATOR)

    async def _supervise(self, run: Run, work: asyncio.Task[list[RunRecord]]) -> None:
        await asyncio.wait([work])
        if work.cancelled():
            because = run.cancelled_because or "the daemon is ending"
            records = self._unfinished(run, Outcome.CANCELLED, because, Remedy.RETRY)
        else:
            records = work.result()
        run.records = tuple(records)
        _log_finished(records)
        try:
            await self._history.append(records, ended=run.id)
        except StateError as error:
            # Losing history never costs a replica: the next runs go on.
            log.error(  # noqa: TRY400 -- the sentence says all
                "history.failed", job=run.job.name, run_id=run.id, error=str(error)
            )
        self._running.remove(run)
        run.ended.set()
        self.on_end(run.job.name)

    def _unfinished(
        self, run: Run, outcome: Outcome, error: str, remedy: Remedy
    ) -> list[RunRecord]:
        """Return final records for a run that could not finish them itself.

        What the board showed of it is kept; a run that never came so far gets one per VM and
        target.
        """
        return [
            replace(
                record,
                outcome=outcome,
                finished_at=self._clock(),
                error=error,
                remedy=remedy.value,
            )
            if record.outcome is Outcome.RUNNING
            else record
            for record in run.seen or self._shown(run) or _never_begun(run)
        ]


def _never_begun(run: Run) -> Sequence[RunRecord]:
    job = run.job
    return [
        RunRecord(
            run_id=run.id,
            job=job.name,
            vm_uuid=vm if _is_uuid(vm) else "",
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


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _log_finished(records: Iterable[RunRecord]) -> None:
    """Write the one line per VM from which its run can be understood."""
    for record in records:
        facts = {key: value for key, value in record.to_json().items() if value not in (None, "")}
        facts["disks"] = [
            {key: value for key, value in disk.items() if value not in (None, "")}
            for disk in facts.pop("disks", [])
        ]
        if record.finished_at is not None:
            duration = record.finished_at - record.started_at
            facts["duration_s"] = round(duration.total_seconds(), 3)
        if record.outcome is not Outcome.FAILED:
            log.info("run.finished", **facts)
        elif record.remedy == Remedy.OPERATOR.value:
            log.error("run.finished", **facts)
        else:
            log.warning("run.finished", **facts)
