"""What the files of one SR's directory say of themselves, read and never changed.

Each VHD is looked at by itself (both footers, header, BAT) and as part of its chain (the parent is
there and is the one that was meant), each changed-block log as well.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from xorepd_lab.disks import cbt
from xorepd_lab.disks.chain import DiskError
from xorepd_lab.disks.vhd import (
    DIFFERENCING,
    HEADER_OFFSET,
    HEADER_SIZE,
    SECTOR,
    STORED_BLOCK,
    UNUSED,
    Footer,
    Header,
    VhdError,
    table_size,
)
from xorepd_lab.disks.vhd_file import inspect

_TRIES: Final = 10
"""For a file that a guest writes to at that moment."""


@dataclass(frozen=True, slots=True)
class Found:
    """A disk, or a base copy when hidden."""

    virtual_size: int
    parent: str | None
    hidden: bool


@dataclass(slots=True)
class Directory:
    """All that one directory holds. `problems` are pairs of a file's name and a sentence."""

    disks: dict[str, Found] = field(default_factory=dict)
    logs: dict[str, cbt.LogHeader] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def read_directory(path: Path) -> Directory:
    """Look at every file; do not change the directory meanwhile, though guests may write."""
    found = Directory()
    ids = {}
    wanted = {}
    for file in sorted(path.iterdir()):
        try:
            if file.suffix == ".vhd":
                footer, header = check_vhd(file)
                parent = None
                if footer.disk_type == DIFFERENCING:
                    parent = header.parent_name.removesuffix(".vhd")
                    wanted[file.stem] = header.parent_id
                found.disks[file.stem] = Found(footer.virtual_size, parent, footer.hidden)
                ids[file.stem] = footer.unique_id
            elif file.suffix == cbt.SUFFIX:
                found.logs[file.stem] = check_log(file)
            else:
                found.problems.append((file.name, "is no file of an SR"))
        except (VhdError, DiskError, OSError) as error:
            found.problems.append((file.name, str(error)))
    for uuid, disk in found.disks.items():
        if disk.parent is None:
            continue
        if disk.parent not in ids:
            found.problems.append((f"{uuid}.vhd", f"its parent {disk.parent} is not there"))
        elif ids[disk.parent] != wanted[uuid]:
            found.problems.append((f"{uuid}.vhd", f"its parent {disk.parent} is another file now"))
    found.problems += _circles(found) + _torn(found)
    return found


def check_vhd(path: Path) -> tuple[Footer, Header]:
    """Return footer and header of a VHD.

    Raises:
        VhdError: Something in it is not as it must be.
    """
    for number in range(1, _TRIES + 1):
        before = path.stat().st_size
        try:
            return _check_vhd(path)
        except VhdError:
            if number == _TRIES or path.stat().st_size == before:
                raise
    raise AssertionError("not reached")


def _check_vhd(path: Path) -> tuple[Footer, Header]:
    inspect(path)  # shape and limits
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        front = os.pread(fd, SECTOR, 0)
        header = Header.unpack(os.pread(fd, HEADER_SIZE, HEADER_OFFSET))
        raw = os.pread(fd, 4 * header.max_entries, header.table_offset)
        # Blocks are named in the BAT after they were written: what it names must be there by now.
        size = os.fstat(fd).st_size
        back = os.pread(fd, SECTOR, size - SECTOR)
    finally:
        os.close(fd)
    footer = Footer.unpack(front)
    if back != front:
        raise VhdError("the footer differs from its copy")
    if len(raw) != 4 * header.max_entries:
        raise VhdError("the file ends inside the BAT")
    _check_table(raw, header, size - SECTOR)
    return footer, header


def _check_table(raw: bytes, header: Header, end: int) -> None:
    entries = struct.unpack(f">{len(raw) // 4}I", raw)
    taken = sorted((sector, index) for index, sector in enumerate(entries) if sector != UNUSED)
    free = header.table_offset + table_size(header.max_entries)
    for sector, index in taken:
        if sector * SECTOR < free:
            raise VhdError(f"block {index} lies over what is before it")
        free = sector * SECTOR + STORED_BLOCK
    if free > end:
        raise VhdError(f"block {taken[-1][1]} ends behind the end of the file")


def check_log(path: Path) -> cbt.LogHeader:
    """Return the header of a changed-block log; DiskError when its length is not right."""
    raw = path.read_bytes()
    if len(raw) < cbt.log_size(0):
        raise DiskError(cbt.INCONSISTENT, "it has no header")
    header = cbt.LogHeader.unpack(raw[: cbt.log_size(0)])
    if len(raw) != cbt.log_size(header.size):
        raise DiskError(cbt.INCONSISTENT, f"{len(raw)} bytes for a disk of {header.size}")
    return header


def _circles(found: Directory) -> list[tuple[str, str]]:
    problems = []
    for uuid in found.disks:
        seen, current = set[str](), uuid
        for current in _lineage(found, uuid):
            if current in seen:
                problems.append((f"{uuid}.vhd", "its chain runs in a circle"))
                break
            seen.add(current)
    return problems


def _lineage(found: Directory, uuid: str | None) -> Iterator[str]:
    while uuid is not None and uuid in found.disks:
        yield uuid
        uuid = found.disks[uuid].parent


def _torn(found: Directory) -> list[tuple[str, str]]:
    """Return what neighbours in a chain of logs say of each other and is not so.

    A log may name one that is gone: switching tracking off leaves its neighbours alone.
    """
    return [
        (f"{uuid}{cbt.SUFFIX}", f"its child {header.child} has another parent")
        for uuid, header in found.logs.items()
        if str(header.child) in found.logs and str(found.logs[str(header.child)].parent) != uuid
    ]
