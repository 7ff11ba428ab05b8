"""An index of the data that the relay has written: a hint, in SQLite, that may be lost or wrong.

For each written unit of 64 KiB it keeps eight bytes of its hash. When a client offers the same hash
later, the relay reads the restore point there and verifies the hash. So a lost, outdated or forged
index costs bandwidth and changes no disk.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from xorepd.data.zeroes import UNIT
from xorepd.errors import StateError
from xorepd.state.aside import set_aside

log = structlog.get_logger(__name__)

T = TypeVar("T")

FILE = "index.db"
_VERSION = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE disks (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    disk TEXT NOT NULL,
    used_at INTEGER NOT NULL,
    UNIQUE (stream, disk)
);
CREATE TABLE units (
    disk INTEGER NOT NULL,
    unit INTEGER NOT NULL,
    hash INTEGER NOT NULL,
    PRIMARY KEY (disk, unit)
) WITHOUT ROWID;
CREATE INDEX units_by_hash ON units (disk, hash);
PRAGMA user_version = {_VERSION};
COMMIT;
"""

_AT_UNIT = "SELECT unit FROM units WHERE disk = ? AND unit = ? AND hash = ?"
_ANYWHERE = "SELECT unit FROM units WHERE disk = ? AND hash = ? LIMIT 1"


class Index:
    """The open index, from `open_index`. It logs its failures and raises no errors."""

    def __init__(
        self, connection: sqlite3.Connection | None, executor: ThreadPoolExecutor, limit: int
    ) -> None:
        self._connection, self._executor, self._limit = connection, executor, limit

    async def places(
        self, stream: str, disk: str, offered: Sequence[tuple[int, bytes]]
    ) -> dict[int, int]:
        """Return where offered units may be found.

        Args:
            offered: Offset and hash of each unit.

        Returns:
            Offered offset → offset to read; preferably the same.
        """

        def look(db: sqlite3.Connection) -> dict[int, int]:
            known = _find(db, stream, disk)
            if known is None:
                return {}
            found: dict[int, int] = {}
            for offset, name in offered:
                short = _short(name)
                row = (
                    db.execute(_AT_UNIT, (known, offset // UNIT, short)).fetchone()
                    or db.execute(_ANYWHERE, (known, short)).fetchone()
                )
                if row is not None:
                    found[offset] = row[0] * UNIT
            return found

        return await self._run(look, {})

    async def note(self, stream: str, disk: str, written: Sequence[tuple[int, bytes]]) -> None:
        """Add units that were written to a disk: offset and hash of each."""

        def put(db: sqlite3.Connection) -> None:
            known = _find(db, stream, disk)
            if known is None:
                statement = "INSERT INTO disks (stream, disk, used_at) VALUES (?, ?, 0)"
                known = db.execute(statement, (stream, disk)).lastrowid
            db.execute("UPDATE disks SET used_at = ? WHERE id = ?", (int(time.time()), known))
            db.executemany(
                "INSERT OR REPLACE INTO units (disk, unit, hash) VALUES (?, ?, ?)",
                [(known, offset // UNIT, _short(name)) for offset, name in written],
            )
            self._shrink(db, known)

        if written:
            await self._run(put, None)

    def _shrink(self, db: sqlite3.Connection, but: int | None) -> None:
        """Delete the least recently written disks until the index is below its limit."""
        while _size(db) > self._limit:
            oldest = db.execute(
                "SELECT id FROM disks ORDER BY id = ?, used_at, id LIMIT 1", (but,)
            ).fetchone()
            if oldest is None:
                return
            db.execute("DELETE FROM units WHERE disk = ?", oldest)
            db.execute("DELETE FROM disks WHERE id = ?", oldest)

    async def _run(self, work: Callable[[sqlite3.Connection], T], without: T) -> T:
        if self._connection is None:
            return without
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._guarded, work, without
        )

    def _guarded(self, work: Callable[[sqlite3.Connection], T], without: T) -> T:
        if self._connection is None:
            return without
        try:
            with self._connection:
                return work(self._connection)
        except (sqlite3.Error, ValueError, TypeError) as error:  # the last two: of damage
            log.warning("index.failed", error=str(error))
            self._connection.close()
            self._connection = None
            return without

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@asynccontextmanager
async def open_index(directory: Path, limit: int) -> AsyncIterator[Index]:
    """Open the index in an existing directory; replace an unusable one.

    Args:
        limit: Largest size in bytes; 0: an index that stays empty.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xorepd-index")
    loop = asyncio.get_running_loop()
    try:
        connection = None
        if limit:
            connection = await loop.run_in_executor(executor, _open, directory / FILE)
        index = Index(connection, executor, limit)
        try:
            yield index
        finally:
            await asyncio.shield(loop.run_in_executor(executor, index.close))
    finally:
        executor.shutdown(wait=False)


def _open(path: Path) -> sqlite3.Connection | None:
    for _ in range(2):
        try:
            try:
                return _prepared(path)
            except (sqlite3.Error, ValueError) as error:
                set_aside(path, str(error), most=1)
        except (OSError, StateError) as error:
            log.warning("index.unusable", error=str(error))
            return None
    return None


def _prepared(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # What a power cut takes is found out and sent again.
        connection.execute("PRAGMA synchronous = OFF")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(_SCHEMA)
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"it has the schema {version}")
        connection.execute("SELECT count(*) FROM disks").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _find(db: sqlite3.Connection, stream: str, disk: str) -> int | None:
    row = db.execute(
        "SELECT id FROM disks WHERE stream = ? AND disk = ?", (stream, disk)
    ).fetchone()
    return None if row is None else int(row[0])


def _size(db: sqlite3.Connection) -> int:
    """Return the bytes in use: what is deleted is used again, and stays in the file until then."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _short(name: bytes) -> int:
    return int.from_bytes(name[:8], "big", signed=True)
