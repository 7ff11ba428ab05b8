"""Parts of the daemon's tests: a configuration, a clock turned by hand, a runner under orders."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from xorepd.config.load import load
from xorepd.config.models import JobSettings, Settings
from xorepd.ids import RunId
from xorepd.replication.run.jobs import Report
from xorepd.state.records import DiskRecord, Outcome, RunRecord

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)

POOLS = """
[pools.prod]
url = "https://prod.example"
password_env = "PROD_PASSWORD"

[pools.dr]
url = "https://dr.example"
password_env = "DR_PASSWORD"
"""

JOB = """
[jobs.web]
source = "prod"
vms = ["web01"]
target = { pool = "dr", sr = "dr-storage" }
schedule = "*/5 * * * *"
"""


def write(directory: Path, text: str = POOLS + JOB, *, mode: int = 0o600) -> Path:
    """Return a configuration file with a text."""
    file = directory / "xorepd.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


def settings_of(directory: Path, text: str = POOLS + JOB, **environ: str) -> Settings:
    return load(write(directory, text), environ=environ)


def job(name: str = "web", **changes: Any) -> JobSettings:
    plain: dict[str, Any] = {
        "name": name,
        "source": "prod",
        "vms": ["web01"],
        "targets": [{"pool": "dr", "sr": "dr-storage"}],
        "schedule": "*/5 * * * *",
    }
    return JobSettings.model_validate(plain | changes)


def record(**changes: Any) -> RunRecord:
    """Return a finished record: a delta of one disk that committed a restore point."""
    plain: dict[str, Any] = {
        "run_id": "run-1",
        "job": "web",
        "vm_uuid": "vm-1",
        "vm_name": "web01",
        "source": "prod",
        "target": "dr",
        "sr": "dr-storage",
        "outcome": Outcome.DELTA,
        "step": "prune",
        "started_at": NOON,
        "finished_at": NOON + timedelta(seconds=30),
        "disks": (DiskRecord("0", "root", 1 << 30, "delta", "", 4096, 4096),),
        "restore_point": "point-1",
        "point_in_time": NOON + timedelta(seconds=1),
    }
    return RunRecord(**(plain | changes))


class Clock:
    """A wall clock that stands still until it is turned."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **by: float) -> None:
        self.now += timedelta(**by)


class OpenBoard:
    """A board whose records a test puts up."""

    def __init__(self) -> None:
        self._records: list[RunRecord] = []
        self.queue: list[RunRecord] = []
        self._version = 0
        self._changed = asyncio.Condition()

    def records(self) -> list[RunRecord]:
        return list(self._records)

    def waiting(self) -> list[RunRecord]:
        return list(self.queue)

    async def changed(self, since: int) -> int:
        async with self._changed:
            await self._changed.wait_for(lambda: self._version > since)
            return self._version

    async def put(self, *records: RunRecord) -> None:
        async with self._changed:
            self._records = list(records)
            self._version += 1
            self._changed.notify_all()


@dataclass
class Begun:
    """A run in the hands of the runner."""

    job: JobSettings
    run_id: RunId
    report: Report
    outcome: asyncio.Future[list[RunRecord]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    cancelled: bool = False
    broken_off: list[RunRecord] = field(default_factory=list)
    """What it reports as cancelled, when it is."""

    def succeed(self) -> None:
        self.outcome.set_result([record(run_id=self.run_id, job=self.job.name)])

    def running(self, **changes: Any) -> RunRecord:
        """Return its record as a board shows it."""
        shown = record(run_id=self.run_id, job=self.job.name, outcome=Outcome.RUNNING)
        now = {"step": "transfer", "finished_at": None, "restore_point": None}
        return replace(shown, **(now | changes))


class Runner:
    """Runs jobs that end when a test says so."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[Begun] = asyncio.Queue()

    async def __call__(self, job: JobSettings, run_id: RunId, report: Report) -> None:
        begun = Begun(job, run_id, report)
        self.begun.put_nowait(begun)
        try:
            for record in await begun.outcome:
                report.ended(record)
        except asyncio.CancelledError:
            begun.cancelled = True
            for record in begun.broken_off:
                report.ended(replace(record, outcome=Outcome.CANCELLED))
            raise
