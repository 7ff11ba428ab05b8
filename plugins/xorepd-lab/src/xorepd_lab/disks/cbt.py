"""Changed-block logs: which 64 KiB blocks of a disk were written, and between which snapshots.

A disk that is tracked has a file `<uuid>.cbtlog` beside its VHD. All numbers are little-endian:

    0         16        32            36    40       48
    | parent  | child   | consistent  | pad | size   | bitmap, one bit per 64 KiB, low bit first |

A snapshot takes the running log over and the disk begins a new one, so that the log of an element
holds what was written between the one before it and itself:

    a ──child──► b ──child──► live        changed(a, live) = log of b | log of live
      ◄─parent──   ◄─parent──

The flag `consistent` is down while somebody may write. Who finds it down when starting to write
knows that the last writer did not end well.

Sources: blktap: include/cbt-util.h, cbt/cbt-util.c, drivers/block-log.c; sm: libs/sm/VDI.py,
libs/sm/cbtutil.py, libs/sm/drivers/FileSR.py.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from uuid import UUID

from xorepd_lab.disks.chain import DiskError

BLOCK: Final = 65536
SUFFIX: Final = ".cbtlog"

ACTIVATE: Final = 457
DEACTIVATE: Final = 458
INCONSISTENT: Final = 459
CHANGED: Final = 460

_HEADER: Final = struct.Struct("<16s16si4xQ")
_NOBODY: Final = UUID(int=0)
_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class LogHeader:
    """What a log says beside its bitmap. `size` is the disk's, in bytes."""

    size: int
    parent: UUID = _NOBODY
    child: UUID = _NOBODY
    consistent: bool = True

    def pack(self) -> bytes:
        return _HEADER.pack(self.parent.bytes, self.child.bytes, self.consistent, self.size)

    @classmethod
    def unpack(cls, raw: bytes) -> LogHeader:
        parent, child, consistent, size = _HEADER.unpack(raw)
        return cls(size, UUID(bytes=parent), UUID(bytes=child), bool(consistent))


def bitmap_size(size: int) -> int:
    """Return how many bytes the bitmap of a disk of `size` bytes has."""
    blocks = -(-size // BLOCK)
    return -(-blocks // 8)


def log_size(size: int) -> int:
    """Return how many bytes the log of a disk of `size` bytes takes."""
    return _HEADER.size + bitmap_size(size)


class _Log:
    """One log in memory, each change written to its file at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = path.read_bytes()
        if len(raw) < _HEADER.size:
            raise DiskError(INCONSISTENT, f"{path.name} has no header")
        self.header = LogHeader.unpack(raw[: _HEADER.size])
        self.bitmap = bytearray(raw[_HEADER.size :])

    def put(self, header: LogHeader) -> None:
        self.header = header
        self._write(header.pack(), 0)

    def mark(self, offset: int, length: int) -> None:
        """Set the bits of a range; those past the end of the bitmap do not exist."""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        start, end = first // 8, min(last // 8 + 1, len(self.bitmap))
        if start >= end:
            return
        bits = ((1 << (last - first + 1)) - 1) << first % 8
        before = int.from_bytes(self.bitmap[start:end], "little")
        after = (before | bits) & ((1 << 8 * (end - start)) - 1)
        if after != before:
            self.bitmap[start:end] = after.to_bytes(end - start, "little")
            self._write(self.bitmap[start:end], _HEADER.size + start)

    def add(self, other: _Log) -> None:
        """Set the bits that the other log has as well."""
        merged = int.from_bytes(self.bitmap, "little") | int.from_bytes(other.bitmap, "little")
        self.bitmap = bytearray(merged.to_bytes(len(self.bitmap), "little"))
        self._write(self.bitmap, _HEADER.size)

    def grow(self, size: int) -> None:
        missing = bitmap_size(size) - len(self.bitmap)
        self._write(bytes(missing), _HEADER.size + len(self.bitmap))
        self.bitmap += bytes(missing)
        self.put(replace(self.header, size=size))

    def _write(self, data: bytes | bytearray, offset: int) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)


class CbtLogs:
    """All logs of one SR. Safe from several threads; whoever calls waits for short work only.

    Args:
        directory: Of the SR.
        fits: Called with the bytes a new log takes; OSError when they are not to be had.
    """

    def __init__(self, directory: Path, fits: Callable[[int], None]) -> None:
        self._directory = directory
        self._fits = fits
        self._lock = threading.RLock()
        self._logs: dict[str, _Log | None] = {}  # None: not read yet
        for leftover in directory.glob(f"*{SUFFIX}.new"):
            leftover.unlink()
        self.scan()

    def scan(self) -> None:
        """Notice logs that appeared and logs that went."""
        with self._lock:
            found = {path.stem for path in self._directory.glob(f"*{SUFFIX}")}
            self._logs = {uuid: self._logs.get(uuid) for uuid in found}

    def path(self, uuid: str) -> Path:
        """Return where the log of a disk is, or would be."""
        return self._directory / f"{uuid}{SUFFIX}"

    def has(self, uuid: str) -> bool:
        return uuid in self._logs

    def sizes(self) -> dict[str, int]:
        """Return the bytes each log takes, by the disk's UUID."""
        with self._lock:
            return {uuid: self._size(uuid) for uuid in self._logs}

    def header(self, uuid: str) -> LogHeader:
        """Return what a log says of itself; DiskError 459 when there is none or it is broken."""
        with self._lock:
            return self._log(uuid).header

    def is_consistent(self, uuid: str) -> bool:
        """Tell whether the last writer of a tracked disk ended well; a broken log says no."""
        try:
            return self.header(uuid).consistent
        except DiskError:
            return False

    def set_consistent(self, uuid: str, consistent: bool) -> None:
        """Raise or lower the flag; nothing happens for a disk that is not tracked."""
        with self._lock, contextlib.suppress(DiskError):
            log = self._log(uuid)
            if log.header.consistent != consistent:
                log.put(replace(log.header, consistent=consistent))

    def mark(self, uuid: str, offset: int, length: int) -> None:
        """Note that a range of a disk is being written, if the disk is tracked."""
        if length == 0 or uuid not in self._logs:
            return
        with self._lock, contextlib.suppress(DiskError):
            self._log(uuid).mark(offset, length)

    def create(self, uuid: str, size: int, consistent: bool) -> None:
        """Begin to track a disk.

        Raises:
            OSError: There is no room for the log.
        """
        with self._lock:
            self._create(uuid, LogHeader(size, consistent=consistent))

    def stop(self, uuid: str) -> None:
        """End tracking a disk as VDI.disable_cbt does: the element before it has no child now."""
        with self._lock:
            parent = self._existing(self._log(uuid).header.parent)
            self.remove(uuid)
            if parent is not None:
                parent.put(replace(parent.header, child=_NOBODY))

    def remove(self, uuid: str) -> None:
        """Delete a log and nothing else: its neighbours go on naming it."""
        with self._lock:
            self.path(uuid).unlink(missing_ok=True)
            self._logs.pop(uuid, None)

    def merge(self, uuid: str) -> None:
        """Delete a log, its bits going to its child: what is before and behind stays related.

        A log too large for its child's stays, as nothing could be said across the gap.
        """
        with self._lock:
            if uuid not in self._logs:
                return
            try:
                log = self._log(uuid)
                parent, child = self._existing(log.header.parent), self._existing(log.header.child)
            except DiskError:  # nothing can be said of what is broken
                self.remove(uuid)
                return
            if child is not None:
                if len(log.bitmap) > len(child.bitmap):
                    return
                child.add(log)
                child.put(replace(child.header, parent=log.header.parent))
            if parent is not None:
                parent.put(replace(parent.header, child=log.header.child))
            self.remove(uuid)

    def snapshot(self, uuid: str, new: str, size: int, in_use: bool) -> None:
        """Give the running log to a snapshot and begin a new one between it and what followed.

        Args:
            uuid: The disk.
            new: Its snapshot.
            size: Of the disk, in bytes.
            in_use: Whether somebody may be writing now.

        Raises:
            OSError: No room for the new log: the snapshot has its log, the disk has none.
        """
        with self._lock:
            self._log(uuid)
            self.path(uuid).rename(self.path(new))
            log = self._logs[new] = self._logs.pop(uuid)
            assert log is not None
            log.path = self.path(new)
            log.put(replace(log.header, consistent=True))
            parent = self._existing(log.header.parent)
            if parent is not None:
                parent.put(replace(parent.header, child=UUID(new)))
            fresh = LogHeader(size, UUID(new), log.header.child, consistent=not in_use)
            self._create(uuid, fresh)
            log.put(replace(log.header, child=UUID(uuid)))

    def grow(self, uuid: str, size: int) -> None:
        """Make the bitmap fit a disk that grew.

        Raises:
            OSError: There is no room for it.
        """
        with self._lock:
            if uuid in self._logs:
                log = self._log(uuid)
                self._fits(bitmap_size(size) - len(log.bitmap))
                log.grow(size)

    def changed(self, older: str, newer: str) -> bytes:
        """Return the blocks written between two elements, the first block in the highest bit.

        Raises:
            DiskError: 460 when they are the same or `newer` does not follow `older`, 459 when the
                logs between them contradict each other.
        """
        if older == newer:
            raise DiskError(CHANGED, "Source and target VDI are same")
        with self._lock:
            merged, size, seen, current = bytearray(), 0, {older}, older
            while self.has(older) and self.has(newer):
                current = str(self._log(current).header.child)
                if current in seen or not self.has(current):
                    break
                seen.add(current)
                log = self._log(current)
                here = log.header.size
                shorter = here < size or len(log.bitmap) < len(merged)
                unmoved = bool(merged) and here > size and len(log.bitmap) <= len(merged)
                if len(log.bitmap) * 8 < here // BLOCK or shorter or unmoved:
                    raise DiskError(INCONSISTENT, "Inconsistent bitmaps")
                bits = int.from_bytes(merged, "little") | int.from_bytes(log.bitmap, "little")
                merged, size = bytearray(bits.to_bytes(len(log.bitmap), "little")), here
                if current == newer:
                    return bytes(merged).translate(_REVERSED)
        raise DiskError(CHANGED, "Source and target VDI are unrelated")

    # -- inside ---------------------------------------------------------------------------------

    def _create(self, uuid: str, header: LogHeader) -> None:
        self._fits(log_size(header.size))
        fresh = self._directory / f"{uuid}{SUFFIX}.new"
        try:
            fresh.write_bytes(header.pack() + bytes(bitmap_size(header.size)))
            fresh.rename(self.path(uuid))
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        self._logs[uuid] = _Log(self.path(uuid))

    def _log(self, uuid: str) -> _Log:
        log = self._logs.get(uuid)
        if log is None:
            try:
                log = _Log(self.path(uuid))
            except OSError as error:
                raise DiskError(INCONSISTENT, f"{uuid} has no log") from error
            self._logs[uuid] = log
        return log

    def _existing(self, uuid: UUID) -> _Log | None:
        return self._log(str(uuid)) if str(uuid) in self._logs else None

    def _size(self, uuid: str) -> int:
        with contextlib.suppress(OSError):
            return self.path(uuid).stat().st_size
        return 0
