"""Limit the number of VMs in transfer while the XAPI of a pool answers slowly.

Read-only calls are fast on a healthy pool, so their duration shows the load of its toolstack. The
median of each `ANSWERS` calls counts. While it is slow, the limit is halved, down to one VM. When
it is quick again, the limit grows by one, up to the number of VMs before the slowdown.

    median > slow        half of the VMs in transfer      (at least one)
    between              unchanged
    median < slow / 2    one more                         (no limit once all are back)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import structlog

log = structlog.get_logger(__name__)

ANSWERS = 16
"""Calls for each decision. A delta run makes some fifty."""

PAUSE_S = 2.0
"""Longest pause before a call that can wait; a cleanup after a failure has 120 s in all."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many VMs may be worked on at once."""

    at_once: int | None = None
    """None: only the configured limit holds."""
    before: int = 0
    """VMs in transfer when the pool became slow."""


FREE = Allowance()


def next_allowance(now: Allowance, median_s: float, slow_s: float, at_work: int) -> Allowance:
    """Return the limit after a series of answers. Pure.

    Args:
        median_s: Median duration of the answers.
        slow_s: Median above which the pool counts as slow.
        at_work: VMs in transfer.
    """
    if median_s > slow_s:
        most = at_work if now.at_once is None else min(now.at_once, max(at_work, 1))
        return Allowance(max(most // 2, 1), max(now.before, at_work))
    if median_s < slow_s / 2 and now.at_once is not None:
        more = now.at_once + 1
        return Allowance(more, now.before) if more < now.before else FREE
    return now


class Pace:
    """The limit of one pool, updated with each answer.

    Args:
        pool: Name of the pool.
        slow_s: Median duration of read-only calls above which it counts as slow.
    """

    def __init__(self, pool: str, slow_s: float) -> None:
        self._pool, self._slow_s = pool, slow_s
        self._answers: list[float] = []
        self._allowance = FREE
        self.median_s: float | None = None
        """Median of the last complete series."""
        self.at_work: Callable[[], int] = lambda: 0
        """Returns the number of VMs in transfer; set by `replication.context.limits`."""
        self.on_more: Callable[[], None] = lambda: None
        """Called when the limit grows."""

    @property
    def at_once(self) -> int | None:
        """How many VMs may be worked on at once; None: as many as the configuration allows."""
        return self._allowance.at_once

    @property
    def is_slow(self) -> bool:
        return self.at_once is not None

    def note(self, answers: Iterable[float]) -> None:
        """Add the durations of read-only calls in seconds, the oldest first."""
        for seconds in answers:
            self._answers.append(seconds)
            if len(self._answers) == ANSWERS:
                self._decide(median(self._answers))
                self._answers.clear()

    def _decide(self, median_s: float) -> None:
        before, self.median_s = self._allowance, median_s
        now = next_allowance(before, median_s, self._slow_s, self.at_work())
        self._allowance = now
        if now == before:
            return
        facts = {"pool": self._pool, "median_s": round(median_s, 3), "max_vms": now.at_once}
        if now.at_once is None:
            log.info("pool.recovered", **facts)
        elif before.at_once is None:
            log.warning("pool.slow", slow_s=self._slow_s, active_vms=self.at_work(), **facts)
        else:
            log.info("pool.limit_changed", **facts)
        self.on_more()

    async def pause(self) -> None:
        """Pause before a call that can wait: for one median answer, while the pool is slow."""
        if self.is_slow and self.median_s is not None:
            await asyncio.sleep(min(self.median_s, PAUSE_S))
