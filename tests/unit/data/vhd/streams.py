"""VHD streams as XAPI writes and reads them, from its own sources and not with our layout module.

A disk is a string: a letter is a block filled with that byte, `0` a block of written zeroes, `-` a
block that the stream does not hold. `vhd_stream` writes one (xapi facts 4.2), `apply` writes one
onto a disk as XAPI's import does (4.5): only sectors whose bit is set, as the table says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise

from xorepd.data.vhd.parser import VhdStreamParser

SECTOR = 512
BLOCK = 2 << 20
STRIDE = SECTOR + BLOCK
TABLE_AT = 2048
ABSENT = 0xFFFFFFFF


def fill(letter: str) -> bytes:
    """Return one block of a letter."""
    return (b"\0" if letter in "0-" else letter.encode()) * BLOCK


def content(disk: str, virtual_size: int | None = None) -> bytes:
    """Return what a guest reads from a disk; absent blocks read as zeroes."""
    return b"".join(fill(letter) for letter in disk)[:virtual_size]


def checked(data: bytes, at: int) -> bytes:
    """Return a structure with its checksum in place."""
    plain = data[:at] + bytes(4) + data[at + 4 :]
    return plain[:at] + struct.pack(">I", ~sum(plain) & 0xFFFFFFFF) + plain[at + 4 :]


def footer(
    virtual_size: int,
    *,
    kind: int = 3,
    cookie: bytes = b"conectix",
    version: int = 0x10000,
    data_offset: int = 512,
) -> bytes:
    plain = struct.pack(
        ">8sIIQI4sI4sQQHBBII16sB427x",
        *(cookie, 2, version, data_offset, 0, b"caml", 1, bytes(4)),
        *(virtual_size, virtual_size, 1, 4, 17, kind, 0, b"0123456789abcdef", 0),
    )
    return checked(plain, 64)


def header(
    entries: int,
    *,
    cookie: bytes = b"cxsparse",
    table_at: int = TABLE_AT,
    version: int = 0x10000,
    block_size: int = BLOCK,
) -> bytes:
    plain = struct.pack(
        ">8sQQIII4x16s4x4x512s192s256x",
        *(cookie, 2**64 - 1, table_at, version, entries, block_size),
        *(bytes(16), bytes(512), bytes(192)),
    )
    return checked(plain, 36)


def table(disk: str, table_at: int = TABLE_AT) -> bytes:
    """Return the block table of a disk, padded to a sector with FF."""
    size = -(-len(disk) * 4 // SECTOR) * SECTOR
    sector, entries = (table_at + size) // SECTOR, []
    for letter in disk:
        entries.append(ABSENT if letter == "-" else sector)
        sector += 0 if letter == "-" else STRIDE // SECTOR
    return struct.pack(f">{len(disk)}I", *entries).ljust(size, b"\xff")


def head(disk: str, *, virtual_size: int | None = None, kind: int = 3) -> bytes:
    """Return everything before the first block."""
    size = len(disk) * BLOCK if virtual_size is None else virtual_size
    return footer(size, kind=kind) + header(len(disk)) + bytes(SECTOR) + table(disk)


def vhd_stream(disk: str, *, virtual_size: int | None = None, kind: int = 3) -> bytes:
    """Return the stream that XAPI exports for a disk: dynamic (3) or differencing (4)."""
    front = head(disk, virtual_size=virtual_size, kind=kind)
    blocks = [b"\xff" * SECTOR + fill(letter) for letter in disk if letter != "-"]
    return front + b"".join(blocks) + front[:SECTOR]


def pieces(stream: bytes, cuts: Iterable[int]) -> Iterator[memoryview]:
    """Cut a stream at some places."""
    places = [0, *sorted(cuts), len(stream)]
    view = memoryview(stream)
    for start, end in pairwise(places):
        yield view[start:end]


def parse(
    stream: bytes, *, cuts: Iterable[int] = (), differencing: bool = False
) -> tuple[VhdStreamParser, dict[int, bytes]]:
    """Feed a whole stream to a parser; return it with the data by block."""
    parser = VhdStreamParser(differencing=differencing)
    found: dict[int, bytearray] = {}
    for piece in pieces(stream, cuts):
        for offset, data in parser.feed(piece):
            block = found.setdefault(offset // BLOCK, bytearray())
            assert offset % BLOCK == len(block)
            block += data
    parser.finish()
    return parser, {block: bytes(data) for block, data in found.items()}


def apply(stream: bytes, disk: bytearray) -> None:
    """Write a stream onto a disk as XAPI's import does."""
    assert stream[:SECTOR] == stream[-SECTOR:]
    assert checked(stream[:SECTOR], 64) == stream[:SECTOR]
    assert checked(stream[512:1536], 36) == stream[512:1536]
    (table_at,) = struct.unpack_from(">Q", stream, 512 + 16)
    entries, block_size = struct.unpack_from(">II", stream, 512 + 28)
    assert block_size == BLOCK
    for block, sector in enumerate(struct.unpack_from(f">{entries}I", stream, table_at)):
        if sector == ABSENT:
            continue
        bitmap = stream[sector * SECTOR : (sector + 1) * SECTOR]
        for index in range(BLOCK // SECTOR):
            if bitmap[index // 8] & 0x80 >> index % 8:
                source = (sector + 1 + index) * SECTOR
                target = block * BLOCK + index * SECTOR
                assert target + SECTOR <= len(disk), "XAPI fails at the first write past the end"
                disk[target : target + SECTOR] = stream[source : source + SECTOR]
