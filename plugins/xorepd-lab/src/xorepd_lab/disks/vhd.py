"""The VHD format: what the bytes of a footer, a header and a parent locator mean. No I/O here.

A dynamic or differencing disk as the lab writes it, all numbers big-endian:

    0        512      1536              3072           (data 4 KiB aligned)
    | footer | header | 3 locators     | BAT | … | bitmap | 2 MiB of data | … | footer |
    | (copy) |        | (differencing) |     |   | 512 B  |               |   |        |

The BAT holds, per 2 MiB of the virtual disk, the sector of that block's bitmap. A set bit in the
bitmap (most significant first) says that this node of the chain has the sector; a clear one, that
the parent is to be asked.

Sources: Microsoft, "Virtual Hard Disk Image Format Specification" 1.0; blktap:
``vhd/lib/vhd-util-check.c`` for what XenServer refuses, ``vhd/lib/libvhd.c`` for how it finds a
parent.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

SECTOR: Final = 512
BLOCK: Final = 2 << 20
SECTORS_PER_BLOCK: Final = BLOCK // SECTOR
BITMAP: Final = SECTORS_PER_BLOCK // 8  # one sector
STORED_BLOCK: Final = BITMAP + BLOCK
UNUSED: Final = 0xFFFFFFFF  # BAT entry of a block that is not there
FULL_BITMAP: Final = b"\xff" * BITMAP
MAX_VIRTUAL_SIZE: Final = 2040 << 30  # xapi: ocaml/xapi-consts/constants.ml, max_vhd_size

FIXED: Final = 2
DYNAMIC: Final = 3
DIFFERENCING: Final = 4

HEADER_OFFSET: Final = SECTOR
HEADER_SIZE: Final = 1024
LOCATORS_OFFSET: Final = HEADER_OFFSET + HEADER_SIZE
NO_OFFSET: Final = 0xFFFFFFFFFFFFFFFF
NO_ID: Final = UUID(int=0)
EPOCH: Final = 946_684_800  # 2000-01-01T00:00:00Z, where VHD time begins

FEATURE_RESERVED: Final = 2
VERSION: Final = 0x00010000

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sBB426x")
_HEADER = struct.Struct(">8sQQIIII16sI4x512s192s256x")
_LOCATOR = struct.Struct(">4sIIIQ")
_LOCATORS = 8


class VhdError(Exception):
    """These bytes are not a VHD the lab can work with; the text says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Footer:
    """The sector that ends a VHD and, in all but fixed ones, begins it too."""

    virtual_size: int
    disk_type: int
    unique_id: UUID
    timestamp: int = 0
    hidden: bool = False  # XenServer's extension: one byte after the saved state
    # qemu takes the size from the geometry, which is coarser, unless the creator is one of a few:
    # "win " is one, and is none of XenServer's, which would owe a batmap.
    creator: bytes = b"win "
    creator_version: int = VERSION
    creator_os: bytes = b"\0\0\0\0"
    original_size: int | None = None  # None: as virtual_size
    data_offset: int = HEADER_OFFSET

    def pack(self) -> bytes:
        """Return the 512 bytes, checksum included."""
        cylinders, heads, sectors = geometry(self.virtual_size)
        original = self.virtual_size if self.original_size is None else self.original_size
        fields = (b"conectix", FEATURE_RESERVED, VERSION, self.data_offset, self.timestamp)
        creator = (self.creator, self.creator_version, self.creator_os)
        sizes = (original, self.virtual_size, cylinders, heads, sectors, self.disk_type)
        raw = bytearray(
            _FOOTER.pack(*fields, *creator, *sizes, 0, self.unique_id.bytes, 0, self.hidden)
        )
        struct.pack_into(">I", raw, 64, checksum(raw))
        return bytes(raw)

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Footer:
        """Return the footer in these 512 bytes.

        Raises:
            VhdError: No cookie, wrong checksum, or a version or disk type nobody knows.
        """
        if len(raw) != SECTOR or raw[:8] != b"conectix":
            raise VhdError("the VHD footer has no cookie 'conectix'")
        (_, features, version, data_offset, timestamp, *rest) = _FOOTER.unpack(raw)
        creator, creator_version, creator_os, original, current, _, _, _, disk_type, *rest = rest
        found, unique_id, _, hidden = rest
        if found != checksum(raw, 64):
            raise VhdError("the VHD footer's checksum is wrong")
        if not features & FEATURE_RESERVED or version != VERSION:
            raise VhdError(f"the VHD footer's version 0x{version:08x} is not 0x00010000")
        if disk_type not in (FIXED, DYNAMIC, DIFFERENCING):
            raise VhdError(f"the VHD footer's disk type {disk_type} is unknown")
        return cls(
            virtual_size=current,
            disk_type=disk_type,
            unique_id=UUID(bytes=unique_id),
            timestamp=timestamp,
            hidden=bool(hidden),
            creator=creator,
            creator_version=creator_version,
            creator_os=creator_os,
            original_size=original,
            data_offset=data_offset,
        )


@dataclass(frozen=True, slots=True)
class Locator:
    """Where in the file one spelling of the parent's path stands."""

    code: bytes  # MacX, W2ku, W2ru
    space: int  # bytes as Microsoft and libvhd write it; XAPI's streams write sectors
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """The 1024 bytes of a dynamic or differencing disk that lead to its BAT and its parent."""

    table_offset: int
    max_entries: int
    block_size: int = BLOCK
    parent_id: UUID = NO_ID
    parent_timestamp: int = 0
    parent_name: str = ""
    locators: tuple[Locator, ...] = field(default=())

    def pack(self) -> bytes:
        """Return the 1024 bytes, checksum included."""
        name = self.parent_name.encode("utf-16-be")
        locators = b"".join(
            _LOCATOR.pack(each.code, each.space, each.length, 0, each.offset)
            for each in self.locators
        )
        table = (self.table_offset, VERSION, self.max_entries, self.block_size)
        parent = (self.parent_id.bytes, self.parent_timestamp, name, locators)
        raw = bytearray(_HEADER.pack(b"cxsparse", NO_OFFSET, *table, 0, *parent))
        struct.pack_into(">I", raw, 36, checksum(raw))
        return bytes(raw)

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Header:
        """Return the header in these 1024 bytes.

        Raises:
            VhdError: No cookie, wrong checksum, or a version nobody knows.
        """
        if len(raw) != HEADER_SIZE or raw[:8] != b"cxsparse":
            raise VhdError("the VHD header has no cookie 'cxsparse'")
        (_, _, table_offset, version, entries, block_size, found, *rest) = _HEADER.unpack(raw)
        parent_id, parent_timestamp, name, locators = rest
        if found != checksum(raw, 36):
            raise VhdError("the VHD header's checksum is wrong")
        if version != VERSION:
            raise VhdError(f"the VHD header's version 0x{version:08x} is not 0x00010000")
        spellings = (
            Locator(code, space, length, offset)
            for code, space, length, _, offset in _LOCATOR.iter_unpack(locators)
            if code != b"\0\0\0\0"
        )
        return cls(
            table_offset=table_offset,
            max_entries=entries,
            block_size=block_size,
            parent_id=UUID(bytes=parent_id),
            parent_timestamp=parent_timestamp,
            parent_name=name.decode("utf-16-be", "replace").split("\0", 1)[0],
            locators=tuple(spellings),
        )


def checksum(raw: bytes | bytearray | memoryview, at: int | None = None) -> int:
    """Return one's complement of the byte sum, the checksum's own four bytes counted as zero.

    Args:
        raw: A whole footer or header.
        at: Where its checksum stands; None when that field is still zero.
    """
    total = sum(raw)
    if at is not None:
        total -= sum(raw[at : at + 4])
    return ~total & 0xFFFFFFFF


def geometry(virtual_size: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track, by the specification's appendix.

    ``vhd-util check`` refuses a geometry larger than what this gives.
    """
    sectors = min(virtual_size // SECTOR, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads = 255, 16
        return sectors // per_track // heads, heads, per_track
    per_track = 17
    tracks = sectors // per_track
    heads = max(4, (tracks + 1023) // 1024)
    if tracks >= heads * 1024 or heads > 16:
        per_track, heads = 31, 16
        tracks = sectors // per_track
    if tracks >= heads * 1024:
        per_track, heads = 63, 16
        tracks = sectors // per_track
    return tracks // heads, heads, per_track


def blocks_of(virtual_size: int) -> int:
    """Return how many 2 MiB blocks hold that many bytes."""
    return -(-virtual_size // BLOCK)


def table_size(entries: int) -> int:
    """Return the bytes a BAT of that many entries takes, padded to a sector."""
    return -(-entries * 4 // SECTOR) * SECTOR


def relative_locators(name: str) -> tuple[tuple[Locator, bytes], ...]:
    """Return the three spellings of a parent in the child's own directory, each with its text.

    ``vhd-util check`` reads all three, wants the header's name as their last part, and opens what
    they lead to. A backslash path of W2ku is relative here as in libvhd, which has no other.
    """
    windows = f".\\{name}".encode("utf-16-le")
    texts = ((b"MacX", f"file://./{name}".encode()), (b"W2ku", windows), (b"W2ru", windows))
    return tuple(
        (Locator(code, SECTOR, len(text), LOCATORS_OFFSET + number * SECTOR), text)
        for number, (code, text) in enumerate(texts)
    )
