"""Byte ranges of a disk and their algebra.

A list of extents that one function passes to another is sorted by offset, disjoint, and without
touching neighbours. So each set of bytes has one list, and equal lists mean equal sets.

    disk     |0        |64       |128      |192      |256 KiB
    extents            [=========]         [=========]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """The bytes from `offset` to `offset + length` of a disk."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def merge(extents: Iterable[Extent]) -> list[Extent]:
    """Return the union, in order, with overlapping and touching extents joined."""
    merged: list[Extent] = []
    for extent in sorted(extents):
        if extent.length <= 0:
            continue
        if merged and extent.offset <= merged[-1].end:
            last = merged[-1]
            merged[-1] = Extent(last.offset, max(last.end, extent.end) - last.offset)
        else:
            merged.append(extent)
    return merged


def clip(extents: Iterable[Extent], size: int) -> list[Extent]:
    """Return the parts of the extents below `size`."""
    return [Extent(e.offset, min(e.end, size) - e.offset) for e in extents if e.offset < size]


def total(extents: Iterable[Extent]) -> int:
    """Return the number of bytes in a list of disjoint extents."""
    return sum(e.length for e in extents)


def split(extent: Extent, granularity: int) -> Iterator[Extent]:
    """Cut one extent at every multiple of `granularity`."""
    offset = extent.offset
    while offset < extent.end:
        end = min(extent.end, (offset // granularity + 1) * granularity)
        yield Extent(offset, end - offset)
        offset = end
