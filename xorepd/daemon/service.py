"""The daemon as its clients see it: its commands, its reload and its shutdown.

ready ──reload──► ready        the new configuration is in force from the next run of each job
  └────drain────► stopping     no new runs; the current ones end or are cancelled
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog

from xorepd.config.choices import Fulls
from xorepd.config.diff import Changes, Difference, compare
from xorepd.config.fields import nearest
from xorepd.config.models import JobSettings, Settings
from xorepd.control.protocol import (
    Event,
    Finished,
    ForgetPlanReply,
    ForgetReply,
    HistoryReply,
    HistoryStatus,
    JobsReply,
    LinkReply,
    LinksReply,
    MemoryStatus,
    Names,
    OrphansReply,
    PoolStatus,
    ReloadReply,
    RunAccepted,
    RunReply,
    StatusReply,
    VersionReply,
)
from xorepd.daemon.runs import AlreadyRunning, Board, Run, Runs
from xorepd.daemon.scheduler import Scheduler, is_scheduled
from xorepd.daemon.status import job_reply, job_status
from xorepd.daemon.streaming import stream_steps
from xorepd.data.memory_budget import MemoryBudget
from xorepd.errors import ControlError, XorepdError
from xorepd.ids import JobName
from xorepd.process.systemd import Notifier
from xorepd.replication.deciding.forgetting import Terms
from xorepd.replication.deciding.orphans import Known
from xorepd.state.aside import list_set_aside
from xorepd.state.history import History
from xorepd.state.records import RunRecord
from xorepd.tasks import first_of
from xorepd.transports.links import Links, LinkState
from xorepd.version import VERSION

log = structlog.get_logger()

EVENT_PAUSE_S = 0.25
"""Least time between two events of a run: an eye follows four a second."""
EXPIRY_PERIOD_S = 6 * 3600.0

Load = Callable[[], Settings]
"""Reads the configuration file again, blocking; raises `ConfigError`."""

Apply = Callable[[Settings, Changes], None]
"""Puts changes in force in the parts that the service does not know: pools, limits, logging. It
neither waits nor fails, so that no run starts between two configurations."""


class Orphans(Protocol):
    """The replicas without a job (`daemon.orphans`).

    `known`: UUIDs of the source VMs and target SRs in the history of this daemon.
    """

    async def find_orphans(self, known: Known = ()) -> OrphansReply:
        """Return the replicas without a job, on all pools that answer."""
        ...

    async def forget_plan(self, stream: str, terms: Terms, known: Known) -> ForgetPlanReply:
        """Return what forgetting a replica would do."""
        ...

    async def forget(
        self, stream: str, terms: Terms, known: Known, report: Callable[[str], None]
    ) -> None:
        """Forget a replica, and report each step."""
        ...


class Service:
    """The daemon behind the commands of `control.commands` and behind the signals."""

    def __init__(
        self,
        settings: Settings,
        *,
        runs: Runs,
        board: Board,
        history: History,
        notifier: Notifier,
        clock: Callable[[], datetime],
        load: Load,
        apply: Apply,
        links: Links,
        budget: MemoryBudget,
        orphans: Orphans,
        pool_states: Callable[[], tuple[PoolStatus, ...]],
    ) -> None:
        self.settings = settings
        self._runs = runs
        self._board = board
        self._history = history
        self._notifier = notifier
        self._clock = clock
        self._load = load
        self._apply = apply
        self._links = links
        self._budget = budget
        self._orphans = orphans
        self._pool_states = pool_states
        self._started_at = clock()
        self._state_dir = settings.daemon.state_dir
        self._stopping = False
        self._reloading = asyncio.Lock()
        self._scheduler = Scheduler(self._start_due, clock)
        runs.on_end = self._run_ended

    async def begin(self) -> None:
        """Start the schedules, and the runs that the downtime has interrupted or missed.

        Raises:
            StateError: the history cannot be read.
        """
        jobs = self.settings.jobs.values()
        cut = await self._runs.take_over({job.name for job in jobs if is_scheduled(job)})
        self._scheduler.load(jobs, await self._history.last_starts(), cut)
        self._notifier.ready(self._line())

    async def run_schedules(self) -> None:
        """Start runs as they come due, until cancelled."""
        await self._scheduler.run()

    async def expire_history(self) -> None:
        """Delete expired records from the history periodically, until cancelled."""
        while True:
            before = self._clock() - timedelta(seconds=self.settings.daemon.history)
            try:
                expired = await self._history.expire(before)
            except XorepdError as error:
                log.error("history.failed", error=str(error))  # noqa: TRY400 -- says all
            else:
                log.debug("history.expired", records=expired)
            await asyncio.sleep(EXPIRY_PERIOD_S)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Start no more runs, and return when the current ones have ended.

        Args:
            hurry: When set, cancels the current runs at once, not after the grace time.
        """
        self._stopping = True
        self._scheduler.reload(())
        self._notifier.stopping(self._line())
        log.info("daemon.draining", running=len(self._runs), grace_s=self.settings.daemon.grace)
        await self._runs.drain(self.settings.daemon.grace, hurry)

    def version(self) -> VersionReply:
        return VersionReply(version=VERSION)

    async def status(self) -> StatusReply:
        latest, now = self._history.latest(), self._clock()
        return StatusReply(
            version=VERSION,
            pid=os.getpid(),
            started_at=self._started_at,
            stopping=self._stopping,
            jobs=tuple(
                job_status(
                    job,
                    latest,
                    next_run_at=self._scheduler.next_run_at(job.name),
                    run_id=runs[-1].id if (runs := self._runs.of_job(job.name)) else None,
                    now=now,
                    replicas=self._runs.replicas_of(job.name),
                )
                for job in self.settings.jobs.values()
            ),
            running=tuple(self._board.records()),
            pools=self._pool_states(),
            memory=MemoryStatus(
                size_bytes=self._budget.size,
                held_bytes=self._budget.held,
                waiting=self._budget.waiting,
            ),
            set_aside=await asyncio.to_thread(list_set_aside, self._state_dir),
            history=self._history_status(),
        )

    def _history_status(self) -> HistoryStatus | None:
        if not self._history.problem:
            return None
        return HistoryStatus(
            problem=self._history.problem,
            pending=len(self._history.unwritten),
            dropped=self._history.lost,
        )

    def jobs(self) -> JobsReply:
        return JobsReply(
            jobs=tuple(
                job_reply(job, self._scheduler.next_run_at(job.name))
                for job in self.settings.jobs.values()
            )
        )

    def start_run(self, job: str, *, allow_full: bool = False) -> RunAccepted:
        settings = self._job(job)
        if allow_full and settings.full is Fulls.NEVER:
            raise ControlError(f'job {job} has full = "never"; set it to "ask" first', status=409)
        if allow_full:
            settings = settings.model_copy(update={"full": Fulls.ALLOW})
        run = self._runs.start(settings, cause="command")
        self._show()
        return RunAccepted(run_id=run.id, busy_targets=tuple(to.place for to in run.busy_targets))

    def cancel_run(self, job: str) -> RunAccepted:
        # Look at the runs first: a job that was removed may still be running.
        runs = self._runs.of_job(job)
        if not runs:
            raise ControlError(f"job {self._job(job).name} is not running", status=409)
        for run in runs:
            self._runs.cancel(run, reason="cancelled by command")
        return RunAccepted(run_id=runs[-1].id, resumable=runs[-1].job.resume > 0)

    async def run(self, run_id: str) -> RunReply:
        if run := self._runs.of_id(run_id):
            return RunReply(
                run_id=run.id, job=run.job.name, running=True, records=tuple(self._runs.shown(run))
            )
        records = await self._finished(run_id)
        return RunReply(run_id=run_id, job=records[0].job, running=False, records=records)

    async def watch_run(self, run_id: str) -> AsyncGenerator[Event, None]:
        run = self._runs.of_id(run_id)
        if run is None:
            return _only(Finished(await self._finished(run_id)))
        return self._watch(run)

    async def history(self, job: str | None, limit: int) -> HistoryReply:
        # No check of the name: a job that was removed still has a history.
        return HistoryReply(records=tuple(await self._history.page(job=job, limit=limit)))

    async def orphans(self) -> OrphansReply:
        return await self._orphans.find_orphans(self._known())

    async def forget_plan(self, stream: str, terms: Terms) -> ForgetPlanReply:
        return await self._orphans.forget_plan(stream, terms, self._known())

    async def forget(self, stream: str, terms: Terms) -> AsyncGenerator[ForgetReply, None]:
        if self._stopping:
            raise ControlError("xorepd is stopping and starts nothing", status=503)
        known = self._known()
        return stream_steps(
            lambda report: self._orphans.forget(stream, terms, known, report), stream
        )

    def _known(self) -> Known:
        records = [entry.record for entry in self._history.latest()]
        return {(record.vm_uuid, record.sr_uuid) for record in records if record.sr_uuid}

    def links(self) -> LinksReply:
        states = self._links.states()
        return LinksReply(links=tuple(_link(name, state) for name, state in states.items()))

    def set_rate(self, link: str, rate: float | None) -> LinkReply:
        try:
            state = self._links.set_rate(link, rate)
        except KeyError:
            known = list(self._links.states())
            hint = nearest(link, known) or (
                f"there is {', '.join(known)}" if known else "no job has a transport with links"
            )
            raise ControlError(f"there is no link {link!r}; {hint}", status=404) from None
        except ValueError as error:
            raise ControlError(f"link {link}: {error}", status=422) from None
        log.info("link.rate_set", link=link, rate_bytes_per_s=rate, reason=state.reason)
        return _link(link, state)

    async def reload(self) -> ReloadReply:
        """Load the configuration file again and put it in force. A bad file changes nothing.

        Raises:
            ConfigError: all mistakes in the file.
            ControlError: the daemon is stopping.
        """
        if self._stopping:
            raise ControlError("xorepd is stopping and does not reload", status=503)
        async with self._reloading:
            self._notifier.reloading()
            try:
                # In a thread: storage may hang, and the loop must not.
                settings = await asyncio.to_thread(self._load)
                changes = compare(self.settings, settings)
            except XorepdError as error:
                log.error("reload.refused", error=str(error))  # noqa: TRY400 -- says all
                raise
            else:
                self._apply(settings, changes)
                self.settings = settings
                self._scheduler.reload(settings.jobs.values())
                _log_changes(changes)
            finally:
                self._notifier.ready(self._line())
        return ReloadReply(
            jobs=_names(changes.jobs),
            pools=_names(changes.pools),
            daemon=changes.daemon,
            needs_restart=changes.needs_restart,
        )

    def _job(self, name: str) -> JobSettings:
        try:
            return self.settings.jobs[JobName(name)]
        except KeyError:
            hint = nearest(name, self.settings.jobs)
            raise ControlError(
                f"there is no job {name!r}" + (f"; {hint}" if hint else ""), status=404
            ) from None

    def _start_due(self, job: JobSettings, cause: str) -> bool:
        if self._stopping:
            return True
        try:
            self._runs.start(job, cause=cause)
        except AlreadyRunning:
            return False
        self._show()
        return True

    def _run_ended(self, job: JobName) -> None:
        self._scheduler.ended(job)
        self._show()

    def _show(self) -> None:
        self._notifier.status(self._line())

    def _line(self) -> str:
        if self._stopping:
            return f"stopping, runs to end: {len(self._runs)}"
        return f"jobs: {len(self.settings.jobs)}, running: {len(self._runs)}"

    async def _finished(self, run_id: str) -> tuple[RunRecord, ...]:
        records = await self._history.of_run(run_id)
        if not records:
            raise ControlError(f"there is no run {run_id!r}", status=404)
        return tuple(records)

    async def _watch(self, run: Run) -> AsyncGenerator[Event, None]:
        told: dict[tuple[str, ...], RunRecord] = {}
        version = 0

        async def change() -> None:
            nonlocal version
            version = await self._board.changed(version)

        while not run.ended.is_set():
            for record in self._runs.shown(run):
                what = (record.vm_uuid, record.vm_name, record.target, record.sr)
                if told.get(what) != record:
                    told[what] = record
                    yield record
            await first_of(change(), run.ended.wait())
            with suppress(TimeoutError):
                async with asyncio.timeout(EVENT_PAUSE_S):
                    await run.ended.wait()
        yield Finished(tuple(run.records))


async def _only(event: Event) -> AsyncGenerator[Event, None]:
    yield event


def _link(name: str, state: LinkState) -> LinkReply:
    rate = None if state.rate_bytes_per_s == math.inf else state.rate_bytes_per_s
    return LinkReply(
        name=name,
        rate_bytes_per_s=rate,
        reason=state.reason,
        active_disks=state.active_disks,
        sent_bytes=state.sent_bytes,
    )


def _names(difference: Difference[Any]) -> Names:
    return Names(added=difference.added, removed=difference.removed, changed=difference.changed)


def _log_changes(changes: Changes) -> None:
    facts = {
        f"{kind}_{what}": list(names)
        for kind, difference in (("jobs", changes.jobs), ("pools", changes.pools))
        for what in ("added", "removed", "changed")
        if (names := getattr(difference, what))
    }
    log.info("reload.completed", **facts, daemon=list(changes.daemon))
    if changes.needs_restart:
        log.warning("reload.needs_restart", keys=[f"daemon.{key}" for key in changes.needs_restart])
