"""What a link and the compressing threads do, measured; and the level that follows from it.

All disks on a link share it, so it is measured once for all of them. `levels` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xorepd.plugin import MiB
from xorepd_compressed.levels import FIRST, Period, next_level

PERIOD_S = 0.5
PERIOD_BYTES = 4 * MiB
"""A decision is made after so long and so much: over less, one slow block would decide."""


class Pace:
    """Measures one link.

    Args:
        clock: seconds, the event loop's.
        threads: how many compress at the same time.
    """

    def __init__(self, clock: Callable[[], float], threads: int) -> None:
        self._clock, self._threads = clock, threads
        self.level = FIRST
        self._ready = 0
        """Blocks that are ready to be sent, or are being sent."""
        self._ready_since = 0.0
        self._begin()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Note that something is ready to be sent, until it has been."""
        if not self._ready:
            self._ready_since = self._clock()
        self._ready += 1
        try:
            yield
        finally:
            self._ready -= 1
            if not self._ready:
                self._sending_s += self._clock() - self._ready_since

    def packed(self, seconds: float) -> None:
        """Note that a thread was busy for so long."""
        self._packing_s += seconds

    def sent(self, raw: int, sent: int) -> None:
        """Note that a block of `raw` bytes of disk went out as `sent` bytes."""
        self._raw += raw
        self._sent += sent
        elapsed = self._clock() - self._since
        if elapsed < PERIOD_S or self._raw < PERIOD_BYTES:
            return
        if self._ready:
            self._sending_s += self._clock() - self._ready_since
            self._ready_since = self._clock()
        period = Period(
            elapsed, self._sending_s, self._packing_s, self._threads, self._raw, self._sent
        )
        self.level = next_level(self.level, period)
        self._begin()

    def _begin(self) -> None:
        self._since = self._clock()
        self._sending_s = self._packing_s = 0.0
        self._raw = self._sent = 0
