"""What disks hold, as libvhdi reads them: once for files that have not changed since."""

from __future__ import annotations

import time
from pathlib import Path

from xorepd_lab.demo import judge

SETTLED_NS = 25 * 10**6
"""File systems stamp changes by a clock that stands still for some milliseconds."""

_known: dict[tuple[judge.Stamp, ...], str] = {}
"""What chains of unchanged files hold."""


def fingerprint(directory: Path, uuid: str) -> str:
    """Return the XXH3 of a VDI of a file-based SR.

    Raises:
        OSError: libvhdi cannot open or read it.
        EOFError: libvhdi ends early.
    """
    with judge.Disk(directory, uuid) as disk:
        files = disk.files()
        if files in _known:
            return _known[files]
        found = disk.xxh3()
        newest = max(file.changed_ns for file in files)
        if time.time_ns() - newest > SETTLED_NS and disk.files() == files:
            _known[files] = found
        return found


def forget() -> None:
    """Drop what is known of the files of labs that are gone."""
    _known.clear()
