"""A reader whose disk is a string: each letter is `LETTER` bytes of it, `-` is not read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from xorepd.data.reader import Piece
from xorepd.extents import Extent, merge

LETTER = 100


def extents_of(disk: str) -> list[Extent]:
    return merge(Extent(i * LETTER, LETTER) for i, letter in enumerate(disk) if letter != "-")


class StringReader:
    """Gives a string's data in pieces that end at multiples of `step`."""

    def __init__(self, disk: str, step: int = LETTER) -> None:
        self._data = "".join(letter * LETTER for letter in disk).encode()
        self._step = step
        self.virtual_size = len(self._data)
        self.extents: Iterable[Extent] = extents_of(disk)
        self.given = 0
        self.is_closed = False

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        try:
            for extent in self.extents:
                for offset in range(extent.offset, extent.end, self._step):
                    end = min(offset + self._step, extent.end)
                    self.given += end - offset
                    yield offset, memoryview(self._data)[offset:end]
        finally:
            self.is_closed = True
