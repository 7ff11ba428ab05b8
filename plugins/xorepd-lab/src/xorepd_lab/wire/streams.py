"""The streams of XAPI's disk handlers: a disk as VHD or raw bytes, out and in.

Export, ``format=vhd`` (what `VhdExport` lays out; no gaps, no batmap):

    0        512      1536       2048      ascending blocks that are there          end
    | footer | header | a sector | BAT … | FF bitmap + 2 MiB | FF bitmap + 2 MiB | … | footer |
    | (copy) |        | of zeroes|       |                   |                   |   |        |

Imports are push parsers: ``feed`` takes the body in pieces of any size and writes as it goes,
``finish`` says that there is no more. They hold at most one block and one BAT. In XAPI every one of
their failures looks alike from outside, so there is one exception with one sentence for the log.

Sources: xen-api: ocaml/libs/vhd/vhd_format/f.ml, ocaml/vhd-tool/src/impl.ml,
ocaml/vhd-tool/src/chunked.ml.
"""

from __future__ import annotations

import struct
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

from xorepd_lab.disks.chain import Disk, DiskError, runs
from xorepd_lab.disks.store import DiskStore
from xorepd_lab.disks.vhd import (
    BITMAP,
    BLOCK,
    DIFFERENCING,
    DYNAMIC,
    FULL_BITMAP,
    HEADER_SIZE,
    MAX_VIRTUAL_SIZE,
    SECTOR,
    SECTORS_PER_BLOCK,
    STORED_BLOCK,
    UNUSED,
    Footer,
    Header,
    Locator,
    VhdError,
    blocks_of,
    table_size,
)
from xorepd_lab.disks.vhd_file import Buffer, FileRange, VhdFile
from xorepd_lab.wire.xva import CHUNK, END, chunk

_TABLE_OFFSET: Final = 2048
_LOCATOR_OFFSET: Final = 1536
_CHUNK: Final = struct.Struct("<QI")
_ALL_SET: Final = (1 << SECTORS_PER_BLOCK) - 1
_BATCH: Final = 4  # blocks
_ZERO_BLOCK: Final = bytes(BLOCK)
Part = bytes | FileRange
_MAX_CHUNK: Final = (1 << 31) - 1  # chunked.ml reads the length as a signed 32-bit number


class StreamError(Exception):
    """The stream cannot be made or taken; XAPI reports VDI_IO_ERROR ["Device I/O errors"]."""


class Export(ABC):
    """What all exports share: the disk and its base held open, and which blocks to send.

    Args:
        store: The SR.
        uuid: The disk.
        base: The disk to compare with; None: everything.
        scanned: Look for zeroes, as XAPI must where a disk is no VHD and nobody knows what of it
            was ever written.
    """

    length: int
    """Bytes of the whole stream."""

    def __init__(
        self, store: DiskStore, uuid: str, base: str | None = None, scanned: bool = False
    ) -> None:
        self._stack = ExitStack()
        try:
            self._disk = self._stack.enter_context(store.open(uuid))
            nodes = {_identity(file): file for file in self._disk.chain}
            self._base: VhdFile | None = None
            if base is not None:
                below = self._stack.enter_context(store.open(base)).chain
                self._base = below[0]
                theirs = {_identity(file): file for file in below}
                nodes = {key: (nodes | theirs)[key] for key in nodes.keys() ^ theirs.keys()}
            self.virtual_size = self._disk.virtual_size
            self.blocks = self._blocks_of(nodes.values(), scanned)
        except BaseException:
            self._stack.close()
            raise

    def _blocks_of(self, nodes: Iterable[VhdFile], scanned: bool) -> list[int]:
        """Return the blocks that these files hold; looking into them, if scanned, for zeroes."""
        entries = blocks_of(self.virtual_size)
        present = {index for file in nodes for index in file.allocated()}
        return [
            index
            for index in sorted(present)
            if index < entries and not (scanned and self._data(index) == _ZERO_BLOCK)
        ]

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Let go of the disk, so that its chain may be collected again."""
        self._stack.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def parts(self, in_files: bool) -> Iterator[list[Part]]:
        """Yield the whole stream in lists of a few MiB, each to be sent in its order.

        Args:
            in_files: Give blocks that one file holds wholly as ranges of that file, which the
                receiver closes; otherwise everything as bytes.
        """

    def pieces(self) -> Iterator[bytes]:
        """Yield the whole stream as bytes, in pieces of about 2 MiB."""
        for parts in self.parts(in_files=False):
            yield from (part if isinstance(part, bytes) else part.read() for part in parts)

    def _data(self, index: int) -> bytes:
        """Return a block's 2 MiB, zeroes behind the disk's end."""
        offset = index * BLOCK
        size = min(BLOCK, self.virtual_size - offset)
        data = self._disk.read(offset, size)
        return data if size == BLOCK else data.ljust(BLOCK, b"\0")


class VhdExport(Export):
    """A disk as XAPI streams it with ``format=vhd``; close it when done.

    With a base: the blocks of all files that are in one of the two chains but not in both. That
    holds what only the base's side changed, too, so that the stream applied to a copy of the base
    gives the disk, however the two are related.

    Attributes:
        blocks: Numbers of the 2 MiB blocks in the stream, ascending.
        head: Everything before the first block.
        tail: Everything behind the last one: the footer.
        length: Bytes of the whole stream.

    Raises:
        DiskError: 46 when the disk or the base is not there.
    """

    def __init__(
        self, store: DiskStore, uuid: str, base: str | None = None, scanned: bool = False
    ) -> None:
        super().__init__(store, uuid, base, scanned)
        kind = DYNAMIC if self._base is None else DIFFERENCING
        footer = Footer(self.virtual_size, kind, uuid4(), creator=b"caml", creator_version=1)
        self.tail = footer.pack()
        self.head = self.tail + self._header().pack() + bytes(SECTOR) + self._table()
        self.length = len(self.head) + len(self.blocks) * STORED_BLOCK + len(self.tail)

    def block(self, index: int) -> bytes:
        """Return one block as it stands in the stream: bitmap, all set, and 2 MiB of data."""
        return FULL_BITMAP + self._data(index)

    def parts(self, in_files: bool) -> Iterator[list[Part]]:
        yield [self.head]
        for indexes in batched(self.blocks):
            yield [part for index in indexes for part in self._parts_of(index, in_files)]
        yield [self.tail]

    def _parts_of(self, index: int, in_files: bool) -> list[Part]:
        whole = in_files and (index + 1) * BLOCK <= self.virtual_size
        stored = self._disk.stored(index * BLOCK, BLOCK) if whole else None
        return [self.block(index)] if stored is None else [FULL_BITMAP, stored]

    def _header(self) -> Header:
        entries = blocks_of(self.virtual_size)
        if self._base is None:
            return Header(_TABLE_OFFSET, entries)
        path = f"file://{self._base.path}".encode()
        return Header(
            _TABLE_OFFSET,
            entries,
            parent_id=self._base.footer.unique_id,
            parent_timestamp=self._base.footer.timestamp,
            parent_name=self._base.path.name,
            # One sector is said to be there, but XAPI does not write the path into it.
            locators=(Locator(b"MacX", 1, len(path), _LOCATOR_OFFSET),),
        )

    def _table(self) -> bytes:
        entries = blocks_of(self.virtual_size)
        size = table_size(entries)
        first = (_TABLE_OFFSET + size) // SECTOR
        table = array("I", [UNUSED]) * (size // 4)
        for number, index in enumerate(self.blocks):
            table[index] = first + number * (STORED_BLOCK // SECTOR)
        _to_big_endian(table)
        return table.tobytes()


class RawExport(Export):
    """A disk as ``format=raw``: its bytes, holes as zeroes; close it when done.

    With a base, whatever no file outside both chains holds is sent as zeroes: useless as a delta,
    and what XAPI does.
    """

    def __init__(
        self, store: DiskStore, uuid: str, base: str | None = None, scanned: bool = False
    ) -> None:
        super().__init__(store, uuid, base)  # every byte is sent: there is nothing to look for
        self.length = self.virtual_size
        self._present = frozenset(self.blocks)
        self._position = 0

    def read(self, limit: int = BLOCK) -> bytes:
        """Return the next bytes, at most that many and at most to the end of a 2 MiB block.

        Args:
            limit: At least 512; rounded down to whole sectors.

        Returns:
            Nothing, once all ``length`` bytes were given.
        """
        index, within = divmod(self._position, BLOCK)
        size = min(limit // SECTOR * SECTOR, BLOCK - within, self.length - self._position)
        position = self._position
        self._position += size
        return self._disk.read(position, size) if index in self._present else bytes(size)

    def parts(self, in_files: bool) -> Iterator[list[Part]]:
        if not in_files:
            for piece in iter(self.read, b""):
                yield [piece]
            return
        for indexes in batched(range(blocks_of(self.virtual_size))):
            yield [self._part_of(index) for index in indexes]

    def _part_of(self, index: int) -> Part:
        size = min(BLOCK, self.virtual_size - index * BLOCK)
        if index not in self._present:
            return _ZERO_BLOCK[:size]
        return self._disk.stored(index * BLOCK, size) or self._disk.read(index * BLOCK, size)


class TarExport(Export):
    """A disk as ``format=tar``: 1 MiB files `vdi/00000000` with their checksums, as in an XVA.

    Chunks of zeroes, or of which no file of the chain knows, are left out, but not the first and
    the last one. The stream's length is not known before.
    """

    def __init__(
        self, store: DiskStore, uuid: str, base: str | None = None, scanned: bool = False
    ) -> None:
        super().__init__(store, uuid, base)  # looked for in chunks, not in blocks
        self._scanned = scanned
        self.length = self.virtual_size

    def parts(self, in_files: bool) -> Iterator[list[Part]]:
        last = (self.virtual_size - 1) // CHUNK
        per_block = BLOCK // CHUNK
        inside = {block * per_block + part for block in self.blocks for part in range(per_block)}
        for number in sorted({0, last} | {each for each in inside if each <= last}):
            at = number * CHUNK
            data = self._disk.read(at, min(CHUNK, self.virtual_size - at))
            if not self._scanned or number in (0, last) or data != _ZERO_BLOCK[: len(data)]:
                yield [chunk("vdi", number, data)]
        yield [END]


def batched(indexes: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the numbers of blocks a few at a time, so that not each costs a change of threads."""
    return (indexes[at : at + _BATCH] for at in range(0, len(indexes), _BATCH))


# What a parser asks for next: that many bytes. Negative: skip as many. What it gets stands there
# only until it asks again.
_Parser = Generator[int, Buffer, None]


class _Import(ABC):
    """A parser that asks for exact amounts, fed with whatever amounts arrive."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._held = memoryview(bytearray(BLOCK))  # the beginning of what the parser waits for
        self._holding = 0
        self._parser: _Parser | None = self._parse()
        self._wanted = 0
        self._skipping = 0
        self._failure: str | None = None  # once failed, a stream stays failed
        self.received = 0
        self._advance(None)

    @abstractmethod
    def _parse(self) -> _Parser: ...

    @property
    def done(self) -> bool:
        """Whether the stream reached its own end."""
        return self._parser is None

    @property
    def needed(self) -> int:
        """How many bytes more it takes before anything happens."""
        return self._skipping or self._wanted - self._holding

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the body and write what they complete.

        Raises:
            StreamError: They make no sense, or the disk refuses them.
        """
        self._must_be_whole()
        self.received += len(data)
        view = memoryview(data)
        while view and self._parser is not None:
            if self._skipping:
                step = min(self._skipping, len(view))
                self._skipping -= step
                view = view[step:]
                if not self._skipping:
                    self._advance(b"")
                continue
            piece, view = view[: self.needed], view[self.needed :]
            if len(piece) == self._wanted:  # whole as it came: spares a copy
                self._advance(piece)
                continue
            if not self._holding and self._wanted > len(self._held):
                self._held = memoryview(bytearray(self._wanted))
            self._held[self._holding : self._holding + len(piece)] = piece
            self._holding += len(piece)
            if self._holding == self._wanted:
                self._holding = 0
                self._advance(self._held[: self._wanted])
        if view:
            self._surplus(view)

    def finish(self) -> None:
        """Say that the body is over, and wait until the disk has it.

        Raises:
            StreamError: The body ended before the stream did.
        """
        self._must_be_whole()
        if self._parser is not None:
            raise StreamError(f"the stream ends after {self.received} bytes, before its end")
        try:
            self._disk.flush()
        except DiskError as error:
            raise StreamError(str(error)) from error

    def _surplus(self, rest: memoryview) -> None:  # noqa: B027 -- what most streams do
        """Ignore bytes behind the end: XAPI closes without having read them."""

    def _must_be_whole(self) -> None:
        if self._failure is not None:
            raise StreamError(self._failure)

    def _advance(self, data: Buffer | None) -> None:
        assert self._parser is not None
        try:
            wanted = next(self._parser) if data is None else self._parser.send(data)
        except StopIteration:
            self._parser = None
        except (StreamError, DiskError, VhdError) as error:
            self._failure = str(error)
            raise StreamError(self._failure) from error
        else:
            self._wanted, self._skipping = max(0, wanted), max(0, -wanted)


class RawImport(_Import):
    """``format=raw``: exactly ``length`` bytes from the disk's beginning; None = the disk's size.

    Raises:
        StreamError: For a length of 0, which XAPI's writer refuses as well.
    """

    def __init__(self, disk: Disk, length: int | None) -> None:
        self._length = disk.virtual_size if length is None else length
        if self._length <= 0:
            raise StreamError(f"a raw stream of {self._length} bytes cannot be taken")
        super().__init__(disk)

    def _parse(self) -> _Parser:
        offset = 0
        while offset < self._length:
            data = yield min(BLOCK, self._length - offset)
            cut = len(data) % SECTOR
            if cut:  # the last sector keeps what the stream does not reach
                whole = len(data) - cut
                kept = self._disk.read(offset + whole, SECTOR)
                data = bytes(data) + kept[cut:]
            self._disk.write(offset, data)
            offset += len(data)


class ChunkedRawImport(_Import):
    """``format=raw&chunked``: extents, each behind 12 little-endian bytes {u64 offset, u32 length}.

    A header of 12 zero bytes ends it. Any order; later extents win; what none mentions stays.
    """

    def _parse(self) -> _Parser:
        while True:
            offset, length = _CHUNK.unpack((yield _CHUNK.size))
            if offset == 0 and length == 0:
                return
            if offset % SECTOR or length % SECTOR:
                raise StreamError(f"chunk of {length} bytes at {offset}: not whole sectors")
            if length > _MAX_CHUNK:
                raise StreamError(f"chunk of {length} bytes at {offset}: 2 GiB or more")
            if offset + length > self._disk.virtual_size:
                raise StreamError(f"chunk of {length} bytes at {offset}: past the disk's end")
            end = offset + length
            while offset < end:
                # To the next block's edge, so that whole blocks are written whole.
                data = yield min(BLOCK - offset % BLOCK, end - offset)
                self._disk.write(offset, data)
                offset += len(data)


class VhdImport(_Import):
    """``format=vhd``: the blocks of a VHD, in the order in which they stand in the stream.

    Only sectors whose bit is set are written. Disk type, parent and identities are ignored: that
    the disk is the right base for a differencing stream is for the client to know.

    Args:
        disk: Where it goes; blocks past its end fail when they come.
        content_length: Where the last footer ends; None is taken as the disk's size, so it fails.
    """

    def __init__(self, disk: Disk, content_length: int | None) -> None:
        self._length = disk.virtual_size if content_length is None else content_length
        self._at = 0
        super().__init__(disk)

    def _parse(self) -> _Parser:
        footer = Footer.unpack(bytes((yield from self._take(SECTOR))))
        if footer.disk_type not in (DYNAMIC, DIFFERENCING):
            raise StreamError("the VHD is neither dynamic nor differencing")
        yield from self._skip_to(footer.data_offset, "its header")
        header = Header.unpack(bytes((yield from self._take(HEADER_SIZE))))
        if header.block_size != BLOCK:
            raise StreamError(f"the VHD has blocks of {header.block_size} bytes, not of 2 MiB")
        if header.max_entries > blocks_of(MAX_VIRTUAL_SIZE):
            raise StreamError(f"the VHD has a BAT of {header.max_entries} entries")
        yield from self._skip_to(header.table_offset, "its BAT")
        table = array("I", bytes((yield from self._take(4 * header.max_entries))))
        _to_big_endian(table)

        blocks = [index for index, sector in enumerate(table) if sector != UNUSED]
        blocks.sort(key=table.__getitem__)
        for index in blocks:
            yield from self._skip_to(table[index] * SECTOR, f"block {index}")
            bits = int.from_bytes((yield from self._take(BITMAP)), "big")
            data = yield from self._take(BLOCK)
            self._write(index, bits, data)

        yield from self._skip_to(self._length - SECTOR, "its last footer")
        Footer.unpack(bytes((yield from self._take(SECTOR))))

    def _write(self, index: int, bits: int, data: Buffer) -> None:
        if bits == _ALL_SET:
            room = self._disk.virtual_size - index * BLOCK
            if room < BLOCK:
                raise StreamError(f"block {index} is past the disk's end")
            self._disk.write(index * BLOCK, data)
            return
        view = memoryview(data)
        for first, count in runs(bits):
            piece = view[first * SECTOR : (first + count) * SECTOR]
            self._disk.write(index * BLOCK + first * SECTOR, piece)

    def _take(self, size: int) -> Generator[int, Buffer, Buffer]:
        if self._at + size > self._length:
            raise StreamError(f"the VHD goes on past its content length of {self._length} bytes")
        data: Buffer = b""
        if size:
            data = yield size
        self._at += size
        return data

    def _skip_to(self, offset: int, what: str) -> _Parser:
        if offset < self._at:
            raise StreamError(f"the VHD wants {what} at {offset}, behind what was read already")
        if offset > self._length:
            raise StreamError(f"the VHD wants {what} at {offset}, past its content length")
        if offset > self._at:
            yield self._at - offset
        self._at = offset

    def _surplus(self, rest: memoryview) -> None:
        raise StreamError(f"the VHD goes on past its content length of {self._length} bytes")


def _identity(file: VhdFile) -> tuple[bytes, str]:
    """What makes a file the same one in two chains. Source: f.ml, unique id and base name."""
    return file.footer.unique_id.bytes, file.path.name


def _to_big_endian(table: array[int]) -> None:
    if sys.byteorder == "little":
        table.byteswap()
