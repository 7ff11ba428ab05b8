"""The fingerprint map of a disk: a fingerprint of each unit of 64 KiB, kept until the next delta.

    disk   │ 256 units: 16 MiB │ 16 MiB      │ 16 MiB      │ …
    map    │ 256 × 16 bytes    │ empty: all  │ missing:    │ …      pages
           │                   │ zeroes      │ not known   │

If a unit has the same fingerprint as in the base, the target already has it. So a delta in blocks
of 2 MiB, for want of finer information, leaves it out. Unknown units are always sent, so a lost or
damaged page costs bandwidth and nothing else.

Fingerprints are xxh3 of 128 bits with a secret seed. Without the seed, content cannot be crafted to
look like other content; and a guest that could would only harm its own replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import xxhash

from xorepd.data.zeroes import UNIT

ENTRY = 16
"""Size of a fingerprint in bytes."""
UNITS = 256
"""Units in a page."""
PAGE = UNITS * UNIT
"""Bytes of disk that a page describes."""

UNKNOWN = bytes(ENTRY)
"""Stands for an unknown fingerprint; zeroes, as in a damaged file."""
NOTHING_KNOWN = UNKNOWN * UNITS
SLOTS = range(0, UNITS * ENTRY, ENTRY)
UNKNOWN_PAGE = b"?"
"""A stored page of which nothing is known. Any page of a wrong size counts as one."""


class Pages(Protocol):
    """A stored map."""

    async def read(self, first: int, count: int) -> Mapping[int, bytes]:
        """Return the pages that exist among `count` pages from one on.

        Raises:
            StateError: the pages cannot be read.
        """


class Draft(Pages, Protocol):
    """A map that is being written, perhaps as a change of another one."""

    @property
    def is_change(self) -> bool:
        """Whether a missing page is the same as in the base map; else it is unknown."""

    @property
    def drawn_to(self) -> int:
        """Offset up to which it is complete, from this process or an earlier one."""

    async def write(self, pages: Mapping[int, bytes], drawn_to: int) -> None:
        """Add or replace pages.

        Raises:
            StateError: the pages cannot be written, or the file is full.
        """

    async def cut(self, first: int) -> None:
        """Remove the pages from one on.

        Raises:
            StateError: the pages cannot be removed.
        """

    async def detach(self) -> None:
        """Remove all pages, and the reference to the base map.

        Raises:
            StateError: the pages cannot be removed.
        """


class Hashing:
    """The fingerprint function.

    Args:
        seed: Secret, 64 bits.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.of_zeroes = xxhash.xxh3_128_digest(bytes(UNIT), seed)
        self.page_of_zeroes = self.of_zeroes * UNITS

    def of(self, data: memoryview) -> bytes:
        """Return the fingerprint of a unit; a short one, at the end of a disk, counts as padded."""
        if len(data) < UNIT:
            return xxhash.xxh3_128_digest(bytes(data).ljust(UNIT, b"\0"), self._seed)
        return xxhash.xxh3_128_digest(data, self._seed)
