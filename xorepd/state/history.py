"""Finished runs: append, page through, expire; and per VM what a status needs at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from xorepd.errors import Remedy
from xorepd.state.records import Outcome, RunRecord
from xorepd.state.store import Store

INTERRUPTION = "xorepd or its machine died in this run; the next one cleans up after it"

EXPIRE_ROWS = 10_000
"""Rows deleted in one transaction, so that an append never waits long behind an expiry."""


@dataclass(frozen=True, slots=True)
class Latest:
    """What is known of one VM on one target."""

    record: RunRecord
    """Its last finished run, whatever the outcome."""
    newest_point_at: datetime | None
    """Point in time of the newest restore point that a run committed."""


class History:
    """Finished runs in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(
        self, job: str, at: datetime, run_id: str, records: Sequence[RunRecord]
    ) -> None:
        """Remember that a run of a job starts.

        Its moment tells whether a start was missed while the daemon was down.

        Args:
            records: what there is to say of the run if the daemon dies in it (see `interrupted`).
        """
        text = json.dumps([record.to_json() for record in records], separators=(",", ":"))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO starts VALUES (?, ?)"
                " ON CONFLICT DO UPDATE SET started_at = excluded.started_at",
                (job, at.timestamp()),
            )
            connection.execute("INSERT INTO begun (run_id, records) VALUES (?, ?)", (run_id, text))

        await self._store.run(work)

    async def last_starts(self) -> dict[str, datetime]:
        """Return when each job last started."""

        def work(connection: sqlite3.Connection) -> dict[str, datetime]:
            rows = connection.execute("SELECT job, started_at FROM starts")
            return {job: datetime.fromtimestamp(at, UTC) for job, at in rows}

        return await self._store.run(work)

    async def append(self, records: Sequence[RunRecord], *, ended: str = "") -> None:
        """Add the finished records of one run, all or none.

        Args:
            ended: the id of the run, where it began with `begin`.
        """

        def work(connection: sqlite3.Connection) -> None:
            for record in records:
                _append(connection, record)
            connection.execute("DELETE FROM begun WHERE run_id = ?", (ended,))

        await self._store.run(work)

    async def interrupted(self, now: datetime) -> list[RunRecord]:
        """Add to the history, and return, what an earlier process began and did not end.

        Args:
            now: when that was found: nobody knows when it died.
        """

        def work(connection: sqlite3.Connection) -> list[RunRecord]:
            found = [
                replace(
                    RunRecord.from_json(plain),
                    outcome=Outcome.INTERRUPTED,
                    finished_at=now,
                    error=INTERRUPTION,
                    remedy=Remedy.RETRY.value,
                )
                for (text,) in connection.execute("SELECT records FROM begun ORDER BY id")
                for plain in json.loads(text)
            ]
            for record in found:
                _append(connection, record)
            connection.execute("DELETE FROM begun")
            return found

        return await self._store.run(work)

    async def of_run(self, run_id: str) -> list[RunRecord]:
        """Return the records of one run, in the order in which they were added."""
        return await self._records("SELECT record FROM runs WHERE run_id = ? ORDER BY id", run_id)

    async def page(self, *, job: str | None = None, limit: int = 50) -> list[RunRecord]:
        """Return the newest records first, of one job or of all."""
        if job is None:
            return await self._records("SELECT record FROM runs ORDER BY id DESC LIMIT ?", limit)
        return await self._records(
            "SELECT record FROM runs WHERE job = ? ORDER BY id DESC LIMIT ?", job, limit
        )

    async def latest(self) -> list[Latest]:
        """Return what is known of every VM that a job ever ran on, the most recent first."""

        def work(connection: sqlite3.Connection) -> list[Latest]:
            rows = connection.execute("SELECT record, newest_point FROM latest ORDER BY run DESC")
            return [
                Latest(_parse(text), datetime.fromisoformat(point) if point else None)
                for text, point in rows
            ]

        return await self._store.run(work)

    async def expire(self, before: datetime) -> int:
        """Forget what finished before a moment; return how many records that were.

        The newest point of a VM whose last run is younger stays known, however old it is itself.
        """
        expired = 0
        while True:
            deleted = await self._store.run(lambda connection: _expire(connection, before))
            expired += deleted
            if deleted < EXPIRE_ROWS:
                return expired

    async def _records(self, query: str, *parameters: str | int) -> list[RunRecord]:
        def work(connection: sqlite3.Connection) -> list[RunRecord]:
            return [_parse(text) for (text,) in connection.execute(query, parameters)]

        return await self._store.run(work)


def _append(connection: sqlite3.Connection, record: RunRecord) -> None:
    text = json.dumps(record.to_json(), separators=(",", ":"))
    ended_at = record.finished_at or record.started_at
    cursor = connection.execute(
        "INSERT INTO runs (run_id, job, finished_at, record) VALUES (?, ?, ?, ?)",
        (record.run_id, record.job, ended_at.timestamp(), text),
    )
    point = record.point_in_time if record.restore_point else None
    connection.execute(
        "INSERT INTO latest VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET run = excluded.run, record = excluded.record,"
        " newest_point = coalesce(excluded.newest_point, newest_point)",
        (
            record.job,
            record.vm_uuid,
            record.vm_name,
            record.target,
            record.sr,
            cursor.lastrowid,
            text,
            point.isoformat() if point else None,
        ),
    )


def _expire(connection: sqlite3.Connection, before: datetime) -> int:
    deleted = connection.execute(
        "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE finished_at < ? LIMIT ?)",
        (before.timestamp(), EXPIRE_ROWS),
    ).rowcount
    connection.execute("DELETE FROM latest WHERE run NOT IN (SELECT id FROM runs)")
    return deleted


def _parse(text: str) -> RunRecord:
    return RunRecord.from_json(json.loads(text))
