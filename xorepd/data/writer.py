"""What takes the data of a disk (see `reader` for what gives it)."""

from __future__ import annotations

from typing import Protocol


class Writer(Protocol):
    """One disk open for writing the extents that were announced when it was opened."""

    @property
    def sent(self) -> int:
        """Bytes of data that went to the target so far, without what was left out as zeroes."""

    async def write(self, offset: int, data: memoryview) -> None:
        """Take the next piece; returns when there is room for another (back-pressure).

        Raises:
            DataError: the target refuses, stalls, or is gone.
        """

    async def finish(self) -> None:
        """Return when the data is on the target's storage, as its pool confirms.

        Raises:
            DataError: it is not, whatever was accepted before.
        """
