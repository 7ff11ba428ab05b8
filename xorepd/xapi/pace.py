"""How fast a pool's XAPI answers, and how much work it gets for that.

Calls that only read take a moment on a healthy pool: what they take tells how loaded its toolstack
is. Of each `ANSWERS` of them the median counts. When it is slow, half as many VMs as now may be
worked on at once, one at least; when it is quick again, one more than before, until as many are
allowed as there were when it began.

    median > slow        half of those at work            (at least one)
    between              as it is
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
"""Answers from which a decision is made. A delta run asks some fifty times."""

PAUSE_S = 2.0
"""Longest pause before a call that can wait: those who clean up after a failure have 120 s."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many VMs may be worked on at once."""

    at_once: int | None = None
    """None: as many as the configuration allows."""
    before: int = 0
    """How many there were when the pool became slow."""


FREE = Allowance()


def next_allowance(now: Allowance, median_s: float, slow_s: float, at_work: int) -> Allowance:
    """Return what is allowed after a window of answers. Pure.

    Args:
        median_s: what half of the answers took at most.
        slow_s: above this the pool counts as slow.
        at_work: VMs that are worked on.
    """
    if median_s > slow_s:
        most = at_work if now.at_once is None else min(now.at_once, max(at_work, 1))
        return Allowance(max(most // 2, 1), max(now.before, at_work))
    if median_s < slow_s / 2 and now.at_once is not None:
        more = now.at_once + 1
        return Allowance(more, now.before) if more < now.before else FREE
    return now


class Pace:
    """The allowance of one pool, as its answers come in.

    Args:
        pool: its name.
        slow_s: median time of quick calls above which it counts as slow.
    """

    def __init__(self, pool: str, slow_s: float) -> None:
        self._pool, self._slow_s = pool, slow_s
        self._answers: list[float] = []
        self._allowance = FREE
        self.median_s: float | None = None
        """Of the last full window."""
        self.at_work: Callable[[], int] = lambda: 0
        """How many VMs are worked on: whoever admits them says so."""
        self.on_more: Callable[[], None] = lambda: None
        """Called when more may be worked on than before."""

    @property
    def at_once(self) -> int | None:
        """How many VMs may be worked on at once; None: as many as the configuration allows."""
        return self._allowance.at_once

    @property
    def is_slow(self) -> bool:
        return self.at_once is not None

    def note(self, answers: Iterable[float]) -> None:
        """Take in how many seconds quick calls took, the oldest first."""
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
        """Wait as long as the pool takes for an answer, while it is slow: before what can wait."""
        if self.is_slow and self.median_s is not None:
            await asyncio.sleep(min(self.median_s, PAUSE_S))
