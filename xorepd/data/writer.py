"""The protocol of what writes a disk; see `reader` for the other end."""

from __future__ import annotations

from typing import Protocol


class Writer(Protocol):
    """One disk, open for writing the extents that were announced at opening."""

    @property
    def sent(self) -> int:
        """Bytes sent to the target so far, without omitted zeroes."""

    async def write(self, offset: int, data: memoryview) -> None:
        """Write the next piece; return when there is room for another (back-pressure).

        Raises:
            DataError: the target refuses, stalls, or is gone.
        """

    async def finish(self) -> None:
        """Wait until the pool confirms that the data is on the target's storage.

        Raises:
            DataError: the pool does not confirm it.
        """
