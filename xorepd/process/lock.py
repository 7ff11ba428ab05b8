"""One daemon per state directory: two would run the same jobs against each other."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xorepd.errors import StateError

_HOLDER = re.compile(rb"(?:[0-9]{1,20}\n)?")
"""Content of a lock file: a process id, or nothing."""


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the lock of a state directory; create the directory (0700) if it is missing.

    The kernel releases the lock when the process ends, in whatever way. The file itself stays.

    Raises:
        StateError: another process holds the lock, the directory cannot be used, or the file is not
            a lock of xorepd; it is then left unchanged.
    """
    path = state_dir / "lock"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Do not block and do not follow links: the path may be anything.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise _foreign(path) from error
        raise StateError(
            f"state directory {state_dir} cannot be used ({error.strerror}); "
            "check [daemon] state_dir and its owner"
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise _foreign(path)
        holder = os.pread(descriptor, 32, 0)
        if found.st_size > 32 or _HOLDER.fullmatch(holder) is None:
            raise _foreign(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"another xorepd (process {holder.decode().strip() or 'unknown'}) uses the state "
                f"directory {state_dir}; stop that one, or give this one a state_dir of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _foreign(path: Path) -> StateError:
    return StateError(f"{path}: is not a lock file of xorepd; it was left unchanged: move it away")
