"""Whose turn it is: fair queueing of streams whose pieces differ in size. Pure.

Each stream has a mark, its progress in bytes; the stream that is furthest behind is next. So a
stream with pieces of 64 KiB has sixteen turns for each turn of one with pieces of 1 MiB.

    mark of a   ──────────────►|
    mark of b   ──────────►|                  b is next
                 |◄ slack ►|
              the most that a stream may be behind: a late one may catch up a little, and one that
              comes back from a long pause does not delay the others

That is start-time fair queueing (Goyal, Vin, Cheng, 1996), with a slack for streams that are busy
writing when their next turn comes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Stream:
    mark: float
    """Bytes, on a scale that all streams of one queue share."""


class Turns(Generic[T]):
    """Streams that queue, each with something that says what it wants."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Stream, T]] = []
        self._front = 0.0
        """The mark of the last one that had its turn."""
        self._arrivals = 0

    def join(self) -> Stream:
        """Return a new stream, neither behind nor ahead of the others."""
        return Stream(self._front)

    def queue(self, stream: Stream, wish: T, slack: float) -> None:
        """Let a stream wait for its turn.

        Args:
            slack: bytes that it may be behind the others.
        """
        self._catch_up(stream, slack)
        self._arrivals += 1
        heapq.heappush(self._queue, (stream.mark, self._arrivals, stream, wish))

    def go(self, stream: Stream, slack: float) -> None:
        """Give a stream its turn at once, if no other waits."""
        self._catch_up(stream, slack)
        self._front = max(self._front, stream.mark)

    def next(self) -> tuple[Stream, T] | None:
        """Remove and return the stream whose turn it is; None if none waits."""
        if not self._queue:
            return None
        mark, _, stream, wish = heapq.heappop(self._queue)
        self._front = max(self._front, mark)
        return stream, wish

    def _catch_up(self, stream: Stream, slack: float) -> None:
        stream.mark = max(stream.mark, self._front - slack)
