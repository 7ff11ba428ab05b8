"""The map of a disk's content: a fingerprint of each unit of 64 KiB, kept until the next delta.

    disk   │ 256 units: 16 MiB │ 16 MiB      │ 16 MiB      │ …
    map    │ 256 × 16 bytes    │ empty: all  │ missing:    │ …      pages
           │                   │ zeroes      │ not known   │

A unit whose fingerprint is the one that the base has is on the target already: a delta that comes
in blocks of 2 MiB, because nothing tells it finer, leaves it out. What is not known is always sent,
so a page that is lost or damaged costs bytes and nothing else.

Fingerprints are xxh3 of 128 bits under a secret seed. Nobody who does not know it can prepare
content that looks like other content; whoever wrote to the disk would only harm his own replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import xxhash

from xorepd.data.zeroes import UNIT

ENTRY = 16
"""Bytes of a fingerprint."""
UNITS = 256
"""Units of a page."""
PAGE = UNITS * UNIT
"""Bytes of disk that a page is about."""

UNKNOWN = bytes(ENTRY)
"""In place of a fingerprint. What a damaged file may turn into must never mean anything."""
NOTHING_KNOWN = UNKNOWN * UNITS
SLOTS = range(0, UNITS * ENTRY, ENTRY)
UNKNOWN_PAGE = b"?"
"""As a page is kept of which nothing is known: any that has not the right size is taken so."""


class Pages(Protocol):
    """A map that is kept somewhere."""

    async def read(self, first: int, count: int) -> Mapping[int, bytes]:
        """Return the pages that there are of `count` from one on.

        Raises:
            StateError: they cannot be read.
        """


class Draft(Pages, Protocol):
    """A map that is being made, on the one that it is a change of."""

    @property
    def is_change(self) -> bool:
        """Whether a page that is missing is as in another map; otherwise it is not known."""

    @property
    def drawn_to(self) -> int:
        """Offset below which it holds all that was given, in this process or before it."""

    async def write(self, pages: Mapping[int, bytes], drawn_to: int) -> None:
        """Put pages in the place of those that it has.

        Raises:
            StateError: they cannot be written, or there is no room for them.
        """

    async def cut(self, first: int) -> None:
        """Remove the pages from one on: it is drawn to that one at most.

        Raises:
            StateError: they cannot be removed.
        """

    async def detach(self) -> None:
        """Remove all pages, and be no change of another map any more.

        Raises:
            StateError: they cannot be removed.
        """


class Hashing:
    """How fingerprints are made.

    Args:
        seed: secret, 64 bits.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.of_zeroes = xxhash.xxh3_128_digest(bytes(UNIT), seed)
        self.page_of_zeroes = self.of_zeroes * UNITS

    def of(self, data: memoryview) -> bytes:
        """Return the fingerprint of a unit; zeroes follow where the end of the disk cuts it."""
        if len(data) < UNIT:
            return xxhash.xxh3_128_digest(bytes(data).ljust(UNIT, b"\0"), self._seed)
        return xxhash.xxh3_128_digest(data, self._seed)
