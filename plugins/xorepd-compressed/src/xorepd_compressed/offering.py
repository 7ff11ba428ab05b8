"""Whether to ask the relay first what it has. Pure.

An offer costs a hash (16 bytes on the wire, a SHA-256 here and there) for each unit of 64 KiB, and
spares the unit if the relay has it. Where it hardly ever does, only now and then a run is offered,
to see whether that has changed.
"""

from __future__ import annotations

from xorepd.plugin import MiB

PATIENCE = 64 * MiB
"""So much may be offered in a row and nearly nothing spared, before offers become rare."""
RARELY = 16
"""Of so many runs one is offered then."""
LEAST = 1 / 256
"""What has to be spared: the time of a hash is about that of sending so much at 100 Mbit/s."""


class Offering:
    """Counts what the offers for one disk were good for."""

    def __init__(self, *, possible: bool) -> None:
        self._possible = possible
        self._offered = self._spared = 0
        self._is_rare = False
        self._skipped = 0

    def next(self) -> bool:
        """Return whether to offer the next run."""
        if not self._possible:
            return False
        if not self._is_rare:
            return True
        self._skipped = (self._skipped + 1) % RARELY
        return self._skipped == 0

    def saw(self, offered: int, spared: int) -> None:
        """Note the answer to an offer: bytes of disk, and how many of them need not be sent."""
        self._offered += offered
        self._spared += spared
        if self._is_rare and spared:
            self._is_rare, self._offered, self._spared = False, offered, spared
        elif self._offered >= PATIENCE:
            self._is_rare = self._spared < self._offered * LEAST
            self._offered = self._spared = 0
