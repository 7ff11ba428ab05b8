"""The parts of what comes that lie inside some extents, against a disk of bytes as the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.readers import LETTER, StringReader
from xorepd.data.blocks import BlockMap
from xorepd.data.reader import Piece
from xorepd.data.remainder import Rest
from xorepd.data.subset import Filled, Narrowed, Sieve
from xorepd.extents import Extent, merge

SIZE = 60
DISK = bytes(range(1, SIZE + 1))


@st.composite
def extents(draw: st.DrawFn) -> list[Extent]:
    """Return sorted, disjoint extents of the disk; neighbours may touch."""
    cuts = sorted(draw(st.sets(st.integers(0, SIZE), max_size=12)))
    spans = [Extent(a, b - a) for a, b in itertools.pairwise(cuts)]
    return [span for span in spans if draw(st.booleans())]


@st.composite
def pieces_of(draw: st.DrawFn, given: list[Extent]) -> list[Piece]:
    """Cut the data of some extents into pieces in any way."""
    pieces = []
    for extent in given:
        cuts = sorted({extent.offset, extent.end, *draw(inner(extent))})
        pieces += [(a, memoryview(DISK)[a:b]) for a, b in itertools.pairwise(cuts)]
    return pieces


def inner(extent: Extent) -> st.SearchStrategy[set[int]]:
    return st.sets(st.integers(extent.offset, extent.end), max_size=4)


def bytes_in(those: Iterable[Extent]) -> set[int]:
    return {offset for each in those for offset in range(each.offset, each.end)}


@given(st.data())
def test_a_sieve_gives_what_lies_in_both_and_nothing_twice(data: st.DataObject) -> None:
    within, given = data.draw(extents()), data.draw(extents())
    sieve, seen = Sieve(within), []

    for piece in data.draw(pieces_of(given)):
        seen += [(o, bytes(part)) for o, part in sieve.parts(*piece)]

    assert all(part for _, part in seen)
    assert all(part == DISK[offset : offset + len(part)] for offset, part in seen)
    got = [offset + i for offset, part in seen for i in range(len(part))]
    assert got == sorted(bytes_in(within) & bytes_in(given))


@given(st.data())
def test_a_sieve_is_done_when_the_last_of_its_extents_has_passed(data: st.DataObject) -> None:
    within, given = data.draw(extents()), data.draw(extents())
    sieve, reached = Sieve(within), 0

    for offset, part in data.draw(pieces_of(given)):
        list(sieve.parts(offset, part))
        reached = offset + len(part)

        assert sieve.is_done == all(extent.end <= reached for extent in within)


@pytest.fixture
def letters() -> StringReader:
    return StringReader("ABCDEFGH", step=70)


async def test_a_narrowed_reader_gives_the_blocks_that_are_wanted(letters: StringReader) -> None:
    wanted = BlockMap(letters.virtual_size, LETTER)
    for block in (1, 2, 5):
        wanted.add(block)

    got = bytearray(letters.virtual_size)
    seen = []
    narrowed = Narrowed(letters, wanted)
    async for offset, data in narrowed.pieces():
        got[offset : offset + len(data)] = data
        seen.append(Extent(offset, len(data)))

    assert merge(seen) == list(narrowed.extents) == list(wanted)
    assert bytes(got).replace(b"\0", b"") == b"B" * LETTER + b"C" * LETTER + b"F" * LETTER
    assert letters.given == letters.virtual_size, "the rest is read all the same: it proves the end"


async def test_a_narrowed_reader_that_is_left_leaves_what_it_reads(letters: StringReader) -> None:
    wanted = BlockMap(letters.virtual_size, LETTER)
    wanted.add(0)

    async with aclosing(Narrowed(letters, wanted).pieces()) as pieces:
        async for _ in pieces:
            break

    assert letters.is_closed


async def content_of(reader: Filled | Rest, extents: Iterable[Extent]) -> bytes:
    """Return the bytes of some extents, which have to come whole and in order."""
    wanted = iter([offset for each in extents for offset in range(each.offset, each.end)])
    found = bytearray()
    async with aclosing(reader.pieces()) as pieces:
        async for offset, data in pieces:
            assert [next(wanted) for _ in data] == list(range(offset, offset + len(data)))
            found += data
    assert next(wanted, None) is None
    return bytes(found)


@given(st.text("AB-", min_size=1, max_size=8), st.data(), st.sampled_from([1, 33, LETTER, 250]))
async def test_what_a_reader_leaves_out_is_filled_with_zeroes(
    disk: str, data: st.DataObject, step: int
) -> None:
    letters = data.draw(st.sets(st.integers(0, len(disk) - 1)))
    within = [Extent(letter * LETTER, LETTER) for letter in sorted(letters)]

    found = await content_of(Filled(StringReader(disk, step), within), within)

    kept = "".join(disk[letter] for letter in sorted(letters)).replace("-", "\0")
    assert found == "".join(letter * LETTER for letter in kept).encode()


@given(st.text("AB-", min_size=1, max_size=8), st.integers(0, 8 * LETTER), st.sampled_from([1, 33]))
async def test_a_rest_begins_at_its_offset_and_what_lies_before_is_seen(
    disk: str, start: int, step: int
) -> None:
    whole = StringReader(disk, step)
    seen: list[tuple[int, bytes]] = []
    rest = Rest(StringReader(disk, step), start, lambda at, data: seen.append((at, bytes(data))))

    found = await content_of(rest, rest.extents)

    expected = [(at, bytes(data)) async for at, data in whole.pieces()]
    flat = [(at + i, byte) for at, data in expected for i, byte in enumerate(data)]
    assert found == bytes(byte for at, byte in flat if at >= start)
    told = [(at + i, byte) for at, data in seen for i, byte in enumerate(data)]
    assert told == [(at, byte) for at, byte in flat if at < start]
