"""The fingerprint maps: fingerprints of the newest restore points, so that deltas send less.

    maps    one for each content: one disk of a source snapshot, for one replica
    pages   256 units of 64 KiB each; a map of a change takes its missing pages from its base

A map describes the disk of a snapshot, whose content never changes. The pools know which content a
restore point has. So the daemon never uses a map of an older content, or of one that is not
committed on the target. The first use of a change merges its pages into its base, in one
transaction, so that no page of a change is lost by itself.

Losing the file costs bandwidth, never a replica.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from xorepd.errors import StateError
from xorepd.state.map_tables import (
    MIGRATIONS,
    PAGES,
    check_maps,
    drop,
    drop_pages,
    seed_of,
    settle,
    used_bytes,
)
from xorepd.state.store import Store, open_store

log = structlog.get_logger(__name__)

FORGOTTEN_AFTER = timedelta(days=60)
"""Age at which the maps of abandoned replicas are deleted: longer than the interval of any job."""

PAGE = 16 << 20
"""Bytes of disk that a page describes."""

SHARE = 0.9
"""Part of the space that new maps may use. The rest is for changes of existing maps."""


class Map:
    """A complete map (`data.fingerprints.Pages`)."""

    def __init__(self, store: Store, id: int) -> None:
        self._store, self.id = store, id

    async def read(self, first: int, count: int) -> Mapping[int, bytes]:
        place = self.id * PAGES + first

        def work(connection: sqlite3.Connection) -> dict[int, bytes]:
            rows = connection.execute(
                "SELECT place, units FROM pages WHERE place BETWEEN ? AND ?",
                (place, place + count - 1),
            )
            return {
                found - self.id * PAGES: units for found, units in rows if isinstance(units, bytes)
            }

        return await self._store.run(work)


class Draft(Map):
    """A map that is being written (`data.fingerprints.Draft`).

    Args:
        limit: Size of the file in bytes above which nothing more is written.
    """

    def __init__(
        self, store: Store, id: int, limit: int, *, drawn_to: int, is_change: bool
    ) -> None:
        super().__init__(store, id)
        self._limit = limit
        self.drawn_to, self.is_change = drawn_to, is_change

    async def write(self, pages: Mapping[int, bytes], drawn_to: int) -> None:
        limit = self._limit if self.is_change else int(self._limit * SHARE)

        def work(connection: sqlite3.Connection) -> None:
            if used_bytes(connection) > limit:
                raise StateError(f"{self._store.path}: is full; raise [daemon] maps")
            marked = connection.execute(
                "UPDATE maps SET drawn_to = ? WHERE id = ?", (drawn_to, self.id)
            )
            if not marked.rowcount:
                raise StateError(f"{self._store.path}: the map has been deleted meanwhile")
            connection.executemany(
                "INSERT OR REPLACE INTO pages VALUES (?, ?)",
                ((self.id * PAGES + page, units) for page, units in pages.items()),
            )

        await self._store.run(work)
        self.drawn_to = drawn_to

    async def cut(self, first: int) -> None:
        drawn_to = min(self.drawn_to, first * PAGE)

        def work(connection: sqlite3.Connection) -> None:
            drop_pages(connection, self.id, first)
            connection.execute("UPDATE maps SET drawn_to = ? WHERE id = ?", (drawn_to, self.id))

        await self._store.run(work)
        self.drawn_to = drawn_to

    async def detach(self) -> None:
        def work(connection: sqlite3.Connection) -> None:
            drop_pages(connection, self.id)
            connection.execute("UPDATE maps SET base = NULL, drawn_to = 0 WHERE id = ?", (self.id,))

        await self._store.run(work)
        self.drawn_to, self.is_change = 0, False

    async def complete(self) -> None:
        """Mark the map as complete: all of the content is on the target.

        Raises:
            StateError: the file cannot be written.
        """

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE maps SET is_complete = 1 WHERE id = ?", (self.id,))

        await self._store.run(work)


class Maps:
    """All maps of a daemon.

    Args:
        seed: Seed of the fingerprints.
        limit: Most bytes of the file.
    """

    def __init__(self, store: Store, seed: int, limit: int, clock: Callable[[], datetime]) -> None:
        self._store, self.seed, self._limit, self._clock = store, seed, limit, clock

    async def find(self, stream: str, content: str) -> Map | None:
        """Return the map of a content that a restore point of a replica has; None if there is none.

        Raises:
            StateError: the file cannot be read.
        """

        def work(connection: sqlite3.Connection) -> int | None:
            row = connection.execute(
                "SELECT id, base, is_complete FROM maps WHERE stream = ? AND content = ?",
                (stream, content),
            ).fetchone()
            if row is None or not row[2]:
                return None
            if row[1] is None:
                return int(row[0])
            is_ours = "SELECT 1 FROM maps WHERE id = ? AND stream = ?"
            if connection.execute(is_ours, (row[1], stream)).fetchone() is None:
                drop(connection, row[0])  # damage: its base is missing, or of another replica
                return None
            return settle(connection, row[0], row[1])

        found = await self._store.run(work)
        return None if found is None else Map(self._store, found)

    async def draw(
        self, stream: str, content: str, base: Map | None, *, goes_on: bool = False
    ) -> Draft:
        """Return the map of a content that is being sent.

        Args:
            base: The map of the base that the content is a change of.
            goes_on: Continue the map that an earlier process has begun, if it exists; else begin
                a new one.

        Raises:
            StateError: the file cannot be written.
        """
        base_id = None if base is None else base.id

        def work(connection: sqlite3.Connection) -> tuple[int, int, bool]:
            row = connection.execute(
                "SELECT id, base, drawn_to FROM maps WHERE stream = ? AND content = ?",
                (stream, content),
            ).fetchone()
            goes_on_here = goes_on and row is not None and isinstance(row[2], int)
            if row is not None and not (goes_on_here and row[1] in (None, base_id)):
                drop(connection, row[0])
                row = None
            if row is None:
                cursor = connection.execute(
                    "INSERT INTO maps (stream, content, base, drawn_to, is_complete, drawn_at)"
                    " VALUES (?, ?, ?, 0, 0, ?)",
                    (stream, content, base_id, self._clock().timestamp()),
                )
                assert cursor.lastrowid is not None
                return cursor.lastrowid, 0, base_id is not None
            connection.execute("UPDATE maps SET is_complete = 0 WHERE id = ?", (row[0],))
            return row[0], row[2], row[1] is not None

        id, drawn_to, is_change = await self._store.run(work)
        return Draft(self._store, id, self._limit, drawn_to=drawn_to, is_change=is_change)

    async def retain(self, stream: str, contents: Collection[str]) -> None:
        """Delete all maps of a replica but those of these contents.

        Raises:
            StateError: the file cannot be written.
        """

        def work(connection: sqlite3.Connection) -> None:
            rows = connection.execute(
                "SELECT id, content, base FROM maps WHERE stream = ?", (stream,)
            ).fetchall()
            kept = [row for row in rows if row[1] in contents]
            bases = {row[2] for row in kept}
            for id, content, _ in rows:
                if content not in contents and id not in bases:
                    drop(connection, id)

        await self._store.run(work)

    async def forget(self, stream: str, contents: Collection[str]) -> None:
        """Delete the maps of these contents, and of changes on them.

        Raises:
            StateError: the file cannot be written.
        """

        def work(connection: sqlite3.Connection) -> None:
            for content in contents:
                rows = connection.execute(
                    "SELECT id FROM maps WHERE stream = ? AND content = ?", (stream, content)
                )
                for (id,) in rows.fetchall():
                    drop(connection, id)

        await self._store.run(work)

    async def expire(self) -> None:
        """Delete the maps that were not written for a long time.

        Raises:
            StateError: the file cannot be written.
        """
        before = (self._clock() - FORGOTTEN_AFTER).timestamp()

        def work(connection: sqlite3.Connection) -> None:
            rows = connection.execute("SELECT id FROM maps WHERE drawn_at < ?", (before,))
            for (id,) in rows.fetchall():
                drop(connection, id)

        await self._store.run(work)


@asynccontextmanager
async def open_maps(
    path: Path, limit: int, clock: Callable[[], datetime]
) -> AsyncIterator[Maps | None]:
    """Open the file of the maps; None if it cannot be used now. A damaged one is replaced.

    Args:
        limit: Approximate limit of the file in bytes; 0 keeps no maps and removes the file.
    """
    async with AsyncExitStack() as stack:
        maps = None
        if limit:
            # No replacement during use: what a run has read from one file is wrong in another.
            opening = open_store(
                path, MIGRATIONS, holds="bandwidth", check=check_maps, precious=False, renews=False
            )
            try:
                store = await stack.enter_async_context(opening)
                maps = Maps(store, await store.run(seed_of), limit, clock)
                await maps.expire()
            except StateError as error:
                log.warning("maps.unusable", reason=str(error))
                maps = None
        else:
            _remove(path)
        yield maps


def _remove(path: Path) -> None:
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("maps.not_removed", file=str(file), reason=error.strerror)
