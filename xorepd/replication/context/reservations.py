"""Free space on SRs, shared by the transfers that run at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from xorepd.errors import Refused
from xorepd.units import format_size
from xorepd.xapi.records import Sr


class Reservations:
    """Bytes that current transfers have reserved, by UUID of the SR."""

    def __init__(self) -> None:
        self._promised: Counter[str] = Counter()

    def check(self, sr: Sr, pool: str, needed: int, reserve: int, purpose: str) -> None:
        """Make sure that an SR has room for `needed` bytes and keeps `reserve` free.

        Args:
            purpose: what the room is for, to complete "… needs 3 GiB where SR …".

        Raises:
            Refused: it has not. An SR of unknown size counts as large enough.
        """
        free = sr.free
        if free is None:
            return
        available = free - self._promised[sr.uuid]
        if available >= needed + reserve:
            return
        needs = f" needs {format_size(needed)}" if needed else " needs room"
        raise Refused(
            f"pool {pool}: {purpose}{needs} where SR {sr.name_label} has "
            f"{format_size(max(0, available))} free, of which {format_size(reserve)} must stay "
            "free; make room there, or choose another SR or a smaller reserve"
        )

    @contextmanager
    def reserve(self, sr: Sr, pool: str, needed: int, reserve: int, purpose: str) -> Iterator[None]:
        """Check, and hold the room while a transfer fills it."""
        self.check(sr, pool, needed, reserve, purpose)
        self._promised[sr.uuid] += needed
        try:
            yield
        finally:
            self._promised[sr.uuid] -= needed
