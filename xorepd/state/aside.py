"""Move damaged files of the state directory aside, so that new ones can take their place.

    history.db, history.db-wal ──► history.db.damaged, history.db.damaged-wal

Damaged files are kept for inspection and recovery: the first `MOST - 1` and the last one. The
status lists them until they are removed.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from xorepd.errors import StateError

log = structlog.get_logger(__name__)

SUFFIX = ".damaged"
COMPANIONS = ("-wal", "-shm", "-journal")
"""Files that SQLite keeps beside a database, and could take for those of a new one."""
MOST = 3


def set_aside(path: Path, reason: str, most: int = MOST) -> None:
    """Move a damaged file and its companions aside.

    Args:
        most: Most damaged files that are kept; a further one replaces the last.

    Raises:
        StateError: the file cannot be moved.
    """
    names = [Path(f"{path}{SUFFIX}{number}") for number in ("", *range(2, most + 1))]
    aside = next((name for name in names if not os.path.lexists(name)), names[-1])
    try:
        for companion in ("", *COMPANIONS):
            old, new = Path(f"{path}{companion}"), Path(f"{aside}{companion}")
            if os.path.lexists(old):
                old.replace(new)
            else:
                new.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(
            f"{path}: is damaged ({reason}) and cannot be moved to {aside.name} "
            f"({error.strerror}); move it away"
        ) from error
    log.error("state.set_aside", file=str(path), name=aside.name, reason=reason)


def list_set_aside(directory: Path) -> tuple[str, ...]:
    """Return a sentence for each damaged file in a state directory."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return ()
    return tuple(
        f"{name.partition(SUFFIX)[0]} was damaged and has been replaced; the damaged file is "
        f"{directory / name}: remove it when you no longer need it"
        for name in names
        if SUFFIX in name and not name.endswith(COMPANIONS)
    )
