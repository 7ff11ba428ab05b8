"""Who a daemon is: an id that outlives it, so that it knows what it held before it crashed.

The state directory's lock keeps two processes from having the same one. Who copies the directory to
another machine copies the id: delete the file there.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from xorepd.errors import StateError


def read_identity(state_dir: Path) -> str:
    """Return the id of the daemon with this state directory, a UUID; made at the first start.

    A file that holds no UUID is replaced: then what was held before is not known for ours.

    Raises:
        StateError: the file can be neither read nor written.
    """
    path = state_dir / "daemon-id"
    try:
        try:
            return str(uuid.UUID(path.read_text("ascii").strip()))
        except (FileNotFoundError, ValueError):
            return _make(path)
    except OSError as error:
        raise StateError(
            f"{path}: cannot be used ({error.strerror}); check [daemon] state_dir and its owner"
        ) from error


def _make(path: Path) -> str:
    made = str(uuid.uuid4())
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{made}\n".encode("ascii"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(path)
    return made
