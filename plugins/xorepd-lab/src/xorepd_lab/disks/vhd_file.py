"""One VHD file on disk: its own blocks and its own metadata, nothing of its parents.

The file is a valid VHD between any two system calls but those of one block's allocation, and
loading repairs what a killed process left there: a footer is first written behind the room for
the new block, then data, bitmap and last the BAT entry that makes them exist. Room the BAT never
came to name is lost, not wrong.

Data starts on a 4 KiB boundary, as libvhd puts it, so that a hole of the virtual disk can be a
hole of the host's file system.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from xorepd_lab.disks.vhd import (
    BITMAP,
    BLOCK,
    DIFFERENCING,
    DYNAMIC,
    EPOCH,
    HEADER_OFFSET,
    HEADER_SIZE,
    LOCATORS_OFFSET,
    SECTOR,
    SECTORS_PER_BLOCK,
    STORED_BLOCK,
    UNUSED,
    Footer,
    Header,
    VhdError,
    blocks_of,
    relative_locators,
    table_size,
)

_PAGE: Final = 4096
_MAX_ENTRIES: Final = (16 << 40) // BLOCK
"""More than a VHD of XenServer may have: kinds of SR that are not made of VHDs keep their disks in
such files as well.
"""
_ZERO_PAGE: Final = bytes(_PAGE)
_ZERO_BLOCK: Final = bytes(BLOCK)
_TABLE_OFFSET: Final = LOCATORS_OFFSET + 3 * SECTOR
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ParentLink:
    """What a child writes down to find its parent again."""

    name: str
    unique_id: UUID
    timestamp: int


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes as they stand in a file, to be sent from there; close it when done.

    It has a descriptor of its own: what is behind it stays what it was even when the file is
    merged, renamed or removed meanwhile.
    """

    fd: int
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    def read(self) -> bytes:
        return os.pread(self.fd, self.length, self.offset)

    def opened(self) -> FileIO:
        """Return a file object of the same descriptor, to be closed before this."""
        return FileIO(self.fd, "rb", closefd=False)

    def close(self) -> None:
        os.close(self.fd)


class VhdFile:
    """One dynamic or differencing VHD, open for reading and writing.

    Writers of one file must take turns; readers need no lock: a block never moves while the file
    is shared, and the BAT names it only when it is whole.

    Args:
        path: Of the file.
        room: Called with the bytes a new block takes; OSError when they are not to be had.

    Raises:
        VhdError: Not a VHD, or one of a shape the lab does not write.
        OSError: The file cannot be opened.
    """

    footer: Footer
    header: Header
    table: array[int]  # the BAT: sectors, in the machine's own byte order
    _end: int  # where the footer stands

    def __init__(self, path: Path, room: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._room = room
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._load()
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def create(cls, path: Path, virtual_size: int, parent: ParentLink | None = None) -> VhdFile:
        """Write an empty disk of that size and return it open; the file must not exist yet."""
        entries = blocks_of(virtual_size)
        name = parent.name if parent else ""
        locators = relative_locators(name) if parent else ()
        header = Header(_TABLE_OFFSET, entries, locators=tuple(locator for locator, _ in locators))
        if parent:
            header = replace(
                header,
                parent_id=parent.unique_id,
                parent_timestamp=parent.timestamp,
                parent_name=name,
            )
        kind = DIFFERENCING if parent else DYNAMIC
        footer = Footer(virtual_size, kind, uuid4(), vhd_time(time.time()))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(fd, b"\xff" * table_size(entries), _TABLE_OFFSET)
            os.pwrite(fd, footer.pack(), _TABLE_OFFSET + table_size(entries))
            for locator, text in locators:
                os.pwrite(fd, text.ljust(SECTOR, b"\0"), locator.offset)
            os.pwrite(fd, footer.pack() + header.pack(), 0)
        finally:
            os.close(fd)
        return cls(path)

    def close(self) -> None:
        """Release the file; harmless when done twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def virtual_size(self) -> int:
        return self.footer.virtual_size

    @property
    def physical_size(self) -> int:
        return os.fstat(self._fd).st_size

    @property
    def is_empty(self) -> bool:
        """Whether no block at all is allocated here."""
        return next(self.allocated(), None) is None

    def as_parent(self, name: str | None = None) -> ParentLink:
        """Return what a child of this file writes down, its time being our last change.

        Args:
            name: The file's name-to-be; None when it keeps the one it has.
        """
        changed = vhd_time(os.fstat(self._fd).st_mtime)
        return ParentLink(name or self.path.name, self.footer.unique_id, changed)

    # -- data ---------------------------------------------------------------------------------

    def allocated(self) -> Iterator[int]:
        """Yield the numbers of the blocks this file holds, ascending."""
        return (index for index, sector in enumerate(self.table) if sector != UNUSED)

    def holds(self, index: int) -> bool:
        """Tell whether any sector of that block may be here."""
        return index < len(self.table) and self.table[index] != UNUSED

    def sectors(self, index: int) -> int:
        """Return the block's bitmap as a number of 4096 bits, its first sector the highest."""
        if not self.holds(index):
            return 0
        return int.from_bytes(os.pread(self._fd, BITMAP, self.table[index] * SECTOR), "big")

    def read(self, index: int, first: int, count: int) -> bytes:
        """Return sectors of a block that is here, set or not."""
        at = self.table[index] * SECTOR + BITMAP + first * SECTOR
        data = os.pread(self._fd, count * SECTOR, at)
        return data if len(data) == count * SECTOR else data.ljust(count * SECTOR, b"\0")

    def range(self, index: int, first: int, count: int) -> FileRange:
        """Return where sectors of a block that is here stand in the file."""
        at = self.table[index] * SECTOR + BITMAP + first * SECTOR
        return FileRange(os.dup(self._fd), at, count * SECTOR)

    def write(self, index: int, first: int, data: Buffer) -> None:
        """Write whole sectors into one block, allocating it if need be, and set their bits."""
        count = len(data) // SECTOR
        if not self.holds(index):
            self._allocate(index, first, data, mask(first, count))
            return
        at = self.table[index] * SECTOR
        _write_all(self._fd, [data], at + BITMAP + first * SECTOR)
        self._set_bits(index, mask(first, count))

    def flush(self) -> None:
        """Wait until the host's disk has it all."""
        os.fdatasync(self._fd)

    def _allocate(self, index: int, first: int, data: Buffer, bits: int) -> None:
        if self._room is not None:
            self._room(STORED_BLOCK)
        start = -(-(self._end + BITMAP) // _PAGE) * _PAGE - BITMAP
        end = start + STORED_BLOCK
        old_end = self._end
        # The old footer lies in the gap before the bitmap, or under it: nothing of it may remain.
        lead = bytes(start - old_end) + _bitmap(bits)
        try:
            os.pwrite(self._fd, self.footer.pack(), end)
            if _is_zero(data):
                _write_all(self._fd, [lead], old_end)
            elif first == 0:
                _write_all(self._fd, [lead, data], old_end)
            else:
                _write_all(self._fd, [lead], old_end)
                _write_all(self._fd, [data], start + BITMAP + first * SECTOR)
        except OSError:  # no space: what was there stays a whole VHD
            os.pwrite(self._fd, self.footer.pack(), old_end)
            os.ftruncate(self._fd, old_end + SECTOR)
            raise
        self._end = end
        os.pwrite(self._fd, struct.pack(">I", start // SECTOR), self._entry_offset(index))
        self.table[index] = start // SECTOR

    def _set_bits(self, index: int, bits: int) -> None:
        before = self.sectors(index)
        if before | bits != before:
            os.pwrite(self._fd, _bitmap(before | bits), self.table[index] * SECTOR)

    def _entry_offset(self, index: int) -> int:
        return self.header.table_offset + 4 * index

    # -- metadata -----------------------------------------------------------------------------

    def set_hidden(self, hidden: bool) -> None:
        """Mark the node as one no VDI stands for, keeping its modification time.

        Children compare that time with the one they wrote down.
        """
        stat = os.fstat(self._fd)
        self._put_front(replace(self.footer, hidden=hidden), self.header)
        os.utime(self._fd, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def relink(self, parent: ParentLink) -> None:
        """Make another file the parent; what the chain reads as must be the same through it."""
        locators = relative_locators(parent.name)
        for locator, text in locators:
            os.pwrite(self._fd, text.ljust(SECTOR, b"\0"), locator.offset)
        header = replace(
            self.header,
            parent_id=parent.unique_id,
            parent_timestamp=parent.timestamp,
            parent_name=parent.name,
            locators=tuple(locator for locator, _ in locators),
        )
        self._put_front(self.footer, header)

    def grow(self, virtual_size: int) -> None:
        """Make the virtual disk larger; the file must not be shared with a reader.

        Blocks in the way of the longer BAT move to the end: for ``vhd-util check`` metadata ends
        where the last of it ends, and a block before that "clobbers headers".
        """
        entries = blocks_of(virtual_size)
        old_entries = self.header.max_entries
        if entries > old_entries:
            table_end = self.header.table_offset + table_size(entries)
            for index in [
                each for each in self.allocated() if self._starts_before(each, table_end)
            ]:
                self._move_to_end(index)
            if self._end < table_end:
                os.pwrite(self._fd, self.footer.pack(), table_end)
                self._end = table_end
            fresh = b"\xff" * (table_end - self._entry_offset(old_entries))
            os.pwrite(self._fd, fresh, self._entry_offset(old_entries))
            self.table.extend([UNUSED] * (entries - old_entries))
        # libvhdi takes the disk's size from the original size, which vhd-util would leave alone and
        # nothing else reads.
        self._put_front(
            replace(self.footer, virtual_size=virtual_size, original_size=virtual_size),
            replace(self.header, max_entries=max(entries, old_entries)),
        )

    def _starts_before(self, index: int, offset: int) -> bool:
        return self.table[index] * SECTOR < offset

    def _move_to_end(self, index: int) -> None:
        data = self.read(index, 0, SECTORS_PER_BLOCK)
        self._allocate(index, 0, data, self.sectors(index))

    def _put_front(self, footer: Footer, header: Header) -> None:
        """Replace footer copy and header in one write, which a kill cannot cut, then the footer."""
        os.pwrite(self._fd, footer.pack() + header.pack(), 0)
        os.pwrite(self._fd, footer.pack(), self._end)
        self.footer, self.header = footer, header

    # -- loading ------------------------------------------------------------------------------

    def _load(self) -> None:
        self.footer, self.header = _read_front(self._fd)
        entries = self.header.max_entries
        raw = os.pread(self._fd, 4 * entries, self.header.table_offset)
        if len(raw) != 4 * entries:
            raise VhdError(f"{self.path.name} ends inside its BAT")
        self.table = array("I", raw)
        if sys.byteorder == "little":
            self.table.byteswap()
        self._repair_end()

    def _repair_end(self) -> None:
        """Find the footer at the end of the file, or put it back where it must have been."""
        size = os.fstat(self._fd).st_size
        front = os.pread(self._fd, SECTOR, 0)
        last_block = max((each for each in self.table if each != UNUSED), default=0) * SECTOR
        end = self.header.table_offset + table_size(self.header.max_entries)
        if last_block:
            end = max(end, last_block + STORED_BLOCK)
        self._end = max(end, size - SECTOR)
        if size - SECTOR >= end and os.pread(self._fd, SECTOR, size - SECTOR) == front:
            return
        if _is_footer(front):
            # Behind the last block stands at most a block that was never finished, or an old
            # footer: neither is data.
            self._end = end
            os.ftruncate(self._fd, end)
            os.pwrite(self._fd, front, end)
        else:
            os.pwrite(self._fd, self.footer.pack(), 0)


def inspect(path: Path) -> tuple[Footer, Header]:
    """Return a file's footer and header without its BAT, changing nothing.

    Raises:
        VhdError: It is no VHD of ours.
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read_front(fd)
    finally:
        os.close(fd)


def _read_front(fd: int) -> tuple[Footer, Header]:
    try:
        footer = Footer.unpack(os.pread(fd, SECTOR, 0))
    except VhdError:
        size = os.fstat(fd).st_size
        footer = Footer.unpack(os.pread(fd, SECTOR, max(0, size - SECTOR)))
    if footer.disk_type not in (DYNAMIC, DIFFERENCING) or footer.data_offset != HEADER_OFFSET:
        raise VhdError("the VHD is neither dynamic nor differencing")
    header = Header.unpack(os.pread(fd, HEADER_SIZE, HEADER_OFFSET))
    if header.block_size != BLOCK:
        raise VhdError(f"the VHD has blocks of {header.block_size} bytes, not of 2 MiB")
    if not blocks_of(footer.virtual_size) <= header.max_entries <= _MAX_ENTRIES:
        raise VhdError(f"the VHD has a BAT of {header.max_entries} entries")
    return footer, header


def vhd_time(seconds: float) -> int:
    """Return a Unix time as VHD counts it, in seconds since 2000."""
    return max(0, int(seconds) - EPOCH)


def mask(first: int, count: int) -> int:
    """Return a block's bitmap, as a number, in which just those sectors are set."""
    return ((1 << count) - 1) << (SECTORS_PER_BLOCK - first - count)


def _bitmap(bits: int) -> bytes:
    return bits.to_bytes(BITMAP, "big")


def _is_footer(raw: bytes) -> bool:
    try:
        Footer.unpack(raw)
    except VhdError:
        return False
    return True


def _is_zero(data: Buffer) -> bool:
    """Tell whether it is all zeroes, mostly from the first page."""
    if bytes(data[:_PAGE]) != _ZERO_PAGE[: len(data)]:
        return False
    return bytes(data) == (_ZERO_BLOCK if len(data) == BLOCK else bytes(len(data)))


def _write_all(fd: int, parts: list[Buffer], offset: int) -> None:
    """Write all of it: a disk that fills up takes a part before it says so."""
    total = sum(len(part) for part in parts)
    written = os.pwritev(fd, parts, offset)
    if written < total:
        rest = memoryview(b"".join(parts))
        while written < total:
            written += os.pwrite(fd, rest[written:], offset + written)
