"""From the pieces of a reader to what is sent: runs of data, and zeroes. Pure.

    pieces     ├───────┤├──────────┤├──┤        ├────────┤     any size
    spans      ├──────────── 1 MiB ────┤        ├────────┤     neighbours joined, cut at every MiB
    runs       ├─data──┤├─zeroes─┤├data┤        ├─data───┤     by units of 64 KiB

Whole units of data are offered by their hashes; what a run has besides at either end becomes a run
of its own, and is sent without asking.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from xorepd.plugin import UNIT, MiB, Piece, without_zeroes

SPAN = MiB
"""The largest block on the wire, and so the most that is compressed together."""

HashOf = Callable[[memoryview], bytes]


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring bytes of the disk that go the same way."""

    offset: int
    length: int
    data: memoryview | None
    """None: zeroes."""
    hashes: tuple[bytes, ...] = ()
    """Of the units in it, where it is to be offered: it is made of whole ones then."""

    @property
    def end(self) -> int:
        return self.offset + self.length


class Spans:
    """Joins pieces, and copies them: a reader overwrites each when it is asked for the next."""

    def __init__(self) -> None:
        self._offset = 0
        self._filled = bytearray()

    def add(self, piece: Piece) -> Iterator[Piece]:
        """Take the next piece; yield the spans that it completes."""
        offset, data = piece
        if offset != self._offset + len(self._filled):
            yield from self.rest()
        while data:
            if not self._filled:
                self._offset = offset
            part = data[: SPAN - offset % SPAN]
            self._filled += part
            offset, data = offset + len(part), data[len(part) :]
            if offset % SPAN == 0:
                yield from self.rest()

    def rest(self) -> Iterator[Piece]:
        """Yield what has no end yet."""
        if self._filled:
            yield self._offset, memoryview(self._filled)
            self._filled = bytearray()


def cut(offset: int, data: memoryview, hash_of: HashOf | None) -> list[Run]:
    """Return a span as runs, in order.

    Args:
        hash_of: for the units that are to be offered; None offers none.
    """
    runs: list[Run] = []
    position = offset
    for start, part in without_zeroes(offset, data):
        if position < start:
            runs.append(Run(position, start - position, None))
        runs += _of_data(start, part, hash_of)
        position = start + len(part)
    end = offset + len(data)
    if position < end:
        runs.append(Run(position, end - position, None))
    return runs


def _of_data(offset: int, data: memoryview, hash_of: HashOf | None) -> Iterator[Run]:
    head = min(-offset % UNIT, len(data))
    tail = len(data) - (len(data) - head) % UNIT
    if hash_of is None or head == tail:
        yield Run(offset, len(data), data)
        return
    if head:
        yield Run(offset, head, data[:head])
    hashes = tuple(hash_of(data[at : at + UNIT]) for at in range(head, tail, UNIT))
    yield Run(offset + head, tail - head, data[head:tail], hashes)
    if tail < len(data):
        yield Run(offset + tail, len(data) - tail, data[tail:])


def wanted_parts(run: Run, wanted: Collection[int]) -> Iterator[Piece]:
    """Yield what the relay wants of an offered run, neighbours joined.

    Args:
        wanted: indexes of its units.
    """
    assert run.data is not None, "zeroes are not offered"
    start = end = -1
    for index in sorted(wanted):
        if index != end:
            if end > start:
                yield run.offset + start * UNIT, run.data[start * UNIT : end * UNIT]
            start = index
        end = index + 1
    if end > start:
        yield run.offset + start * UNIT, run.data[start * UNIT : end * UNIT]
