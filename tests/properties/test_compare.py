"""Two disks and what is found to differ, against their bytes as the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xorepd.data.compare import AHEAD, find_differences
from xorepd.data.reader import Piece
from xorepd.data.zeroes import UNIT
from xorepd.errors import StreamCut
from xorepd.extents import Extent

UNITS = st.lists(st.sampled_from("AB-"), min_size=1, max_size=7)
"""A unit of `A`, one of `B`, or one of zeroes."""


@dataclass
class DiskReader:
    """A disk made of units, in pieces of any size; some readers leave zeroes out."""

    units: str
    step: int = UNIT
    tail: int = 0
    """Bytes that the last unit lacks."""
    with_zeroes: bool = True
    cut_at: int | None = None
    given: int = 0

    @property
    def virtual_size(self) -> int:
        return len(self.units) * UNIT - self.tail

    @property
    def content(self) -> bytes:
        whole = b"".join((b"\0" if u == "-" else u.encode()) * UNIT for u in self.units)
        return whole[: self.virtual_size]

    @property
    def extents(self) -> list[Extent]:
        wanted = [i for i, u in enumerate(self.units) if self.with_zeroes or u != "-"]
        size = self.virtual_size
        return [Extent(i * UNIT, min((i + 1) * UNIT, size) - i * UNIT) for i in wanted]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        content = memoryview(self.content)
        for extent in self.extents:
            for offset in range(extent.offset, extent.end, self.step):
                if self.cut_at is not None and offset >= self.cut_at:
                    raise StreamCut("disk", offset, self.virtual_size)
                self.given += 1
                yield offset, content[offset : min(offset + self.step, extent.end)]
                await asyncio.sleep(0)


def units_that_differ(one: bytes, two: bytes) -> set[int]:
    starts = range(0, len(one), UNIT)
    size = len(starts) * UNIT  # what lies behind the end of a disk counts as zero
    one, two = one.ljust(size, b"\0"), two.ljust(size, b"\0")
    return {at // UNIT for at in starts if one[at : at + UNIT] != two[at : at + UNIT]}


READERS = st.builds(
    DiskReader,
    units=UNITS.map("".join),
    step=st.sampled_from([UNIT, 3 * 512, UNIT // 2, 10 * UNIT]),
    tail=st.sampled_from([0, 512, UNIT - 512]),
    with_zeroes=st.booleans(),
)


@given(READERS, READERS)
def test_what_is_found_is_exactly_what_differs(source: DiskReader, target: DiskReader) -> None:
    found = asyncio.run(find_differences(source, target))

    assert set(found.blocks()) == units_that_differ(source.content, target.content)
    assert found.virtual_size == source.virtual_size


@given(READERS, READERS, st.integers(0, 7 * UNIT))
def test_a_comparison_that_goes_on_looks_at_nothing_that_lies_before(
    source: DiskReader, target: DiskReader, start: int
) -> None:
    found = asyncio.run(find_differences(source, target, start=start))

    expected = units_that_differ(source.content, target.content)
    assert set(found.blocks()) == {unit for unit in expected if (unit + 1) * UNIT > start}


async def test_one_byte_is_found() -> None:
    @dataclass
    class Changed(DiskReader):
        @property
        def content(self) -> bytes:
            plain = bytearray(super().content)
            plain[UNIT + 4711] ^= 1
            return bytes(plain)

    found = await find_differences(Changed("AAA"), DiskReader("AAA"))

    assert list(found) == [Extent(UNIT, UNIT)]


async def test_what_was_compared_is_told() -> None:
    told: list[int] = []

    await find_differences(DiskReader("AB-"), DiskReader("A"), compared=told.append)

    assert sum(told) == 3 * UNIT


@pytest.mark.parametrize("side", [0, 1])
async def test_a_side_that_breaks_fails_the_comparison(side: int) -> None:
    sides = [DiskReader("AB" * 100), DiskReader("AB" * 100)]
    sides[side].cut_at = 7 * UNIT

    with pytest.raises(StreamCut):
        await find_differences(*sides)


async def test_a_slow_side_holds_the_other_back() -> None:
    class Stuck(DiskReader):
        async def pieces(self) -> AsyncGenerator[Piece, None]:
            await asyncio.Event().wait()
            yield 0, memoryview(b"")

    fast, size = DiskReader("A" * 3 * AHEAD), 3 * AHEAD
    async with asyncio.TaskGroup() as group:
        task = group.create_task(find_differences(fast, Stuck("A" * size)))
        seen = -1
        while fast.given > seen:
            seen = fast.given
            for _ in range(10):
                await asyncio.sleep(0)
        task.cancel()

    assert AHEAD <= fast.given <= AHEAD + 3 < size
