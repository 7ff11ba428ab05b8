"""Time inside the lab: the hosts' clock, and waits that tests can shorten."""

import asyncio
from datetime import UTC, datetime, timedelta

from xorepd.lab.schema import DateTime

SHORTEST_NAP_S = 0.002
"""Even a lab without waiting lets others run between two looks at the same thing."""


class Clock:
    """Wall time plus an offset, and naps multiplied by a scale."""

    def __init__(self, scale: float = 1.0, offset: timedelta = timedelta()) -> None:
        self.scale = scale
        self.offset = offset

    def time(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def now(self) -> DateTime:
        return DateTime(self.time().strftime("%Y%m%dT%H:%M:%SZ"))

    def scaled(self, seconds: float) -> float:
        return max(SHORTEST_NAP_S, seconds * self.scale)

    async def nap(self, seconds: float) -> None:
        """Wait as XAPI does, for so many of its seconds."""
        await asyncio.sleep(self.scaled(seconds))


def parse_time(text: str) -> datetime:
    return datetime.strptime(text, "%Y%m%dT%H:%M:%SZ").replace(tzinfo=UTC)
