"""VHD streams, ours and XAPI's: cut anywhere, damaged anywhere, read by others."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import pyvhdi
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.vhd.streams import (
    BLOCK,
    SECTOR,
    STRIDE,
    TABLE_AT,
    apply,
    fill,
    head,
    parse,
    vhd_stream,
)
from xorepd.data.vhd.encoder import VhdStreamEncoder
from xorepd.data.vhd.layout import VhdError
from xorepd.extents import Extent, merge, total

DISK = "A-BC"
STREAM = vhd_stream(DISK, virtual_size=4 * BLOCK - 5 * SECTOR)
FIRST = len(head(DISK))
EDGES = [0, 512, 1536, 2048, FIRST, FIRST + 512, FIRST + STRIDE, len(STREAM) - SECTOR, len(STREAM)]
PLACES = st.one_of(
    st.sampled_from(EDGES),
    st.sampled_from(EDGES).flatmap(lambda e: st.integers(max(0, e - 3), min(len(STREAM), e + 3))),
    st.integers(0, len(STREAM)),
)
# Where a changed byte must be noticed: everything but data, and what means nothing.
STRUCTURE = st.one_of(
    st.integers(0, 1535),
    st.integers(TABLE_AT, TABLE_AT + 4 * len(DISK) - 1),
    st.tuples(st.integers(0, 2), st.integers(0, SECTOR - 1)).map(
        lambda at: FIRST + at[0] * STRIDE + at[1]
    ),
    st.integers(len(STREAM) - SECTOR, len(STREAM) - 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PLACES, max_size=12))
def test_any_split_gives_the_same_data_and_extents(cuts: list[int]) -> None:
    parser, found = parse(STREAM, cuts=cuts)

    assert list(parser.extents) == [Extent(0, BLOCK), Extent(2 * BLOCK, 2 * BLOCK - 5 * SECTOR)]
    assert found == {0: fill("A"), 2: fill("B"), 3: fill("C")[: -5 * SECTOR]}
    assert parser.received == parser.length == len(STREAM)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 9))
def test_head_and_tail_byte_by_byte_give_the_same_data(step: int) -> None:
    cuts = [*range(0, FIRST + SECTOR + 20, step), *range(len(STREAM) - 600, len(STREAM), step)]

    _, found = parse(STREAM, cuts=cuts)

    assert found[0] == fill("A")
    assert sum(map(len, found.values())) == 3 * BLOCK - 5 * SECTOR


@settings(max_examples=100, deadline=None)
@given(PLACES.filter(lambda place: place < len(STREAM)), PLACES)
def test_any_cut_is_rejected(end: int, cut: int) -> None:
    with pytest.raises(VhdError, match=f"ended after {end}"):
        parse(STREAM[:end], cuts=[min(cut, end)])


@settings(max_examples=150, deadline=None)
@given(STRUCTURE, st.integers(1, 255), PLACES)
def test_any_changed_byte_outside_the_data_is_rejected(place: int, flip: int, cut: int) -> None:
    damaged = bytearray(STREAM)
    damaged[place] ^= flip

    with pytest.raises(VhdError):
        parse(bytes(damaged), cuts=[cut])


@settings(max_examples=60, deadline=None)
@given(
    PLACES.filter(lambda place: not 1536 <= place <= 2048),
    st.one_of(st.just(1), st.just(SECTOR), st.just(STRIDE), st.integers(1, 5000)),
)
def test_any_bytes_too_many_are_rejected(place: int, size: int) -> None:
    padding = STREAM[place : place + size].ljust(size, b"\0")

    with pytest.raises(VhdError):
        parse(STREAM[:place] + padding + STREAM[place:])


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=4096), PLACES)
def test_garbage_is_rejected_with_a_vhd_error_only(garbage: bytes, place: int) -> None:
    end = min(place, len(STREAM) - 1)

    with pytest.raises(VhdError):
        parse(STREAM[:end][:2048] + garbage)


def patches(unit: int, blocks: int) -> st.SearchStrategy[list[Extent]]:
    """Return disjoint extents, multiples of `unit`, with a liking for the edges of blocks."""
    per_block, last = BLOCK // unit, blocks * BLOCK // unit
    starts = st.one_of(
        st.integers(0, last - 1),
        st.integers(0, blocks - 1).map(lambda block: block * per_block),
        st.integers(1, blocks).map(lambda block: block * per_block - 1),
    )
    counts = st.one_of(st.integers(1, 20), st.just(per_block), st.integers(1, 2 * per_block))
    return st.lists(st.tuples(starts, counts), max_size=8).map(
        lambda found: merge(
            Extent(start * unit, (min(start + count, last) - start) * unit)
            for start, count in found
        )
    )


def encoded(disk: bytes, extents: list[Extent], steps: list[int]) -> bytes:
    """Return the stream for some extents, the data given in pieces of these sizes in turn."""
    encoder = VhdStreamEncoder(len(disk), extents)
    out = list[bytes | memoryview](encoder.head())
    turn = 0
    for extent in extents:
        offset = extent.offset
        while offset < extent.end:
            end = min(extent.end, offset + steps[turn % len(steps)])
            out += encoder.encode(offset, memoryview(disk)[offset:end])
            offset, turn = end, turn + 1
    out += encoder.tail()
    stream = b"".join(out)
    assert len(stream) == encoder.length
    return stream


CONTENT = bytes(range(1, 252)) * (3 * BLOCK // 251 + 1)
STEPS = st.lists(st.sampled_from([1000, 4096, 65536, 1 << 20, 5 << 20]), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 4)), st.integers(1, BLOCK // SECTOR), STEPS)
def test_whole_blocks_survive_encoder_and_parser(
    blocks: set[int], last_sectors: int, steps: list[int]
) -> None:
    size = 4 * BLOCK + last_sectors * SECTOR
    disk = (CONTENT * 2)[:size]
    extents = merge(Extent(b * BLOCK, min(BLOCK, size - b * BLOCK)) for b in blocks)

    stream = encoded(disk, extents, steps)

    stream = _with_full_last_bitmap(stream, len(blocks))
    parser, found = parse(stream, cuts=[len(stream) // 2])
    assert list(parser.extents) == extents
    assert found == {b: disk[b * BLOCK : (b + 1) * BLOCK] for b in blocks}


@settings(max_examples=30, deadline=None)
@given(patches(SECTOR, 3), STEPS)
def test_import_of_xapi_writes_exactly_the_extents(extents: list[Extent], steps: list[int]) -> None:
    disk, target = CONTENT[: 3 * BLOCK], bytearray(b"?" * 3 * BLOCK)

    apply(encoded(disk, extents, steps), target)

    model = bytearray(b"?" * 3 * BLOCK)
    for extent in extents:
        model[extent.offset : extent.end] = disk[extent.offset : extent.end]
    assert target == model


@settings(max_examples=25, deadline=None)
@given(patches(4096, 3), STEPS)
def test_libvhdi_reads_exactly_the_extents(extents: list[Extent], steps: list[int]) -> None:
    disk = CONTENT[: 3 * BLOCK]

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "stream.vhd"
        file.write_bytes(encoded(disk, extents, steps))
        vhd = pyvhdi.file()
        vhd.open(str(file))
        found = vhd.read_buffer(vhd.get_media_size())
        vhd.close()

    model = bytearray(3 * BLOCK)
    for extent in extents:
        model[extent.offset : extent.end] = disk[extent.offset : extent.end]
    assert found == model


@given(patches(SECTOR, 40))
def test_length_is_that_of_the_blocks_that_are_touched(extents: list[Extent]) -> None:
    touched = {
        block for e in extents for block in range(e.offset // BLOCK, (e.end - 1) // BLOCK + 1)
    }

    encoder = VhdStreamEncoder(40 * BLOCK, extents)

    assert encoder.length == 2048 + 512 + len(touched) * STRIDE + 512
    assert total(extents) <= len(touched) * BLOCK


def _with_full_last_bitmap(stream: bytes, blocks: int) -> bytes:
    """Set the bits beyond the end of the disk: the parser knows only streams of XAPI."""
    if not blocks:
        return stream
    start = 2048 + 512 + (blocks - 1) * STRIDE
    return stream[:start] + b"\xff" * SECTOR + stream[start + SECTOR :]
