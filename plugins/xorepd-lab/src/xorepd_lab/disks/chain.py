"""One open disk: a chain of VHD files read from the leaf down, written at the leaf.

Sources of the error numbers: sm: libs/sm/core/XE_SR_ERRORCODES.xml.
"""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from xorepd_lab.disks.vhd import BLOCK, SECTOR, SECTORS_PER_BLOCK, VhdError
from xorepd_lab.disks.vhd_file import Buffer, FileRange, VhdFile, mask

IN_USE: Final = 24
EXISTS: Final = 43
UNAVAILABLE: Final = 46
LOAD: Final = 65
CREATE: Final = 78
SIZE: Final = 79
CLONE: Final = 81
DEPTH: Final = 109
RESIZE: Final = 110
IO: Final = 200

_RUN = re.compile("1+")


class DiskError(Exception):
    """The storage backend refused; ``backend`` is the n of SR_BACKEND_FAILURE_n.

    Source of the numbers: sm: libs/sm/core/XE_SR_ERRORCODES.xml.
    """

    def __init__(self, backend: int, reason: str) -> None:
        super().__init__(reason)
        self.backend = backend


@dataclass(slots=True)
class Opened:
    """A disk somebody holds open, whatever file is its leaf at the moment."""

    chain: tuple[VhdFile, ...]  # leaf first; replaced as a whole by a split
    track: Callable[[int, int], None]  # told offset and length of each write before it is done
    handles: int = 0
    writing: threading.Lock = field(default_factory=threading.Lock)


class Disk:
    """One disk, read and written through its chain. It stays with its UUID across snapshots."""

    def __init__(
        self, uuid: str, opened: Opened, writable: bool, release: Callable[[str, Opened], None]
    ) -> None:
        self.uuid = uuid
        self.writable = writable
        self._release = release
        self._opened: Opened | None = opened

    def __enter__(self) -> Disk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk back; harmless when done twice."""
        opened, self._opened = self._opened, None
        if opened is not None:
            self._release(self.uuid, opened)

    @property
    def virtual_size(self) -> int:
        return self.chain[0].virtual_size

    @property
    def chain(self) -> tuple[VhdFile, ...]:
        """The files that make up the disk, the leaf first."""
        if self._opened is None:
            raise DiskError(IO, f"{self.uuid} is closed")
        return self._opened.chain

    def holds(self, index: int) -> bool:
        """Tell whether any file of the chain has that 2 MiB block."""
        return any(file.holds(index) for file in self.chain)

    def read(self, offset: int, length: int) -> bytes:
        """Return that range, holes as zeroes; both numbers multiples of 512."""
        self._check(offset, length)
        chain = self.chain
        with backend_failure(IO):
            pieces = [_read(chain, *piece) for piece in _pieces(offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def stored(self, offset: int, length: int) -> FileRange | None:
        """Return where that range of one block stands, if one file of the chain holds all of it."""
        self._check(offset, length)
        chain = self.chain
        [(index, first, count)] = _pieces(offset, length)
        wanted = mask(first, count)
        with backend_failure(IO):
            for file in chain:
                here = file.sectors(index) & wanted
                if here:
                    return file.range(index, first, count) if here == wanted else None
        return None

    def write(self, offset: int, data: Buffer) -> None:
        """Write at a multiple of 512 a multiple of 512 bytes; zeroes are data like any other.

        Raises:
            DiskError: 200 for a range outside the disk, a disk opened read-only, a full SR.
        """
        view = memoryview(data).cast("B") if not isinstance(data, bytes) else data
        self._check(offset, len(view))
        self._must_be_writable()
        position = 0
        for index, first, count in _pieces(offset, len(view)):
            whole = count * SECTOR == len(view)
            piece = view if whole else view[position : position + count * SECTOR]
            self._write_piece(index, first, piece)
            position += count * SECTOR

    def trim(self, offset: int, length: int) -> None:
        """Write zeroes over the blocks of that range that exist, in the disk or below it."""
        self._check(offset, length)
        self._must_be_writable()
        for index, first, count in _pieces(offset, length):
            if self.holds(index):
                self._write_piece(index, first, bytes(count * SECTOR))

    def flush(self) -> None:
        """Wait until the host's disk has what was written."""
        with backend_failure(IO):
            self.chain[0].flush()

    def _write_piece(self, index: int, first: int, piece: Buffer) -> None:
        assert self._opened is not None
        with self._opened.writing, backend_failure(IO):
            self._opened.track(index * BLOCK + first * SECTOR, len(piece))
            self._opened.chain[0].write(index, first, piece)

    def _must_be_writable(self) -> None:
        if not self.writable:
            raise DiskError(IO, f"{self.uuid} is open for reading only")

    def _check(self, offset: int, length: int) -> None:
        if offset % SECTOR or length % SECTOR:
            raise DiskError(IO, f"{length} bytes at {offset} are not whole sectors")
        if offset < 0 or length < 0 or offset + length > self.virtual_size:
            raise DiskError(IO, f"{length} bytes at {offset} end past the disk's end")


def runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (first sector, how many) for each run of set bits in a block's bitmap."""
    for run in _RUN.finditer(f"{bits:0{SECTORS_PER_BLOCK}b}"):
        yield run.start(), run.end() - run.start()


def _read(chain: tuple[VhdFile, ...], index: int, first: int, count: int) -> bytes:
    """Return sectors of one block, each from the first file of the chain that has it."""
    missing = mask(first, count)
    result: bytearray | None = None
    for file in chain:
        here = file.sectors(index) & missing
        if not here:
            continue
        if result is None and here == missing:
            return file.read(index, first, count)
        if result is None:
            result = bytearray(count * SECTOR)
        found = list(runs(here))
        start, end = found[0][0], found[-1][0] + found[-1][1]
        span = memoryview(file.read(index, start, end - start))
        for at, length in found:
            source = span[(at - start) * SECTOR : (at - start + length) * SECTOR]
            result[(at - first) * SECTOR : (at - first + length) * SECTOR] = source
        missing &= ~here
        if not missing:
            break
    return bytes(count * SECTOR) if result is None else bytes(result)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield (block, first sector in it, sectors) for each block a range touches."""
    end = offset + length
    while offset < end:
        index, within = divmod(offset, BLOCK)
        size = min(BLOCK - within, end - offset)
        yield index, within // SECTOR, size // SECTOR
        offset += size


@contextlib.contextmanager
def backend_failure(number: int) -> Iterator[None]:
    """Report what the host's file system says as the backend's failure of that number."""
    try:
        yield
    except VhdError as error:
        raise DiskError(LOAD, str(error)) from error
    except OSError as error:
        missing = error.errno == errno.ENOENT
        raise DiskError(LOAD if missing else number, str(error)) from error
