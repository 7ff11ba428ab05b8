"""How hard to compress. Pure: what was measured comes in as arguments.

The link and the compressing threads work at the same time, and the slower of the two decides how
fast a disk moves. So the level follows what the link leaves to the threads:

                          threads busy                  threads idle
    link never empty      right                         higher: there is time for it
    link often empty      lower: they hold it up        the source is slow; stay

What does not get shorter goes as it is, and is tried again later.
"""

from __future__ import annotations

from dataclasses import dataclass

TIMES = {1: 1.0, 2: 1.2, 3: 1.5, 5: 3.3, 6: 4.9, 9: 7.9, 17: 87.0, 19: 127.0}
"""Levels of zstd that are worth a step, and the time that each takes: measured over programs and
texts of an installed system in blocks of 1 MiB, where level 1 makes 500 MB/s. From 9 to 16 a block
gets no shorter, and above that by 8 % at most."""
LADDER = tuple(TIMES)
FIRST = 3

HELD_UP = 0.05
"""Share of time that the link may be empty while the threads work."""
KEPT_BUSY = 0.02
BUSY = 0.7
AFTERWARDS = 0.6
"""How busy a step up may make the threads: data differs, and others need the time too."""
WORTH = 0.95
"""A block that becomes longer than this share of itself costs more time than it saves."""
LONGEST_PAUSE = 32


@dataclass(frozen=True, slots=True)
class Period:
    """What happened on a link in a while."""

    elapsed_s: float
    sending_s: float
    """Of that, while something was ready to be sent."""
    packing_s: float
    """What all compressing threads worked, added up."""
    threads: int
    raw: int
    """Bytes of disk that were sent."""
    sent: int
    """Bytes that they became."""


def next_level(level: int, period: Period) -> int:
    """Return the level to go on with, one step at most from the one before."""
    at = LADDER.index(level)
    higher = LADDER[min(at + 1, len(LADDER) - 1)]
    empty = 1 - period.sending_s / period.elapsed_s
    load = period.packing_s / (period.elapsed_s * period.threads)
    if empty > HELD_UP and load > BUSY:
        return LADDER[max(at - 1, 0)]
    shrinks = period.sent < period.raw * WORTH
    afterwards = load * TIMES[higher] / TIMES[level]
    if empty < KEPT_BUSY and afterwards < AFTERWARDS and shrinks:
        return higher
    return level


class Trial:
    """Whether the blocks of one disk are worth compressing.

    After one that was not, the next few go as they are: two, then four, and so on, until a block
    gets shorter again.
    """

    def __init__(self) -> None:
        self._pause = self._left = 0

    def next(self) -> bool:
        """Return whether to try the next block."""
        if self._left:
            self._left -= 1
            return False
        return True

    def saw(self, raw: int, packed: int) -> None:
        """Note what came of a block that was tried."""
        if packed < raw * WORTH:
            self._pause = self._left = 0
        else:
            self._pause = min(max(2 * self._pause, 2), LONGEST_PAUSE)
            self._left = self._pause
