"""Who a daemon is: an id that outlives it, so that it knows what it held before it crashed.

The state directory's lock keeps two processes from having the same one. Who copies the directory to
another machine copies the id: delete the file there.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from xorepd.errors import StateError
from xorepd.state.aside import set_aside

_SIZE = 64
"""Bytes that are read: a UUID has 36."""


def read_identity(state_dir: Path) -> str:
    """Return the id of the daemon with this state directory, a UUID; made at the first start.

    A file that holds no UUID is set aside: then what was held before is not known for ours.

    Raises:
        StateError: the file can be neither read nor written.
    """
    path = state_dir / "daemon-id"
    try:
        if not os.path.lexists(path):
            return _make(path)
        try:
            return str(uuid.UUID(_read(path).decode("ascii").strip()))
        except ValueError:
            set_aside(path, "it holds no UUID")
            return _make(path)
    except OSError as error:
        raise StateError(
            f"{path}: cannot be used ({error.strerror}); check [daemon] state_dir and its owner"
        ) from error


def _read(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_SIZE)


def _make(path: Path) -> str:
    made = str(uuid.uuid4())
    fresh = path.with_suffix(".new")
    fresh.unlink(
        missing_ok=True
    )  # of a daemon that died here; whatever it is, it is not written to
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{made}\n".encode("ascii"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(path)
    return made
