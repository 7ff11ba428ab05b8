"""The offset of a pool's clock from ours, measured by dates that the pool gives."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

log = structlog.get_logger(__name__)

WHOLE = timedelta(seconds=1)
"""XAPI truncates its dates to whole seconds."""

NOTABLE_S = 30
"""Least offset that is logged, and least change of it that counts as a jump."""


class PoolClock:
    """The offset of one pool's clock.

    Args:
        pool: Name of the pool, for the log.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self.offset: int | None = None
        """Seconds by which the pool is ahead of us; negative: behind; None: not measured yet."""

    def compare(self, dated: datetime, began: datetime, ended: datetime) -> int:
        """Measure the offset by a date that the pool gave, and return it.

        Args:
            dated: The date by the pool's clock.
            began, ended: Our times before and after the pool set it.
        """
        offset = timedelta()
        if dated < began - WHOLE:
            offset = dated - (began - WHOLE)
        elif dated > ended:
            offset = dated - ended
        now, before = round(offset.total_seconds()), self.offset
        if before is None and abs(now) >= NOTABLE_S:
            log.warning("pool.clock_off", pool=self._pool, ahead_s=now)
        elif before is not None and abs(now - before) >= NOTABLE_S:
            log.warning("pool.clock_jumped", pool=self._pool, ahead_s=now, before_s=before)
        self.offset = now
        return now
