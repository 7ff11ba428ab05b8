"""Maps of contents against the contents themselves, whatever is written, cut and lost."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from xorepd.data.fingerprint_map import MapBuilder, Mapped
from xorepd.data.fingerprints import PAGE, Hashing
from xorepd.data.reader import Piece
from xorepd.data.zeroes import UNIT
from xorepd.errors import StreamCut
from xorepd.extents import Extent, merge
from xorepd.state.maps import Draft, Map, Maps, open_maps

SECTOR = 512
SIZE = 2 * PAGE + 5 * UNIT + 3 * SECTOR
COUNT = -(-SIZE // UNIT)
STREAM = "pool/vm/sr"
LIMIT = 1 << 30

Disk = dict[int, int]
"""Unit → the byte that it is full of; what is not in it is zeroes."""

INTERESTING = [0, 1, 2, 7, 255, 256, 257, 300, 511, 512, 513, COUNT - 2, COUNT - 1]
UNITS = st.sampled_from(INTERESTING)
WRITES = st.dictionaries(UNITS, st.integers(0, 3), max_size=8)
"""Unit → what it becomes; 0 is zeroes. Often that is what it was."""


def end_of(unit: int) -> int:
    return min((unit + 1) * UNIT, SIZE)


@dataclass
class Source:
    """A disk, or some units of it, as a reader; it may break off."""

    disk: Disk
    units: Iterable[int]
    step: int = 1 << 20
    breaks_at: int = SIZE + 1
    start: int = 0
    virtual_size: int = SIZE
    extents: list[Extent] = field(init=False)

    def __post_init__(self) -> None:
        whole = merge(Extent(unit * UNIT, end_of(unit) - unit * UNIT) for unit in self.units)
        self.extents = [
            Extent(max(e.offset, self.start), e.end - max(e.offset, self.start))
            for e in whole
            if e.end > self.start
        ]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        for extent in self.extents:
            at = extent.offset
            while at < extent.end:
                if at >= self.breaks_at:
                    raise StreamCut("disk", at, SIZE)
                end = min(extent.end, (at // self.step + 1) * self.step)
                parts = []
                while at < end:
                    part = min(end, end_of(at // UNIT)) - at
                    parts.append(bytes([self.disk.get(at // UNIT, 0)]) * part)
                    at += part
                data = b"".join(parts)
                yield end - len(data), memoryview(data)


def page_entries(hashing: Hashing, disk: Disk) -> list[bytes]:
    """Return the fingerprint of each unit of a disk."""
    return [
        hashing.of(memoryview(bytes([disk.get(unit, 0)]) * (end_of(unit) - unit * UNIT)))
        if disk.get(unit)
        else hashing.of_zeroes
        for unit in range(COUNT)
    ]


async def entries_of(hashing: Hashing, kept: Map) -> list[bytes]:
    """Return the fingerprints that a map has: empty ones where nothing is known."""
    pages = await kept.read(0, -(-SIZE // PAGE))
    found = []
    for unit in range(COUNT):
        page = pages.get(unit // 256, b"?")
        page = hashing.page_of_zeroes if page == b"" else page
        entry = page[unit % 256 * 16 : (unit % 256 + 1) * 16] if len(page) == 4096 else b""
        found.append(entry if any(entry) else b"")
    return found


async def carry(source: Source, builder: MapBuilder, there: Disk, *, is_blank: bool) -> None:
    """Write to a target what is given on."""
    drawn = Mapped(source, builder, start=source.start, is_blank=is_blank)
    async for offset, data in drawn.pieces():
        for at in range(offset, offset + len(data), SECTOR):
            there[at // UNIT] = data[at - offset]


def same(one: Disk, other: Disk) -> bool:
    return all(one.get(unit, 0) == other.get(unit, 0) for unit in range(COUNT))


@settings(max_examples=30, deadline=None)
@given(
    first=WRITES,
    deltas=st.lists(
        st.tuples(WRITES, st.sets(UNITS), st.sampled_from([0, 7 * SECTOR, PAGE, SIZE])),
        min_size=1,
        max_size=3,
    ),
    step=st.sampled_from([SECTOR * 33, UNIT, 1 << 20]),
    loses=st.booleans(),
    killed=st.booleans(),
)
def test_a_map_after_deltas_is_that_of_the_content_and_nothing_that_differs_is_left_out(
    first: Disk,
    deltas: list[tuple[Disk, set[int], int]],
    step: int,
    loses: bool,
    killed: bool,
) -> None:
    cuts = {cut // UNIT for _, _, cut in deltas if cut % UNIT}  # of such units only parts are seen

    async def work(directory: str) -> None:
        async with open_maps(Path(directory) / "maps.db", LIMIT, lambda: datetime.now(UTC)) as maps:
            assert maps is not None
            hashing = Hashing(maps.seed)
            disk, there = dict(first), dict[int, int]()
            draft = await maps.draw(STREAM, "0", None)
            source = Source(disk, [unit for unit in first if first[unit]], step)
            await carry(source, MapBuilder(hashing, SIZE, draft, None), there, is_blank=True)
            await draft.complete()
            for number, (writes, more, cut) in enumerate(deltas, start=1):
                if loses:
                    await maps.retain(STREAM, [])
                disk |= writes
                await one_delta(
                    maps, hashing, disk, there, number, {*writes, *more}, cut, step, killed
                )
            base = await maps.find(STREAM, str(len(deltas)))
            assert base is not None
            entries = zip(await entries_of(hashing, base), page_entries(hashing, disk), strict=True)
            for unit, (found, entry) in enumerate(entries):
                may_be_unknown = loses or killed or step % UNIT or unit in cuts
                assert found == entry or (found == b"" and may_be_unknown)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(work(directory))


async def one_delta(
    maps: Maps,
    hashing: Hashing,
    disk: Disk,
    there: Disk,
    number: int,
    announced: set[int],
    cut: int,
    step: int,
    killed: bool,
) -> None:
    """Send a delta, which breaks off at first and goes on in another process."""
    base = await maps.find(STREAM, str(number - 1))
    draft: Draft = await maps.draw(STREAM, str(number), base)
    builder = MapBuilder(hashing, SIZE, draft, base, lambda: True)
    try:
        await carry(Source(disk, announced, step, breaks_at=cut), builder, there, is_blank=False)
    except StreamCut:
        if not killed:
            await builder.flush()
        base = await maps.find(STREAM, str(number - 1))
        draft = await maps.draw(STREAM, str(number), base, goes_on=True)
        builder = MapBuilder(hashing, SIZE, draft, base, lambda: True)
        start = cut if killed else min(cut, draft.drawn_to)
        await carry(Source(disk, announced, step, start=start), builder, there, is_blank=False)
    assert not builder.has_failed
    assert same(disk, there)
    await draft.complete()
