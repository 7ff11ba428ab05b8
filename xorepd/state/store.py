"""The database: one SQLite file, one connection, one thread.

SQLite blocks, and a connection belongs to the thread that created it. So every access goes through
an executor with a single thread. That thread is the only writer: no locking, no SQLITE_BUSY.

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
from xorepd.state.aside import MOST, set_aside
from xorepd.units import MiB

T = TypeVar("T")


def _renamed(column: str) -> str:
    """Return the SQL that renames in a record's JSON what had other names before schema 4."""
    for old, new in (
        ('"moved_bytes":', '"read_bytes":'),
        ('"breaks":', '"reconnects":'),
        ('"outcome":"held"', '"outcome":"lease-held"'),
        ('"outcome":"empty"', '"outcome":"no-vms"'),
    ):
        column = f"replace({column}, '{old}', '{new}')"
    return column


MIGRATIONS: Sequence[str] = (
    # 1: finished runs, one row per VM; and what the status shows of each VM, in a table of its own,
    # so that neither a long history nor its expiry makes the status slow or wrong.
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
    # 2: runs that have not ended, with the records that they get if they never end.
    """
    CREATE TABLE begun (
        id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL UNIQUE,
        records TEXT NOT NULL
    );
    """,
    # 3: the job of each of them. A row without records is over, and its job must run again.
    """
    ALTER TABLE begun ADD COLUMN job TEXT NOT NULL DEFAULT '';
    """,
    # 4: two members and two outcomes of a record have other names.
    f"""
    UPDATE runs SET record = {_renamed("record")};
    UPDATE latest SET record = {_renamed("record")};
    UPDATE begun SET records = {_renamed("records")};
    """,
)

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another program holds it; end that one",
    sqlite3.SQLITE_FULL: "make room there",
}
"""By primary result code: the remedy for an error that is not damage."""


_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # a table or column is not there
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_EMPTY,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_SCHEMA,
    }
)
"""Result codes that mean damage. All others concern the environment: disk, locks, permissions."""

Check = Callable[[sqlite3.Connection, Path], None]
"""Checks a database after opening. Any exception means that the database is damaged."""


MOST_VERSIONS = 1000
"""No xorepd will have more: a higher number is damage."""
BUSY_S = 5.0
"""Longest wait for another program that holds the file."""
CHECKED = 64 * MiB
"""Largest file that each start reads in full: that takes a second for each 100 MB."""


class Store:
    """An open database. `run` is the only access to it.

    Args:
        open_again: Creates a new database after this one was found damaged and moved aside. None if
            the users could not continue with a new one; then the next start creates it.
    """

    def __init__(
        self,
        path: Path,
        holds: str,
        connection: sqlite3.Connection,
        executor: ThreadPoolExecutor,
        open_again: Callable[[], sqlite3.Connection] | None = None,
        keep: int = MOST,
    ) -> None:
        self.path, self._holds, self._keep = path, holds, keep
        self._connection: sqlite3.Connection | None = connection
        self._executor, self._open_again = executor, open_again

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` in the database's thread, inside a transaction, and return its result.

        A cancelled caller stops waiting; the transaction ends by itself. If the file turns out to
        be damaged, `work` runs again on a new, empty one, unless `open_again` is None.

        Raises:
            StateError: SQLite fails (disk full, damaged file, …).
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._transaction, work
        )

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._tried(work)
        except _Damaged as damage:
            self.close()
            set_aside(self.path, str(damage), self._keep)
            if self._open_again is None:
                raise StateError(
                    f"{self.path}: is damaged ({damage}); the next start creates a new one"
                ) from damage
            self._connection = self._open_again()
            return self._tried(work)

    def _tried(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            raise StateError(f"{self.path}: was damaged; the next start creates a new one")
        try:
            with self._connection:
                return work(self._connection)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if _is_damage(error):
                raise _Damaged(str(error)) from error
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            remedy = _REMEDIES.get(code) or (
                f"if the file is damaged, stop xorepd and move it aside: only {self._holds} is lost"
            )
            raise StateError(f"{self.path}: {error}; {remedy}") from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Damaged(Exception):
    """A file has a content that no xorepd has written."""


class _Newer(Exception):
    """A newer xorepd has written a file."""


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by Python for a text that is not UTF-8
        return isinstance(error, UnicodeDecodeError | sqlite3.OperationalError)
    return code & 0xFF in _DAMAGE or code == sqlite3.SQLITE_IOERR_SHORT_READ


def database_problem(path: Path) -> str:
    """Return why a file cannot be opened as the history, judging by its header; else "".

    A damaged file is no problem: the daemon moves it aside.

    Source: https://www.sqlite.org/fileformat2.html, "The Database Header".
    """
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"{path}: cannot be opened ({error.strerror})"
    version = int.from_bytes(head[60:64], "big")
    if head.startswith(b"SQLite format 3\0") and len(MIGRATIONS) < version <= MOST_VERSIONS:
        return _newer(path, version, MIGRATIONS, "history")
    return ""


def _newer(path: Path, version: int, migrations: Sequence[str], holds: str) -> str:
    return (
        f"{path}: was written by a newer xorepd (schema {version}, this one knows "
        f"{len(migrations)}); upgrade xorepd, or move the file aside and lose only {holds}"
    )


@asynccontextmanager
async def open_store(
    path: Path,
    migrations: Sequence[str] = MIGRATIONS,
    *,
    holds: str = "history",
    check: Check = lambda connection, path: None,
    precious: bool = True,
    renews: bool = True,
) -> AsyncIterator[Store]:
    """Open the database, create or migrate it if needed, and close it at the end.

    A damaged database is moved aside, and an empty one takes its place.

    Args:
        path: The file; its directory must exist. Created with mode 0600: records name VMs and
        errors. migrations: The schema. holds: What is lost with the file, for messages. check:
        Checks the content. precious: Keep several damaged files, and refuse a file that a newer
        xorepd has written
            instead of moving it aside.
        renews: Whether a new database may replace a damaged one during use; see `Store`.

    Raises:
        StateError: a newer xorepd has written the file, or it cannot be opened.
    """
    keep = MOST if precious else 1

    def open_file() -> sqlite3.Connection:
        try:
            return _open(path, migrations, holds, check)
        except _Newer as newer:
            if precious:
                raise StateError(str(newer)) from None
            set_aside(path, str(newer), keep)
        except _Damaged as damage:
            set_aside(path, str(damage), keep)
        return _open(path, migrations, holds, check)

    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xorepd-state")
    try:
        connection = await loop.run_in_executor(executor, open_file)
        store = Store(path, holds, connection, executor, open_file if renews else None, keep)
        try:
            yield store
        finally:
            # In the same queue as all work, so after all of it.
            await asyncio.shield(loop.run_in_executor(executor, store.close))
    finally:
        executor.shutdown(wait=False)


def _open(path: Path, migrations: Sequence[str], holds: str, check: Check) -> sqlite3.Connection:
    if path.exists() and not path.is_file():
        raise _Damaged("it is not a file")
    try:
        # SQLite would create it with the mode of the umask; its -wal and -shm files copy this mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=BUSY_S)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"{path}: cannot be opened ({error}); check [daemon] state_dir") from error
    try:
        _prepare(connection, path, migrations, holds)
        _look(connection, path, check)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        connection.close()
        if _is_damage(error):
            raise _Damaged(str(error)) from error
        raise StateError(
            f"{path}: cannot be used ({error}); check the disk, and other users of the file"
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _look(connection: sqlite3.Connection, path: Path, check: Check) -> None:
    """Check the content of a database, which may be anything."""
    try:
        with connection:
            if path.stat().st_size <= CHECKED:
                [(found, *_)] = connection.execute("PRAGMA quick_check(1)")
                if found != "ok":
                    raise _Damaged(str(found))
            check(connection, path)
    except (sqlite3.Error, _Damaged):
        raise
    except Exception as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error


def _prepare(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[str], holds: str
) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # With WAL, NORMAL loses at most the last runs in a power failure and never damages the file.
    connection.execute("PRAGMA synchronous = NORMAL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= MOST_VERSIONS:
        raise _Damaged(f"it has the schema {version}")
    if version > len(migrations):
        raise _Newer(_newer(path, version, migrations, holds))
    for number, migration in enumerate(migrations[version:], start=version + 1):
        # executescript commits an open transaction first, so the script must begin its own.
        connection.executescript(f"BEGIN; {migration} PRAGMA user_version = {number}; COMMIT;")
