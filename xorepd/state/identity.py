"""The id of a daemon. It outlives the process, so that a daemon recognises its own leases.

The lock of the state directory keeps two processes from having the same id. A copy of the directory
on another machine has the same id: delete the file there.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from xorepd.errors import StateError
from xorepd.state.aside import set_aside

_SIZE = 64
"""Bytes to read; a UUID has 36."""


def read_identity(state_dir: Path) -> str:
    """Return the id of the daemon, a UUID; create it at the first start.

    If the file holds no UUID, a new id replaces it. The daemon then does not recognise its old
    leases.

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
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)  # left by a daemon that died here
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{made}\n".encode("ascii"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)
    return made
