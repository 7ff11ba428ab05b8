"""What disks hold, as libvhdi reads them from files that must not move meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

from xorepd_lab.demo import judge

SETTLED_NS = 25 * 10**6
"""File systems stamp changes by a clock that stands still for some milliseconds."""

PAGE = 4096
"""Bytes that people write at once, in one place."""

Place = tuple[Path, str]
"""Directory of an SR, and UUID of a VDI in it."""

_known: dict[tuple[judge.Stamp, ...], str] = {}
"""What chains of unchanged files hold."""


def fingerprint(place: Place) -> str:
    """Return what tells whether a disk holds the same; a text in brackets if it cannot be read."""
    try:
        with judge.Disk(*place) as disk:
            files = disk.files()
            if files not in _known:
                found = disk.xxh3()
                newest = max(file.changed_ns for file in files)
                if time.time_ns() - newest < SETTLED_NS or disk.files() != files:
                    return found
                _known[files] = found
            return _known[files]
    except (OSError, EOFError) as error:
        return f"[not readable: {error}]"


def page(place: Place, offset: int) -> bytes:
    """Return what a disk holds in one place; nothing if it cannot be read, or ends before it."""
    try:
        with judge.Disk(*place) as disk:
            return disk.read(offset, PAGE)
    except (OSError, EOFError):
        return b""


def forget() -> None:
    """Drop what is known of the files of labs that are gone."""
    _known.clear()
