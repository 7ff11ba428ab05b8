"""What disks hold, as libvhdi reads them: once for each block of the same bytes.

libvhdi takes 20 ms for a full block of 2 MiB, and tests write the same blocks again and again. What
it makes of a block depends on what the files of the chain store for that block, and on nothing
else; so it is asked again only for what it has not seen in this process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import xxhash

from xorepd_lab.demo import judge
from xorepd_lab.demo.proof import DISK

NO_BLOCK = 0xFFFFFFFF
SECTOR = 512

Stored = tuple[tuple[int, bytes], ...]
"""What the files of a chain store for a block, the youngest first: how many of its bytes the file's
disk has, and the XXH3 of bitmap and data, b"" for none. Whole and empty ones are left out."""

_known: dict[tuple[int, Stored], bytes] = {}
"""XXH3 of what libvhdi reads, by length and by what is stored."""


def fingerprint(directory: Path, uuid: str) -> str:
    """Return what tells whether a VDI of a file-based SR holds the same: an XXH3 over its blocks.

    Raises:
        OSError: libvhdi cannot open or read it.
        EOFError: libvhdi ends early.
    """
    digest = xxhash.xxh3_128()
    with judge.Disk(directory, uuid) as disk, ExitStack() as stack:
        files = [stack.enter_context(_File(path)) for path in disk.paths]
        step = files[0].block_size
        for number, offset in enumerate(range(0, disk.size, step)):
            length = min(step, disk.size - offset)
            digest.update(_block(disk, files, number, offset, length))
    return digest.hexdigest()


def fingerprints(disks: Sequence[DISK]) -> list[str]:
    return [fingerprint(*disk) for disk in disks]


def _block(disk: judge.Disk, files: list[_File], number: int, offset: int, length: int) -> bytes:
    """Return the XXH3 of a block."""
    stored = tuple(_stored(files, number, offset, length))
    known = _known.get((length, stored))
    if known is not None:
        return known
    data = disk.read(offset, length)
    if len(data) < length:
        raise EOFError(f"libvhdi ends {length - len(data)} bytes early, in the block at {offset}")
    found = xxhash.xxh3_128_digest(data)
    if tuple(_stored(files, number, offset, length)) == stored:  # nobody writes to it just now
        _known[length, stored] = found
    return found


def _stored(
    files: list[_File], number: int, offset: int, length: int
) -> Iterator[tuple[int, bytes]]:
    for file in files:
        part = max(0, min(length, file.size - offset))
        block = file.block(number)
        if block or part < length:
            yield part, block


class _File:
    """A dynamic or differencing VHD, as far as to find what it stores for a block."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        footer = self._at(0, SECTOR)
        header_at, self.size = struct.unpack_from(">Q24xQ", footer, 16)
        table_at, entries, self.block_size = struct.unpack_from(
            ">Q4xII", self._at(header_at, 1024), 16
        )
        self._table = struct.unpack(f">{entries}I", self._at(table_at, 4 * entries))
        sectors = self.block_size // SECTOR
        self._room = -(-sectors // 8 // SECTOR) * SECTOR + self.block_size

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def block(self, number: int) -> bytes:
        """Return the XXH3 of a block's bitmap and data, b"" where the file has none."""
        place = self._table[number] if number < len(self._table) else NO_BLOCK
        if place == NO_BLOCK:
            return b""
        return xxhash.xxh3_128_digest(self._at(place * SECTOR, self._room))

    def _at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)
