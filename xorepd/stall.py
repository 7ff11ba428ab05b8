"""Waits that time out when no bytes move, with few timers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Stalled(TimeoutError):
    """Too few bytes moved within the allowed time."""


class StallTimer:
    """Waits that raise `Stalled` when no bytes move for `stall` seconds, or at most twice that.

    Waits are short and many, so one timer serves all that begin before it fires.

    Args:
        stall: Seconds.
        moved: Returns a counter of the bytes that have moved.
        slowest: Bytes per second; a slower peer counts as stalled, so that it cannot hold a wait
            by sending a byte now and then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stall: float,
        moved: Callable[[], int],
        *,
        slowest: float = 0.0,
    ) -> None:
        self._loop, self._stall, self._moved, self._slowest = loop, stall, moved, slowest
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waits = 0
        self._seen = (0, 0)

    @property
    def stall(self) -> float:
        return self._stall

    @stall.setter
    def stall(self, seconds: float) -> None:
        self._stall = seconds
        if self._timer is not None:
            self._timer.cancel()
            self._watch()

    async def wait(self) -> None:
        """Wait for the next call of `end`.

        Raises:
            Stalled: too few bytes moved.
        """
        self._waits += 1
        self._waiter = self._loop.create_future()
        if self._timer is None:
            self._watch()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def end(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """End the wait and stop the timer."""
        self.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self) -> None:
        self._seen = (self._waits, self._moved())
        self._timer = self._loop.call_later(self._stall, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        waits, moved = self._seen
        least = max(self._stall * self._slowest, 1)
        if waits == self._waits and abs(self._moved() - moved) < least:
            self._waiter.set_exception(Stalled(f"no byte moved for {self._stall:g} s"))
        else:
            self._watch()
