"""Time inside the lab: the hosts' clock, and waits that tests can shorten."""

import asyncio
from datetime import UTC, datetime, timedelta

from xorepd_lab.model.schema import DateTime

FORMAT = "%Y%m%dT%H:%M:%SZ"
YEARS = (1970, 9998)
"""What a clock can show."""
SHORTEST_NAP_S = 0.002
"""Even a lab without waiting lets others run between two looks at the same thing."""


class Clock:
    """Wall time plus an offset, and naps multiplied by a scale."""

    def __init__(self, scale: float = 1.0, offset: timedelta = timedelta()) -> None:
        self.scale = scale
        self.offset = offset

    def jump(self, seconds: float) -> None:
        """Set the clock forward, or back; nobody who waits notices.

        Raises:
            ValueError: It would show a time that no host can have.
        """
        try:
            offset = self.offset + timedelta(seconds=seconds)
            possible = YEARS[0] <= (datetime.now(UTC) + offset).year <= YEARS[1]
        except OverflowError:
            possible = False
        if not possible:
            raise ValueError(f"no clock can be set so far: {seconds:g} s")
        self.offset = offset

    def time(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def now(self) -> DateTime:
        return write_time(self.time())

    def scaled(self, seconds: float) -> float:
        return max(SHORTEST_NAP_S, seconds * self.scale)

    async def nap(self, seconds: float) -> None:
        """Wait as XAPI does, for so many of its seconds."""
        await asyncio.sleep(self.scaled(seconds))


def parse_time(text: str) -> datetime:
    return datetime.strptime(text, FORMAT).replace(tzinfo=UTC)


def write_time(moment: datetime) -> DateTime:
    return DateTime(moment.strftime(FORMAT))
