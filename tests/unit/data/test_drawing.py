from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

import pytest

from xorepd.data import fingerprint_map as drawing_module
from xorepd.data.blocks import BlockMap
from xorepd.data.fingerprint_map import MapBuilder, Mapped
from xorepd.data.fingerprints import PAGE, Hashing
from xorepd.data.reader import Piece
from xorepd.data.subset import Remaining
from xorepd.data.zeroes import UNIT
from xorepd.errors import StateError
from xorepd.extents import Extent

SIZE = PAGE + 8 * UNIT
HASHING = Hashing(seed=7)


@dataclass
class Memory:
    """A map in memory, whose disk may be full."""

    pages: dict[int, bytes] = field(default_factory=dict)
    is_change: bool = False
    drawn_to: int = 0
    is_full: bool = False

    async def read(self, first: int, count: int) -> Mapping[int, bytes]:
        return {
            page: self.pages[page] for page in range(first, first + count) if page in self.pages
        }

    async def write(self, pages: Mapping[int, bytes], drawn_to: int) -> None:
        if self.is_full:
            raise StateError("maps.db: there is no room for more; raise [daemon] maps")
        self.pages.update(pages)
        self.drawn_to = drawn_to

    async def cut(self, first: int) -> None:
        self.pages = {page: units for page, units in self.pages.items() if page < first}
        self.drawn_to = min(self.drawn_to, first * PAGE)

    async def detach(self) -> None:
        self.pages, self.is_change, self.drawn_to = {}, False, 0


class Letters:
    """A reader of a disk that is full of one letter."""

    virtual_size = SIZE
    extents = (Extent(0, SIZE),)

    def __init__(self, letter: bytes) -> None:
        self._unit = letter * UNIT

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        for offset in range(0, SIZE, 4 * UNIT):
            yield offset, memoryview(self._unit * 4)


async def given(letter: bytes, builder: MapBuilder, *, is_blank: bool = False) -> int:
    """Return how many bytes are given on."""
    size = 0
    async for _, data in Mapped(Letters(letter), builder, is_blank=is_blank).pieces():
        size += len(data)
    return size


async def base(letter: bytes) -> Memory:
    memory = Memory()
    await given(letter, MapBuilder(HASHING, SIZE, memory, None), is_blank=True)
    return memory


async def test_what_the_base_has_is_left_out() -> None:
    builder = MapBuilder(HASHING, SIZE, Memory(is_change=True), await base(b"A"), lambda: True)

    assert await given(b"A", builder) == 0
    assert builder.unchanged_bytes == builder.left_out.size == SIZE


async def test_another_seed_makes_other_fingerprints() -> None:
    builder = MapBuilder(Hashing(8), SIZE, Memory(is_change=True), await base(b"A"), lambda: True)

    assert await given(b"A", builder) == SIZE


@pytest.mark.parametrize("damage", [bytes(4096), b"", b"\0", b"\xff" * 4096, b"\0" * 5000])
async def test_a_damaged_page_leaves_nothing_out(damage: bytes) -> None:
    damaged = await base(b"A")
    damaged.pages[0] = damage
    builder = MapBuilder(HASHING, SIZE, Memory(is_change=True), damaged, lambda: True)

    assert await given(b"A", builder) == PAGE


async def test_a_unit_is_given_after_a_while_though_nothing_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing_module, "BEAT_S", 0.0)
    builder = MapBuilder(HASHING, SIZE, Memory(is_change=True), await base(b"A"), lambda: True)

    assert await given(b"A", builder) == SIZE


async def test_a_map_that_cannot_be_written_is_given_up_and_everything_arrives() -> None:
    builder = MapBuilder(HASHING, SIZE, Memory(is_full=True), None)

    assert await given(b"A", builder, is_blank=True) == SIZE
    assert builder.has_failed
    assert not builder.is_finished


async def test_what_was_to_come_again_and_did_not_is_not_known() -> None:
    draft = Memory(is_change=True)
    first = MapBuilder(HASHING, SIZE, draft, await base(b"A"))
    await given(b"B", first)
    await first.begin(UNIT, SIZE, is_blank=False)  # it broke, and the daemon dies before it goes on

    second = MapBuilder(HASHING, SIZE, draft, await base(b"A"))
    await second.begin(PAGE, SIZE, is_blank=False)
    await second.finish()

    assert draft.pages == {0: bytes(4096)}  # were it missing, it would be as in the base


async def test_a_map_with_a_gap_does_not_know_the_disk() -> None:
    whole = await base(b"A")
    builder = MapBuilder(HASHING, SIZE, Memory(), whole)
    assert await builder.knows(0, SIZE)

    del whole.pages[0]

    assert not await builder.knows(0, SIZE)
    assert await builder.knows(PAGE, SIZE)


async def test_a_comparison_finds_what_became_zeroes_and_what_is_not_known() -> None:
    there = await base(b"A")
    page = bytearray(there.pages[1])
    page[:16] = bytes(16)
    there.pages[1] = bytes(page)
    builder = MapBuilder(HASHING, SIZE, Memory(), there)

    class Half(Letters):
        async def pieces(self) -> AsyncGenerator[Piece, None]:
            yield UNIT, memoryview(b"A" * UNIT)
            yield PAGE, memoryview(b"A" * 4 * UNIT)

    async for _ in Mapped(Half(b"A"), builder, is_blank=True).pieces():
        pass

    assert list(builder.differing) == [
        Extent(0, UNIT),
        Extent(2 * UNIT, PAGE - UNIT),
        Extent(PAGE + 4 * UNIT, SIZE - PAGE - 4 * UNIT),
    ]


def test_what_remains_of_extents_is_what_was_not_left_out() -> None:
    left_out = BlockMap(8 * UNIT, UNIT)
    for unit in (0, 3, 4, 7):
        left_out.add(unit)
    extents = [Extent(0, UNIT + 512), Extent(2 * UNIT, 6 * UNIT)]

    assert list(Remaining(extents, 0, left_out)) == [
        Extent(UNIT, 512),
        Extent(2 * UNIT, UNIT),
        Extent(5 * UNIT, 2 * UNIT),
    ]
    assert list(Remaining(extents, 6 * UNIT + 512, left_out)) == [
        Extent(6 * UNIT + 512, UNIT - 512)
    ]
