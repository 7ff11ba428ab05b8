"""Start jobs when they are due: one run per job; a missed run is caught up once.

The scheduler holds the next due time of each job. `fire` reads the clock once and is synchronous;
only the loop around it waits. So tests steer the clock and cover everything but the waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from xorepd.config.models import JobSettings
from xorepd.daemon.calendar import next_fire
from xorepd.ids import JobName

log = structlog.get_logger()

LONGEST_WAIT_S = 30.0
"""Waits follow the monotonic clock, schedules the wall clock, which an administrator may set.
Checking this often bounds how late a job can be after that."""
STEP_BACK = timedelta(seconds=5)
"""Time synchronisation that slews a clock does not move it back by so much."""

Start = Callable[[JobSettings, str], bool]
"""Starts a run for a cause; returns False if the job is already running."""


@dataclass(slots=True)
class _Entry:
    job: JobSettings
    due_at: datetime | None
    cause: str = "schedule"
    waiting: bool = False
    """The job came due, once or more, during a run. It starts once when that run ends."""


class Scheduler:
    """The jobs and the next due time of each."""

    def __init__(self, start: Start, clock: Callable[[], datetime]) -> None:
        self._start = start
        self._clock = clock
        self._entries: dict[JobName, _Entry] = {}
        self._looked_at = clock()
        self._woken = asyncio.Event()

    def load(
        self,
        jobs: Iterable[JobSettings],
        last_starts: Mapping[str, datetime],
        cut: Collection[str] = (),
    ) -> None:
        """Set the jobs at the start of the daemon.

        Args:
            jobs: All jobs.
            last_starts: When each last started, in this process or an earlier one. A job that has
                come due since then was missed, and is due now.
            cut: Jobs whose last run was interrupted by the end of the process; they are due now.
        """
        now = self._clock()
        self._entries = {}
        for job in jobs:
            entry = _Entry(job, _due(job, now))
            last = last_starts.get(job.name)
            # A start in the future: the clock has been set back since.
            missed = _due(job, last) if last is not None and last <= now else None
            if missed is not None and missed <= now:
                entry.due_at, entry.cause = missed, "missed"
            elif job.name in cut and is_scheduled(job):
                entry.due_at, entry.cause = now, "interrupted"
            self._entries[job.name] = entry
        self._woken.set()

    def reload(self, jobs: Iterable[JobSettings]) -> None:
        """Set the jobs after a reload. A job with the same schedule keeps its due time."""
        now = self._clock()
        old, self._entries = self._entries, {}
        for job in jobs:
            entry = old.get(job.name)
            if entry is None or _when(entry.job) != _when(job):
                entry = _Entry(job, _due(job, now))
            entry.job = job
            self._entries[job.name] = entry
        self._woken.set()

    def next_run_at(self, job: str) -> datetime | None:
        """Return when a job is next due; None if it has no schedule."""
        entry = self._entries.get(JobName(job))
        return entry.due_at if entry else None

    def ended(self, job: JobName) -> None:
        """Start the run that came due while the job was running."""
        entry = self._entries.get(job)
        if entry is not None and entry.waiting:
            entry.waiting = not self._start(entry.job, "coalesced")

    def fire(self) -> None:
        """Start the jobs that are due now."""
        now = self._clock()
        if now < self._looked_at - STEP_BACK:
            log.warning("clock.set_back", by_s=(self._looked_at - now).total_seconds())
            for entry in self._entries.values():
                entry.due_at = _due(entry.job, now)
        self._looked_at = now
        for entry in self._entries.values():
            if entry.due_at is None or entry.due_at > now:
                continue
            # Count from now, not from the due time: ten missed starts are one run.
            entry.due_at = _due(entry.job, now)
            cause, entry.cause = entry.cause, "schedule"
            if not self._start(entry.job, cause):
                entry.waiting = True
                log.info("run.postponed", job=entry.job.name, until="the current run ends")

    async def run(self) -> None:
        """Start jobs as they come due, until cancelled."""
        while True:
            self._woken.clear()
            self.fire()
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _wait_s(self) -> float:
        dues = [entry.due_at for entry in self._entries.values() if entry.due_at is not None]
        if not dues:
            return LONGEST_WAIT_S
        return min(max((min(dues) - self._clock()).total_seconds(), 0.0), LONGEST_WAIT_S)


def is_scheduled(job: JobSettings) -> bool:
    """Return whether a job has a schedule in force."""
    return job.schedule is not None and job.enabled


def _when(job: JobSettings) -> tuple[object, ...]:
    return (job.schedule, job.timezone, job.enabled)


def _due(job: JobSettings, after: datetime) -> datetime | None:
    if job.schedule is None or not job.enabled:
        return None
    return next_fire(job.schedule, job.timezone, after)
