"""What disks hold, as libvhdi reads them from files that must not move meanwhile."""

from __future__ import annotations

from pathlib import Path

from tests.lab import contents
from xorepd_lab.demo import judge

PAGE = 4096
"""Bytes that people write at once, in one place."""

Place = tuple[Path, str]
"""Directory of an SR, and UUID of a VDI in it."""


def fingerprint(place: Place) -> str:
    """Return what tells whether a disk holds the same; a text in brackets if it cannot be read."""
    try:
        return contents.fingerprint(*place)
    except (OSError, EOFError) as error:
        return f"[not readable: {error}]"


def page(place: Place, offset: int) -> bytes:
    """Return what a disk holds in one place; nothing if it cannot be read, or ends before it."""
    try:
        with judge.Disk(*place) as disk:
            return disk.read(offset, PAGE)
    except (OSError, EOFError):
        return b""
