"""The tables of the fingerprint maps, and the operations of `state.maps` on them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from secrets import randbits

from xorepd.errors import StateError

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE secret (seed TEXT NOT NULL);
    CREATE TABLE maps (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        stream TEXT NOT NULL,
        content TEXT NOT NULL,
        base INTEGER,
        drawn_to INTEGER NOT NULL,
        is_complete INTEGER NOT NULL,
        drawn_at REAL NOT NULL,
        UNIQUE (stream, content)
    );
    CREATE TABLE pages (place INTEGER PRIMARY KEY, units BLOB NOT NULL);
    """,
)
"""`base` is another map's id; `place` is a map's id and the number of a page in it."""

PAGES = 1 << 32
"""Page numbers of one map."""


def check_maps(connection: sqlite3.Connection, path: Path) -> None:
    """Check that the file is complete. SQLite would notice a missing part only when it reads it.

    Raises:
        StateError: a part is missing.
    """
    connection.execute("SELECT stream, content, base, drawn_to FROM maps LIMIT 1").fetchone()
    connection.execute("SELECT units FROM pages LIMIT 1").fetchone()
    seed_of(connection)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size, count = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count")
    )
    if path.stat().st_size < size * count:
        raise StateError(f"{path}: a part of it is missing")


def seed_of(connection: sqlite3.Connection) -> int:
    """Return the seed of the fingerprints; create it in a new file."""
    row = connection.execute("SELECT seed FROM secret").fetchone()
    if row is not None:
        try:
            return int(row[0], 16)
        except (TypeError, ValueError):
            raise StateError("the file of the maps has no seed") from None
    seed = randbits(64)
    connection.execute("INSERT INTO secret VALUES (?)", (f"{seed:016x}",))
    return seed


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the used bytes of the file."""
    size, count, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "page_count", "freelist_count")
    )
    return int(size) * (int(count) - int(free))


def drop(connection: sqlite3.Connection, id: int) -> None:
    """Delete a map, and the maps of changes on it."""
    for (change,) in connection.execute("SELECT id FROM maps WHERE base = ?", (id,)).fetchall():
        drop(connection, change)
    connection.execute("DELETE FROM maps WHERE id = ?", (id,))
    drop_pages(connection, id)


def drop_pages(connection: sqlite3.Connection, id: int, first: int = 0) -> None:
    connection.execute(
        "DELETE FROM pages WHERE place BETWEEN ? AND ?",
        (id * PAGES + first, id * PAGES + PAGES - 1),
    )


def settle(connection: sqlite3.Connection, id: int, base: int) -> int | None:
    """Merge the map of a change into its base, and delete the other changes of that base."""
    content, drawn_to, drawn_at = connection.execute(
        "SELECT content, drawn_to, drawn_at FROM maps WHERE id = ?", (id,)
    ).fetchone()
    connection.execute(
        "UPDATE OR REPLACE pages SET place = place + ? WHERE place BETWEEN ? AND ?",
        ((base - id) * PAGES, id * PAGES, id * PAGES + PAGES - 1),
    )
    connection.execute("DELETE FROM maps WHERE id = ?", (id,))
    others = connection.execute("SELECT id FROM maps WHERE base = ?", (base,)).fetchall()
    for (other,) in others:
        drop(connection, other)
    connection.execute(
        "UPDATE maps SET content = ?, drawn_to = ?, drawn_at = ? WHERE id = ?",
        (content, drawn_to, drawn_at, base),
    )
    return base
