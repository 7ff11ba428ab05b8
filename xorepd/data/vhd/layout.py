r"""The VHD structures that XAPI's streams are made of: bytes to values and back. No I/O.

    0      footer copy   512 B      \
    512    header       1024 B       | the head: everything about the stream is known after it
    1536   (locator)     512 B       |
    2048   BAT           4 B × blocks, padded to a sector   /
    …      per present block: sector bitmap (512 B), data (2 MiB)
    end    footer        512 B

All numbers are big-endian. A checksum is the one's complement of the sum of the structure's bytes,
its own field read as zero. Source: Microsoft's "Virtual Hard Disk Image Format Specification".
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from xorepd.units import GiB, MiB

SECTOR = 512
BLOCK_SIZE = 2 * MiB
"""Bytes of disk in one block. XAPI writes no other size."""
BITMAP_SIZE = SECTOR
"""One bit per sector of a 2 MiB block: exactly one sector."""
FOOTER_SIZE = 512
HEADER_SIZE = 1024
TABLE_OFFSET = 2048
ABSENT = 0xFFFFFFFF
"""BAT entry of a block that the file does not hold."""

MAX_VIRTUAL_SIZE = 2040 * GiB
"""Largest disk that XAPI puts into a VHD (xapi's `max_vhd_size`, sm's `MAX_VHD_SIZE`)."""

DYNAMIC, DIFFERENCING = 3, 4

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_HEADER = struct.Struct(">8sQQIIII16sII512s192s256x")
_FOOTER_CHECKSUM, _HEADER_CHECKSUM = 64, 36
_VERSION_1 = 0x00010000
_NO_OFFSET = 0xFFFFFFFFFFFFFFFF


class VhdError(ValueError):
    """Bytes that are no valid VHD structure; the message says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Footer:
    virtual_size: int
    """Bytes of disk, a multiple of 512."""
    disk_type: int
    unique_id: bytes


@dataclass(frozen=True, slots=True)
class Header:
    table_offset: int
    blocks: int
    """Entries of the BAT."""


def block_count(virtual_size: int) -> int:
    """Return how many blocks a disk has, the last one perhaps partly beyond its end."""
    return -(-virtual_size // BLOCK_SIZE)


def table_size(blocks: int) -> int:
    """Return the bytes that a BAT takes, padded to whole sectors."""
    return -(-blocks * 4 // SECTOR) * SECTOR


def parse_footer(data: bytes) -> Footer:
    """Return what a footer, or its copy at the beginning, says.

    Raises:
        VhdError: it is not a footer, is damaged, or describes what XAPI does not send.
    """
    if len(data) != FOOTER_SIZE:
        raise VhdError(f"a VHD footer has {FOOTER_SIZE} bytes, not {len(data)}")
    cookie, _, version, data_offset, _, _, _, _, _, size, _, _, _, kind, checksum, unique, _ = (
        _FOOTER.unpack(data)
    )
    if cookie != b"conectix":
        raise VhdError(f"this is no VHD: it begins with {cookie!r}")
    if checksum != _checksum(data, _FOOTER_CHECKSUM):
        raise VhdError("the VHD footer is damaged: its checksum is wrong")
    if version != _VERSION_1:
        raise VhdError(f"VHD version {version:#x} is not supported")
    if kind not in (DYNAMIC, DIFFERENCING):
        raise VhdError(f"VHD disk type {kind} is not supported, only dynamic and differencing")
    if data_offset != FOOTER_SIZE:
        raise VhdError(f"the VHD header is not behind the footer copy but at {data_offset}")
    if size % SECTOR or not 0 < size <= MAX_VIRTUAL_SIZE:
        raise VhdError(f"a virtual size of {size} bytes is not possible")
    return Footer(virtual_size=size, disk_type=kind, unique_id=unique)


def parse_header(data: bytes, footer: Footer) -> Header:
    """Return what the dynamic header says.

    Raises:
        VhdError: it is not a header, is damaged, or does not fit the footer.
    """
    if len(data) != HEADER_SIZE:
        raise VhdError(f"a VHD header has {HEADER_SIZE} bytes, not {len(data)}")
    cookie, _, table_offset, version, blocks, block_size, checksum, *_ = _HEADER.unpack(data)
    if cookie != b"cxsparse":
        raise VhdError(f"the VHD header begins with {cookie!r}")
    if checksum != _checksum(data, _HEADER_CHECKSUM):
        raise VhdError("the VHD header is damaged: its checksum is wrong")
    if version != _VERSION_1:
        raise VhdError(f"VHD header version {version:#x} is not supported")
    if block_size != BLOCK_SIZE:
        raise VhdError(f"a VHD block size of {block_size} bytes is not supported")
    if blocks != block_count(footer.virtual_size):
        raise VhdError(
            f"the block table has {blocks} entries, a disk of {footer.virtual_size} bytes "
            f"has {block_count(footer.virtual_size)} blocks"
        )
    # Up to eight parent locators of a sector each may stand before the table.
    if table_offset % SECTOR or not FOOTER_SIZE + HEADER_SIZE <= table_offset <= 16 * SECTOR:
        raise VhdError(f"the block table cannot be at {table_offset}")
    return Header(table_offset=table_offset, blocks=blocks)


def make_footer(virtual_size: int) -> bytes:
    """Return the footer of a dynamic disk: a new identity each time, no other history."""
    cylinders, heads, sectors = geometry(virtual_size)
    plain = _FOOTER.pack(
        b"conectix",
        2,
        _VERSION_1,
        FOOTER_SIZE,
        0,
        b"xrep",
        _VERSION_1,
        b"\0\0\0\0",
        virtual_size,
        virtual_size,
        cylinders,
        heads,
        sectors,
        DYNAMIC,
        0,
        uuid.uuid4().bytes,
        0,
    )
    return _with_checksum(plain, _FOOTER_CHECKSUM)


def make_header(virtual_size: int) -> bytes:
    """Return the dynamic header that goes with `make_footer`, table at `TABLE_OFFSET`."""
    plain = _HEADER.pack(
        b"cxsparse",
        _NO_OFFSET,
        TABLE_OFFSET,
        _VERSION_1,
        block_count(virtual_size),
        BLOCK_SIZE,
        0,
        bytes(16),
        0,
        0,
        bytes(512),
        bytes(192),
    )
    return _with_checksum(plain, _HEADER_CHECKSUM)


def geometry(virtual_size: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors as the appendix of the specification computes them."""
    total = min(virtual_size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        sectors, heads = 255, 16
        cylinders_times_heads = total // sectors
    else:
        sectors = 17
        cylinders_times_heads = total // sectors
        heads = max((cylinders_times_heads + 1023) // 1024, 4)
        if cylinders_times_heads >= heads * 1024 or heads > 16:
            sectors, heads = 31, 16
            cylinders_times_heads = total // sectors
        if cylinders_times_heads >= heads * 1024:
            sectors, heads = 63, 16
            cylinders_times_heads = total // sectors
    return cylinders_times_heads // heads, heads, sectors


def _checksum(data: bytes, at: int) -> int:
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def _with_checksum(data: bytes, at: int) -> bytes:
    return data[:at] + struct.pack(">I", _checksum(data, at)) + data[at + 4 :]
