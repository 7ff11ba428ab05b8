"""One level of the throttle: a link, a pool or a job, with the streams that pass it.

A stream asks for what it wants to write, waits for its turn and for the time that the last one
needs, and is admitted with a portion of it. Portions are small, and with each the rate is asked for
anew: it may come from the operator, from the timetable or from a new configuration.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from xorepd.plugin import KiB, LinkState
from xorepd_throttled.bucket import Bucket
from xorepd_throttled.options import check_rate
from xorepd_throttled.timetable import Tariff
from xorepd_throttled.turns import Stream, Turns

PORTION_S = 0.01
"""What passes at once is what takes this long: who comes right behind it waits no longer."""
SLOW_PORTION = 64 * KiB
SLOW_PORTION_S = 0.05
"""At rates where that would be less than this size, it may take this long: fewer, larger writes."""
SECTOR = 512
BLOCK = 4096
SLACK_PORTIONS = 4
NOTHING_SAID = Tariff()


def portion(wanted: int, rate: float) -> int:
    """Return how much of `wanted` bytes may pass at once at a rate in bytes per second.

    Whole blocks, or at a very slow rate whole sectors: writers want their extents aligned.
    """
    if rate == math.inf:
        return wanted
    size = int(max(rate * PORTION_S, min(rate * SLOW_PORTION_S, SLOW_PORTION)))
    unit = BLOCK if size >= BLOCK else SECTOR
    return min(wanted, max(unit, size // unit * unit))


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    wanted: int
    admitted: asyncio.Future[int]


class ThrottledLink:
    """What `xorepctl throttle` shows and sets (`xorepd.transports.links.Link`).

    Args:
        terms: what the configuration says of it, if anything.
        clock: now, aware; for the timetable.
    """

    def __init__(self, terms: Tariff | None, clock: Callable[[], datetime]) -> None:
        self.terms = terms
        self._clock = clock
        self._set: float | None = None
        self._bucket = Bucket()
        self._turns: Turns[_Wish] = Turns()
        self._timer: asyncio.TimerHandle | None = None
        self._streams = 0
        self._passed = 0

    def renew(self, terms: Tariff | None) -> None:
        self.terms, self._set = terms, None

    def set_rate(self, rate: float | None) -> None:
        self._set = None if rate is None else check_rate(rate)

    def state(self) -> LinkState:
        rate, because = self._rate()
        return LinkState(rate, because, self._streams, self._passed)

    @contextmanager
    def joined(self) -> Iterator[Passage]:
        """Let one more stream pass while a block lasts."""
        self._streams += 1
        try:
            yield Passage(self, self._turns.join())
        finally:
            self._streams -= 1

    async def admit(self, stream: Stream, wanted: int) -> int:
        """Wait for a stream's turn; return how many bytes may pass now, at least one."""
        loop = asyncio.get_running_loop()
        rate, _ = self._rate()
        slack = SLACK_PORTIONS * portion(wanted, rate)
        if self._timer is None and not self._bucket.wait_s(loop.time()):
            self._turns.go(stream, slack)  # no stream waits; `_serve` sets the timers
            return self._book(stream, wanted)
        wish = _Wish(wanted, loop.create_future())
        self._turns.queue(stream, wish, slack)
        if self._timer is None:
            self._serve()
        try:
            return await wish.admitted
        except asyncio.CancelledError:
            if not wish.admitted.cancelled():  # it came at the same moment
                self.refund(stream, wish.admitted.result())
            raise

    def refund(self, stream: Stream, size: int) -> None:
        """Give back what was admitted and not used."""
        rate, _ = self._rate()
        self._bucket.give(size / rate)
        stream.mark -= size
        if self._timer is not None:
            self._timer.cancel()
            self._serve()

    def passed(self, size: int) -> None:
        """Count what went to the target."""
        self._passed += size

    def _serve(self) -> None:
        """Admit whose turn it is, as far as the time has come; come back when it will have."""
        loop = asyncio.get_running_loop()
        self._timer = None
        while True:
            if wait := self._bucket.wait_s(loop.time()):
                # No longer than a portion takes, so that a new rate rules soon. Not before that is
                # decided who goes next: until then those who were served may queue again.
                self._timer = loop.call_later(wait, self._serve)
                return
            turn = self._turns.next()
            if turn is None:
                return
            stream, wish = turn
            if wish.admitted.done():
                continue  # cancelled while it waited
            wish.admitted.set_result(self._book(stream, wish.wanted))

    def _book(self, stream: Stream, wanted: int) -> int:
        """Return how much a stream may pass now, and book the time that it takes."""
        rate, _ = self._rate()
        size = portion(wanted, rate)
        self._bucket.take(asyncio.get_running_loop().time(), size / rate)
        stream.mark += size
        return size

    def _rate(self) -> tuple[float, str]:
        if self._set is not None:
            return self._set, "command"
        return (self.terms or NOTHING_SAID).at(self._clock())


class Passage:
    """One stream on one link."""

    def __init__(self, link: ThrottledLink, stream: Stream) -> None:
        self._link, self._stream = link, stream

    async def admit(self, wanted: int) -> int:
        return await self._link.admit(self._stream, wanted)

    def settle(self, admitted: int, sent: int) -> None:
        """Say what was made of what was admitted: zeroes that are left out do not count."""
        self._link.passed(sent)
        if sent < admitted:
            self._link.refund(self._stream, admitted - sent)
