"""How much of the disks may be held in memory between reading and sending."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from xorepd.plugin import MiB
from xorepd_compressed.cutting import SPAN

TOTAL = 64 * MiB
"""Of all disks on a connection. At 16 disks that is 4 MiB each, as much as a window of the wire."""
LEAST = 2 * SPAN
"""Of each disk, whatever the others hold: one span that is being joined, and a piece for it."""


class House:
    """Shares the memory of a connection among its disks in equal parts, so that no disk waits for
    another.
    """

    def __init__(self, total: int = TOTAL) -> None:
        self._total, self._disks = total, 0

    @contextmanager
    def room(self, window: int) -> Iterator[Room]:
        """Let one more disk hold up to `window` bytes while a block lasts."""
        self._disks += 1
        try:
            yield Room(self, window)
        finally:
            self._disks -= 1

    def limit(self, window: int) -> int:
        """Return what a disk with that window may hold now."""
        return max(LEAST, min(window, self._total // max(self._disks, 1)))


class Room:
    """What one disk holds; one task takes, and any gives back."""

    def __init__(self, house: House, window: int) -> None:
        self._house, self._window = house, window
        self._held = 0
        self._waiting: asyncio.Future[None] | None = None

    async def take(self, size: int) -> None:
        """Wait until `size` more bytes, a span at most, may be held."""
        while self._held + size > self._house.limit(self._window):
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        self._held += size

    def give(self, size: int) -> None:
        """Say that bytes are not held any more."""
        self._held -= size
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
