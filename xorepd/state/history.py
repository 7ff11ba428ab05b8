"""The history of finished runs: known at once, written soon, paged, expired.

    begin ──► expect ──► add, for each VM and target ──► end
                                                     └─► cut: the next start runs the job again

A record is known from the moment it is added. One task (`write`) writes it to the store. While the
store fails (a full disk, a lock), the history keeps records in memory and tries again, and
`problem` says why.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import NoReturn, Self

import structlog

from xorepd.errors import Remedy, StateError
from xorepd.state.records import Outcome, RunRecord
from xorepd.state.store import Store

log = structlog.get_logger(__name__)

INTERRUPTION = (
    "xorepd or its machine went down before the end of this run was written down; "
    "the next one continues its transfers, or removes them"
)

EXPIRE_ROWS = 10_000
"""Rows deleted in one transaction, so that an append never waits long behind an expiry."""

MOST_UNWRITTEN = 10_000
"""Most records in memory while the store fails: some 30 MiB. Then the oldest are dropped."""

RETRY_S = 5.0
"""Pause between two attempts to write."""

OVER = "[]"
"""The records of a run that is over and whose job must run again."""

_Work = Callable[[sqlite3.Connection], object]
_Key = tuple[str, ...]
_Place = tuple[str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest run of one VM on one target."""

    record: RunRecord
    """The last finished run, whatever its outcome."""
    newest_point_at: datetime | None
    """Point in time of the newest restore point that a run has committed."""


def check_history(connection: sqlite3.Connection, path: Path) -> None:
    """Read everything that a start reads.

    Raises:
        Exception: the database is damaged.
    """
    for text, point in connection.execute("SELECT record, newest_point FROM latest"):
        _latest(text, point)
    for _, at in connection.execute("SELECT job, started_at FROM starts"):
        datetime.fromtimestamp(at, UTC)
    for (text,) in connection.execute("SELECT records FROM begun"):
        for plain in json.loads(text):
            RunRecord.from_json(plain)


@dataclass(frozen=True, slots=True)
class _Change:
    """A change that waits to be written."""

    work: _Work
    record: RunRecord | None = None
    """The finished record that the change adds."""
    is_end: bool = False
    """Whether the change ends a run."""


class History:
    """Finished runs, in the store and on the way to it.

    Args:
        store: The database.
        latest: The latest run of every VM and target, the most recent last.
    """

    def __init__(self, store: Store, latest: Iterable[Latest] = ()) -> None:
        self._store = store
        self._latest = {_place(each.record): each for each in latest}
        self._unwritten: dict[_Key, _Change] = {}
        self._stored = set[str]()
        """Ids of the runs that the store has as begun and not ended."""
        self._numbers = count()
        self._turn = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._tried = asyncio.Event()
        self.problem = ""
        """Why the last attempt to write failed."""
        self.lost = 0
        """Records that were dropped before they were written."""

    @classmethod
    async def open(cls, store: Store) -> Self:
        """Return the history that a store holds.

        Raises:
            StateError: the store cannot be read.
        """

        def work(connection: sqlite3.Connection) -> list[Latest]:
            rows = connection.execute("SELECT record, newest_point FROM latest ORDER BY run")
            return [
                Latest(_parse(text), datetime.fromisoformat(point) if point else None)
                for text, point in rows
            ]

        return cls(store, await store.run(work))

    # -- adding ------------------------------------------------------------------------------

    def begin(self, job: str, at: datetime, run_id: str, expected: Sequence[RunRecord]) -> None:
        """Record that a run of a job starts. It replaces the runs of the job that were cut.

        The start time tells later whether the schedule missed a start while the daemon was down.

        Args:
            expected: See `expect`.
        """
        self._put(("start", job), _Change(partial(_start, job, at)))
        self.expect(job, run_id, expected)

    def expect(self, job: str, run_id: str, expected: Sequence[RunRecord]) -> int:
        """Record the VMs and targets of a run. If the run never ends, they were interrupted.

        Args:
            expected: Their current records, with step and progress.

        Returns:
            The size of the change in bytes.
        """
        text = json.dumps([record.to_json() for record in expected], separators=(",", ":"))
        self._put(("run", run_id), _Change(partial(_expect, job, run_id, text)))
        return len(text)

    def add(self, record: RunRecord) -> None:
        """Add the final record of one VM on one target."""
        self._learn(record)
        key = ("record", str(next(self._numbers)))
        self._put(key, _Change(partial(_add, record), record))

    def end(self, run_id: str) -> None:
        """Record that a run has ended."""
        if run_id in self._stored or self._turn.locked():
            self._put(("run", run_id), _Change(partial(_end, run_id), is_end=True))
        else:
            self._unwritten.pop(("run", run_id), None)

    def cut(self, job: str, run_id: str) -> None:
        """Record that the end of the daemon has interrupted a run, so that its job runs again."""
        self._put(("run", run_id), _Change(partial(_expect, job, run_id, OVER)))

    # -- writing -----------------------------------------------------------------------------

    async def write(self) -> NoReturn:
        """Write changes as they come, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if not await self.flush():
                await asyncio.sleep(RETRY_S)
                self._wanted.set()

    async def flush(self) -> bool:
        """Try once to write all changes; return whether that succeeded."""
        async with self._turn:
            batch = dict(self._unwritten)
            if not batch:
                return True

            def work(connection: sqlite3.Connection) -> None:
                for change in batch.values():
                    change.work(connection)

            try:
                await self._store.run(work)
            except StateError as error:
                if not self.problem:
                    log.error("history.failed", error=str(error))  # noqa: TRY400 -- says all
                self.problem = str(error)
                self._drop_oldest()
            else:
                for key, change in batch.items():
                    if self._unwritten.get(key) is change:
                        del self._unwritten[key]
                    if key[0] == "run":
                        note = self._stored.discard if change.is_end else self._stored.add
                        note(key[1])
                if self.problem:
                    log.info("history.written", changes=len(batch), lost=self.lost)
                self.problem, self.lost = "", 0
            self._tried.set()
            self._tried = asyncio.Event()
            return not self.problem

    async def settled(self) -> None:
        """Wait until all earlier changes are written, or an attempt has failed."""
        while self._unwritten and not self.problem:
            await self._tried.wait()

    async def written(self) -> None:
        """Wait until all changes are written, without a time limit."""
        while self._unwritten:
            await self._tried.wait()

    def _put(self, key: _Key, change: _Change) -> None:
        self._unwritten.pop(key, None)  # so that it moves to the end of the order
        self._unwritten[key] = change
        self._wanted.set()

    def _drop_oldest(self) -> None:
        """Bound the changes in memory after a failed attempt to write them."""
        for key, change in list(self._unwritten.items()):
            if change.is_end and key[1] not in self._stored:
                del self._unwritten[key]
        records = [key for key, change in self._unwritten.items() if change.record is not None]
        for key in records[: max(len(records) - MOST_UNWRITTEN, 0)]:
            del self._unwritten[key]
            self.lost += 1

    def _learn(self, record: RunRecord) -> None:
        place = _place(record)
        former = self._latest.pop(place, None)
        point = record.point_in_time if record.restore_point else None
        if point is None and former is not None:
            point = former.newest_point_at
        self._latest[place] = Latest(record, point)

    # -- reading -----------------------------------------------------------------------------

    @property
    def unwritten(self) -> list[RunRecord]:
        """The records that are not written yet, the oldest first."""
        return [each.record for each in self._unwritten.values() if each.record is not None]

    @property
    def waiting(self) -> int:
        """How many changes are not written yet: records, and beginnings and ends of runs."""
        return len(self._unwritten)

    def latest(self) -> list[Latest]:
        """Return the latest run of every VM and target of every job, the most recent first."""
        return list(reversed(self._latest.values()))

    async def last_starts(self) -> dict[str, datetime]:
        """Return when each job last started."""

        def work(connection: sqlite3.Connection) -> dict[str, datetime]:
            rows = connection.execute("SELECT job, started_at FROM starts")
            return {job: datetime.fromtimestamp(at, UTC) for job, at in rows}

        return await self._store.run(work)

    async def of_run(self, run_id: str) -> list[RunRecord]:
        """Return the records of one run, in the order in which they were added."""
        query = "SELECT record FROM runs WHERE run_id = ? ORDER BY id"
        written = await self._records(query, run_id)
        return written + [record for record in self.unwritten if record.run_id == run_id]

    async def page(self, *, job: str | None = None, limit: int = 50) -> list[RunRecord]:
        """Return the newest records first, of one job or of all."""
        if job is None:
            query = "SELECT record FROM runs ORDER BY id DESC LIMIT ?"
            written = await self._records(query, limit)
        else:
            query = "SELECT record FROM runs WHERE job = ? ORDER BY id DESC LIMIT ?"
            written = await self._records(query, job, limit)
        fresh = [record for record in reversed(self.unwritten) if job in (None, record.job)]
        return (fresh + written)[:limit]

    # -- start and expiry --------------------------------------------------------------------

    async def take_over(
        self, now: datetime, scheduled: Collection[str]
    ) -> tuple[list[RunRecord], set[str]]:
        """Add the runs that an earlier process started and did not end.

        Args:
            now: Their end time; when the process died is unknown.
            scheduled: Jobs that may run again.

        Returns:
            The records that were added, and the jobs that must run again.

        Raises:
            StateError: the store cannot be read.
        """
        found, cut = list[RunRecord](), set[str]()
        for left in await self._store.run(_left_over):
            self._stored.add(left.run_id)
            for record in left.missing:
                interrupted = replace(
                    record,
                    outcome=Outcome.INTERRUPTED,
                    finished_at=now,
                    error=INTERRUPTION,
                    remedy=Remedy.RETRY.value,
                    rate_bytes_per_s=0.0,
                    sent_rate_bytes_per_s=0.0,
                )
                self.add(interrupted)
                found.append(interrupted)
            if left.job in scheduled and not left.is_done:
                self.cut(left.job, left.run_id)
                cut.add(left.job)
            else:
                self.end(left.run_id)
        return found, cut

    async def expire(self, before: datetime) -> int:
        """Delete the runs that finished before a moment; return how many records that were.

        If the last run of a VM is younger, its newest restore point stays known, however old it is.
        """
        expired = 0
        while True:
            deleted = await self._store.run(lambda connection: _expire(connection, before))
            expired += deleted
            if deleted < EXPIRE_ROWS:
                break
        self._latest = {
            place: latest
            for place, latest in self._latest.items()
            if _ended_at(latest.record) >= before
        }
        return expired

    async def _records(self, query: str, *parameters: str | int) -> list[RunRecord]:
        """Return written records.

        The store works in order, and so do its callers: a change that was written before this call
        is no longer among the unwritten ones when it returns.
        """

        def work(connection: sqlite3.Connection) -> list[RunRecord]:
            found = []
            for (text,) in connection.execute(query, parameters):
                try:
                    found.append(_parse(text))
                except (ValueError, TypeError) as error:  # damage, or a value of later releases
                    log.warning("history.unreadable", reason=str(error))
            return found

        return await self._store.run(work)


def _place(record: RunRecord) -> _Place:
    return record.job, record.vm_uuid, record.vm_name, record.target, record.sr


def _ended_at(record: RunRecord) -> datetime:
    return record.finished_at or record.started_at


# -- in the store's thread ---------------------------------------------------------------------


def _start(job: str, at: datetime, connection: sqlite3.Connection) -> None:
    connection.execute(
        "INSERT INTO starts VALUES (?, ?)"
        " ON CONFLICT DO UPDATE SET started_at = excluded.started_at",
        (job, at.timestamp()),
    )
    connection.execute("DELETE FROM begun WHERE job = ? AND records = ?", (job, OVER))


def _expect(job: str, run_id: str, text: str, connection: sqlite3.Connection) -> None:
    connection.execute(
        "INSERT INTO begun (run_id, job, records) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET job = excluded.job, records = excluded.records",
        (run_id, job, text),
    )


def _end(run_id: str, connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM begun WHERE run_id = ?", (run_id,))


def _add(record: RunRecord, connection: sqlite3.Connection) -> None:
    text = json.dumps(record.to_json(), separators=(",", ":"))
    cursor = connection.execute(
        "INSERT INTO runs (run_id, job, finished_at, record) VALUES (?, ?, ?, ?)",
        (record.run_id, record.job, _ended_at(record).timestamp(), text),
    )
    point = record.point_in_time if record.restore_point else None
    connection.execute(
        "INSERT INTO latest VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET run = excluded.run, record = excluded.record,"
        " newest_point = coalesce(excluded.newest_point, newest_point)",
        (*_place(record), cursor.lastrowid, text, point.isoformat() if point else None),
    )


@dataclass(frozen=True, slots=True)
class _LeftOver:
    """A run that an earlier process began."""

    run_id: str
    job: str
    missing: list[RunRecord]
    """Records of the VMs and targets that it did not finish."""
    is_done: bool
    """All VMs had ended; only the end of the run was not written."""


def _left_over(connection: sqlite3.Connection) -> list[_LeftOver]:
    found = []
    rows = connection.execute("SELECT run_id, job, records FROM begun ORDER BY id").fetchall()
    for run_id, job, text in rows:
        expected = [RunRecord.from_json(plain) for plain in json.loads(text)]
        ended = connection.execute("SELECT record FROM runs WHERE run_id = ?", (run_id,))
        missing = without(expected, [_parse(text) for (text,) in ended])
        # Before schema 3 no row has its job.
        job = job or next((record.job for record in expected), "")
        found.append(_LeftOver(run_id, job, missing, bool(expected) and not missing))
    return found


def without(expected: Iterable[RunRecord], ended: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the expected records without a final record for the same VM and target.

    Either record may have the name of VM and SR, the UUID, or both.
    """
    met = {
        (vm, record.target, sr)
        for record in ended
        for vm in (record.vm_uuid, record.vm_name)
        for sr in (record.sr, record.sr_uuid)
    }
    return [
        record
        for record in expected
        if (record.vm_uuid or record.vm_name, record.target, record.sr) not in met
    ]


def _expire(connection: sqlite3.Connection, before: datetime) -> int:
    deleted = connection.execute(
        "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE finished_at < ? LIMIT ?)",
        (before.timestamp(), EXPIRE_ROWS),
    ).rowcount
    connection.execute("DELETE FROM latest WHERE run NOT IN (SELECT id FROM runs)")
    return deleted


def _latest(text: str, point: str | None) -> Latest:
    return Latest(_parse(text), datetime.fromisoformat(point) if point else None)


def _parse(text: str) -> RunRecord:
    return RunRecord.from_json(json.loads(text))
