"""One daemon per state directory: two would run the same jobs against each other."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xorepd.errors import StateError


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the lock of a state directory, making the directory (0700) if it is missing.

    The kernel frees the lock with the process, however that ends; the file stays and means nothing.

    Raises:
        StateError: another process holds it, or the directory cannot be used.
    """
    path = state_dir / "lock"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"state directory {state_dir} cannot be used ({error.strerror}); "
            "check [daemon] state_dir and its owner"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StateError(
                f"another xorepd (process {holder}) uses the state directory {state_dir}; "
                "stop that one, or give this one a state_dir of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
