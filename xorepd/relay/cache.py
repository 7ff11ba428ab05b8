"""Cache of the newest units of a connection, for references to them, within a budget."""

from __future__ import annotations

from collections import OrderedDict


class MemoryBudget:
    """The memory that all caches of a relay share."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> bool:
        """Reserve some bytes, if they are available."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give(self, size: int) -> None:
        self._left += size


class BlockCache:
    """Units of one connection by hash; never those of another client."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._units: OrderedDict[bytes, bytes] = OrderedDict()

    def put(self, found: bytes, unit: memoryview) -> None:
        """Keep a unit; if the cache is full, replace the least recently used ones."""
        if found in self._units:
            self._units.move_to_end(found)
            return
        while not self._budget.take(len(unit)):
            if not self._units:
                return
            self._drop()
        self._units[found] = bytes(unit)

    def get(self, found: bytes, length: int) -> bytes | None:
        """Return the unit with this hash and length, if it is cached."""
        unit = self._units.get(found)
        if unit is None or len(unit) != length:
            return None
        self._units.move_to_end(found)
        return unit

    def clear(self) -> None:
        while self._units:
            self._drop()

    def _drop(self) -> None:
        _, unit = self._units.popitem(last=False)
        self._budget.give(len(unit))
