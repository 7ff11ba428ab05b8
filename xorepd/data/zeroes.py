"""Find the zeroes in the data of a disk, at the speed of memory.

A hash is Python's fastest way to examine every byte (22 GB/s; a comparison with a buffer of zeroes
makes 12, a comparison of memoryviews 0.3). A match of the hash is compared all the same, so that a
crafted block cannot pass for zeroes.
"""

from __future__ import annotations

from collections.abc import Iterator

import xxhash

from xorepd.units import KiB

UNIT = 64 * KiB
"""Granularity of zeroes in bytes: the same as that of changed-block tracking."""

_ZEROES = bytes(UNIT)
_DIGEST_OF_ZEROES = xxhash.xxh3_64_intdigest(_ZEROES)


def is_zero(data: memoryview) -> bool:
    """Return whether these 1 to 65536 bytes are all zero."""
    if data[0] or data[-1] or data[len(data) // 2]:  # decides most data quickly
        return False
    if len(data) < UNIT:
        return bytes(data) == _ZEROES[: len(data)]
    return hash_of_unit(data) is None


def hash_of_unit(data: memoryview) -> int | None:
    """Return the xxh3 of 64 KiB, or None when they are all zero."""
    digest = xxhash.xxh3_64_intdigest(data)
    if digest == _DIGEST_OF_ZEROES and bytes(data) == _ZEROES:
        return None
    return digest


def without_zeroes(offset: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the parts of a piece that are not zero, with neighbours joined.

    Units are cut at multiples of 64 KiB of the disk, not of the piece.
    """
    if offset % UNIT == 0 and len(data) % UNIT == 0 and 0 not in bytes(data[::UNIT]):
        yield offset, data  # decides most pieces by one byte of each unit
        return
    start, position = 0, 0
    while position < len(data):
        size = min(UNIT - (offset + position) % UNIT, len(data) - position)
        if is_zero(data[position : position + size]):
            if start < position:
                yield offset + start, data[start:position]
            start = position + size
        position += size
    if start < position:
        yield offset + start, data[start:position]
