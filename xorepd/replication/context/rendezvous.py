"""Where tasks on the same way wait for each other, but not for long and not for everyone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

JOIN_S = 10.0
"""How long the first one waits. Two logins and two inventories differ by a second or two; a target
that takes longer has trouble of its own, which is not to become that of the others."""


class Rendezvous:
    """Where some may meet once; it is over when all who are still expected have come.

    Args:
        expected: who may come.
        late: who is not waited for, because he kept others waiting in vain before. Shared by the
            rendezvous of one run, and added to.
    """

    def __init__(self, expected: Iterable[str], late: set[str], patience_s: float = JOIN_S) -> None:
        self._coming = set(expected)
        self._late, self._patience_s = late, patience_s
        self._until: float | None = None
        self._over = asyncio.Event()
        self.present: set[str] = set()
        """Who came while it lasted and has not left."""

    async def arrive(self, who: str) -> bool:
        """Wait for the others; return whether `who` came in time to meet them."""
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
        """Stop the others from waiting for one who will not come, or who goes."""
        self._coming.discard(who)
        self.present.discard(who)
        self._look()

    def _look(self) -> None:
        if self.present and not self._coming - self._late:
            self._over.set()
