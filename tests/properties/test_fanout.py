"""Branches of any speed, that stall, fail and leave: whoever stays to the end has all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.readers import LETTER, StringReader
from xorepd.data.fanout import Branch, FanOut
from xorepd.data.memory_budget import Allocation, MemoryBudget
from xorepd.data.reader import Piece, Reader
from xorepd.data.remainder import Rest
from xorepd.errors import StreamCut
from xorepd.units import MiB

DISKS = st.text("AB-", min_size=1, max_size=40)
PAUSES = st.lists(st.integers(0, 9), max_size=40)
"""How many turns of the loop a branch does nothing after each piece."""
LEAVING = st.none() | st.integers(0, 40)
"""After how many pieces a branch leaves."""


@given(
    disk=DISKS,
    step=st.sampled_from([30, 70, LETTER]),
    branches=st.lists(st.tuples(PAUSES, LEAVING), min_size=1, max_size=4),
    window=st.sampled_from([1, 150, 400]),
    memory=st.sampled_from([1, 64 * MiB]),
    patience=st.sampled_from([0.0, float("inf")]),
    fails_at=st.none() | st.integers(0, 40),
)
@settings(deadline=None)
def test_content_is_equal_whoever_is_slow_or_leaves(
    disk: str,
    step: int,
    branches: list[tuple[list[int], int | None]],
    window: int,
    memory: int,
    patience: float,
    fails_at: int | None,
) -> None:
    expected = b"".join(letter.encode() * LETTER for letter in disk.replace("-", ""))
    opened = 0

    @asynccontextmanager
    async def open_reader(allocation: Allocation) -> AsyncIterator[Reader]:
        nonlocal opened
        opened += 1
        yield StringReader(disk, step) if fails_at is None else Cut(disk, step, fails_at)

    @asynccontextmanager
    async def open_rest(shared: Reader, start: int) -> AsyncIterator[Reader]:
        nonlocal opened
        opened += 1
        yield Rest(StringReader(disk, step), start, lambda offset, data: None)

    async def take(branch: Branch, pauses: list[int], leaving: int | None) -> bytes | None:
        taken, pieces_taken, last = b"", 0, -1
        try:
            async with aclosing(branch.pieces()) as pieces:
                async for offset, data in pieces:
                    assert offset > last
                    last = offset
                    for _ in range(pauses[pieces_taken] if pieces_taken < len(pauses) else 0):
                        await asyncio.sleep(0)
                    taken += data
                    pieces_taken += 1
                    if pieces_taken == leaving:
                        return None
        finally:
            branch.part()
        return taken

    async def run() -> list[bytes | BaseException | None]:
        fan = FanOut(open_reader, MemoryBudget(memory), window=window, patience_s=patience)
        made = [fan.attach(Allocation(fan.budget)) for _ in branches]
        pump = asyncio.get_running_loop().create_task(fan.run(), name="pump")
        for branch in made:
            branch.open_rest = open_rest
        found = await asyncio.gather(
            *(take(branch, *how) for branch, how in zip(made, branches, strict=True)),
            return_exceptions=True,
        )
        pump.cancel()
        with suppress(asyncio.CancelledError):
            await pump
        assert all(branch.backlog >= 0 for branch in made)
        return found

    for outcome in asyncio.run(asyncio.wait_for(run(), 30)):
        if isinstance(outcome, bytes):
            assert outcome == expected
        elif outcome is not None:
            assert fails_at is not None
            assert isinstance(outcome, StreamCut)
    assert opened <= (1 + len(branches) if patience == 0 else 1)


class Cut(StringReader):
    """One whose stream is cut after some pieces."""

    def __init__(self, disk: str, step: int, after: int) -> None:
        super().__init__(disk, step)
        self._after = after

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        number = 0
        async with aclosing(super().pieces()) as pieces:
            async for piece in pieces:
                if number == self._after:
                    raise StreamCut("disk", self.given)
                yield piece
                number += 1
