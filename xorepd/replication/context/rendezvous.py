"""Points where the tasks of one VM wait for each other, for a short time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

JOIN_S = 10.0
"""How long the first one waits. Two logins and two inventories differ by a second or two; a target
that takes longer has a problem of its own, which must not delay the others."""


class Rendezvous:
    """A point where tasks meet once. It is over when all that are still expected have come.

    Args:
        expected: Names of the tasks that may come.
        late: Names of tasks that no task waits for, because they came late before. All rendezvous
            of one run share this set and add to it.
    """

    def __init__(self, expected: Iterable[str], late: set[str], patience_s: float = JOIN_S) -> None:
        self._coming = set(expected)
        self._late, self._patience_s = late, patience_s
        self._until: float | None = None
        self._over = asyncio.Event()
        self.present: set[str] = set()
        """Names of the tasks that came in time and have not left."""

    async def arrive(self, who: str) -> bool:
        """Wait for the others. Return whether `who` came in time."""
        self._coming.discard(who)
        if self._over.is_set():
            return False
        self.present.add(who)
        self._look()
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + self._patience_s
        try:
            async with asyncio.timeout_at(self._until):
                await self._over.wait()
        except TimeoutError:
            self._late |= self._coming
            self._over.set()
        return True

    def leave(self, who: str) -> None:
        """Stop the others from waiting for a task that will not come, or that leaves."""
        self._coming.discard(who)
        self.present.discard(who)
        self._look()

    def _look(self) -> None:
        if self.present and not self._coming - self._late:
            self._over.set()
