"""When the next bytes may pass. Pure: time comes in as an argument.

The bucket is kept in seconds and not in bytes: `take` books the time that bytes need at the rate of
this moment. A new rate then rules over everything that comes after, and no debt of a fast time has
to be paid off in a slow one.

            ├── burst ──┤
    ────────┴───────────now─────── free_at ──────►
            what was not used      booked: wait
"""

from __future__ import annotations

import math

BURST_S = 0.1
"""How much unused time may be made up for. It bridges a late timer and a slow write; over the ten
seconds in which a rate has to be kept to 5 % it is 1 %."""


class Bucket:
    def __init__(self) -> None:
        self._free_at = -math.inf

    def wait_s(self, now: float) -> float:
        """Return the seconds until something may pass; zero when it may now."""
        return max(self._free_at - now, 0.0)

    def take(self, now: float, seconds: float) -> None:
        """Book what passes now."""
        self._free_at = max(self._free_at, now - BURST_S) + seconds

    def give(self, seconds: float) -> None:
        """Give back what was booked and not used."""
        self._free_at -= seconds
