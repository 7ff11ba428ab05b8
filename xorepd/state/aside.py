"""Damaged files of the state directory are set aside under another name, and made anew.

    history.db, history.db-wal ──► history.db.damaged, history.db.damaged-wal

Nothing is thrown away: somebody may want to look, or to get something out of it. The first ones are
kept, however often it happens; status and log tell of them until they are removed.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from xorepd.errors import StateError

log = structlog.get_logger(__name__)

SUFFIX = ".damaged"
COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database, and may take for another one's."""
MOST = 3


def set_aside(path: Path, reason: str, most: int = MOST) -> None:
    """Move a damaged file, and what belongs to it, out of the way.

    Args:
        most: how many of them are kept; a further one takes the place of the last.

    Raises:
        StateError: that is not possible.
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
            f"{path}: is damaged ({reason}) and cannot be set aside as {aside.name} "
            f"({error.strerror}); move it away"
        ) from error
    log.error("state.set_aside", file=str(path), name=aside.name, reason=reason)


def list_set_aside(directory: Path) -> tuple[str, ...]:
    """Return a sentence for each file of a state directory that was damaged and set aside."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return ()
    return tuple(
        f"{name.partition(SUFFIX)[0]} was damaged, and has been made anew; the damaged one is "
        f"{directory / name}: remove it when nobody needs it any more"
        for name in names
        if SUFFIX in name and not name.endswith(COMPANIONS)
    )
