"""The database: one SQLite file, one connection, one thread.

SQLite blocks, and a connection belongs to the thread that made it. So every access goes through an
executor with a single thread, which also makes it the one writer: no locking, no SQLITE_BUSY.

The schema's version is `PRAGMA user_version`. Each entry of `MIGRATIONS` takes the file from one
version to the next, in one transaction, and is never edited once released.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from xorepd.errors import StateError

T = TypeVar("T")

MIGRATIONS: Sequence[str] = (
    # 1: finished runs, one row per VM; and for each VM what a status shows, kept apart so that
    # neither a long history nor its expiry makes a status slow or wrong.
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL,
        job TEXT NOT NULL,
        finished_at REAL NOT NULL,
        record TEXT NOT NULL
    );
    CREATE INDEX runs_by_job ON runs (job, id);
    CREATE INDEX runs_by_run ON runs (run_id);
    CREATE INDEX runs_by_end ON runs (finished_at);
    CREATE TABLE latest (
        job TEXT NOT NULL,
        vm_uuid TEXT NOT NULL,
        vm_name TEXT NOT NULL,
        target TEXT NOT NULL,
        sr TEXT NOT NULL,
        run INTEGER NOT NULL,
        record TEXT NOT NULL,
        newest_point TEXT,
        PRIMARY KEY (job, vm_uuid, vm_name, target, sr)
    ) WITHOUT ROWID;
    CREATE TABLE starts (
        job TEXT PRIMARY KEY,
        started_at REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    # 2: runs that have begun and not ended, with the records that they have should they never end.
    """
    CREATE TABLE begun (
        id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL UNIQUE,
        records TEXT NOT NULL
    );
    """,
    # 3: of which job each of them is: one without records is over, and its job is to be run again.
    """
    ALTER TABLE begun ADD COLUMN job TEXT NOT NULL DEFAULT '';
    """,
)

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another program holds it; end that one",
    sqlite3.SQLITE_FULL: "make room there",
}
"""By primary result code: what helps, where it is no damage."""


class Store:
    """An open database. `run` is the only way to it."""

    def __init__(
        self, path: Path, holds: str, connection: sqlite3.Connection, executor: ThreadPoolExecutor
    ) -> None:
        self.path, self._holds = path, holds
        self._connection = connection
        self._executor = executor

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `work` returns, called in the database's thread inside a transaction.

        A cancelled caller stops waiting; the transaction ends by itself.

        Raises:
            StateError: SQLite refuses (disk full, damaged file, …).
        """

        def transaction() -> T:
            try:
                with self._connection:
                    return work(self._connection)
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                remedy = _REMEDIES.get(code) or (
                    "if the file is damaged, stop xorepd and move it aside: only "
                    f"{self._holds} is lost"
                )
                raise StateError(f"{self.path}: {error}; {remedy}") from error

        return await asyncio.get_running_loop().run_in_executor(self._executor, transaction)


def database_problem(path: Path) -> str:
    """Return why a file cannot be opened as the history, as far as its head tells; empty if it can.

    Source: https://www.sqlite.org/fileformat2.html, "The Database Header".
    """
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"{path}: cannot be opened ({error.strerror})"
    if not head:
        return ""
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        return f"{path}: is no database; move it aside, a new one is made and only history is lost"
    if (version := int.from_bytes(head[60:64], "big")) > len(MIGRATIONS):
        return _newer(path, version, MIGRATIONS, "history")
    return ""


def _newer(path: Path, version: int, migrations: Sequence[str], holds: str) -> str:
    return (
        f"{path}: was written by a newer xorepd (schema {version}, this one knows "
        f"{len(migrations)}); upgrade xorepd, or move the file aside and lose only {holds}"
    )


@asynccontextmanager
async def open_store(
    path: Path, migrations: Sequence[str] = MIGRATIONS, *, holds: str = "history"
) -> AsyncIterator[Store]:
    """Open the database, making or migrating it as needed, and close it at the end.

    Args:
        path: The file; its directory must exist. Made with mode 0600: records name VMs and errors.
        migrations: what makes its schema.
        holds: what is lost with the file, for messages.

    Raises:
        StateError: it is no database of ours, a newer xorepd wrote it, or it cannot be opened.
    """
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xorepd-state")
    try:
        connection = await loop.run_in_executor(executor, _open, path, migrations, holds)
        try:
            yield Store(path, holds, connection, executor)
        finally:
            # In the same queue as all work: what was begun is done before this.
            await asyncio.shield(loop.run_in_executor(executor, connection.close))
    finally:
        executor.shutdown(wait=False)


def _open(path: Path, migrations: Sequence[str], holds: str) -> sqlite3.Connection:
    try:
        # SQLite would make it with the umask's mode; its -wal and -shm files copy this one's.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"{path}: cannot be opened ({error}); check [daemon] state_dir") from error
    try:
        _prepare(connection, path, migrations, holds)
    except sqlite3.Error as error:
        connection.close()
        raise StateError(
            f"{path}: is not a usable database ({error}); move it aside, a new one is made and "
            f"only {holds} is lost"
        ) from error
    except StateError:
        connection.close()
        raise
    return connection


def _prepare(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[str], holds: str
) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # With WAL, NORMAL loses at most the last runs at a power cut and never damages the file.
    connection.execute("PRAGMA synchronous = NORMAL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise StateError(_newer(path, version, migrations, holds))
    for number, migration in enumerate(migrations[version:], start=version + 1):
        # executescript commits what is open before it begins: the transaction must be its own.
        connection.executescript(f"BEGIN; {migration} PRAGMA user_version = {number}; COMMIT;")
