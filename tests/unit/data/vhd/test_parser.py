from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator

import pytest

from tests.unit.data.vhd.streams import (
    ABSENT,
    BLOCK,
    SECTOR,
    STRIDE,
    TABLE_AT,
    fill,
    footer,
    head,
    header,
    parse,
    table,
    vhd_stream,
)
from xorepd.data.vhd.layout import VhdError
from xorepd.data.vhd.parser import VhdStreamParser
from xorepd.extents import Extent, total
from xorepd.units import GiB, KiB, MiB


def test_data_comes_out_at_its_offsets() -> None:
    _, found = parse(vhd_stream("A-B0"))

    assert found == {0: fill("A"), 2: fill("B"), 3: fill("0")}


def test_extents_are_known_when_the_head_is_complete() -> None:
    parser = VhdStreamParser(differencing=False)

    assert list(parser.feed(memoryview(head("AB-C")))) == []

    assert parser.head_complete
    assert parser.virtual_size == 4 * BLOCK
    assert list(parser.extents) == [Extent(0, 2 * BLOCK), Extent(3 * BLOCK, BLOCK)]


def test_head_is_not_complete_one_byte_before_its_end() -> None:
    parser = VhdStreamParser(differencing=False)

    list(parser.feed(memoryview(head("AB-C"))[:-1]))

    assert not parser.head_complete


def test_length_of_the_stream_is_known_with_its_head() -> None:
    stream = vhd_stream("A-B")
    parser = VhdStreamParser(differencing=False)

    list(parser.feed(memoryview(stream)[: len(head("A-B"))]))

    assert parser.length == len(stream)


def test_empty_disk_is_complete_after_its_footer() -> None:
    parser, found = parse(vhd_stream("---"))

    assert found == {}
    assert parser.is_complete
    assert list(parser.extents) == []


def test_delta_is_taken_where_a_delta_was_asked_for() -> None:
    _, found = parse(vhd_stream("-A", kind=4), differencing=True)

    assert found == {1: fill("A")}


def test_last_block_ends_with_the_disk() -> None:
    size = 2 * BLOCK + 3 * SECTOR

    parser, found = parse(vhd_stream("A-B", virtual_size=size))

    assert found[2] == b"B" * 3 * SECTOR
    assert list(parser.extents)[-1] == Extent(2 * BLOCK, 3 * SECTOR)


def test_data_is_passed_on_without_being_copied() -> None:
    stream = bytearray(vhd_stream("A"))
    parser = VhdStreamParser(differencing=False)

    ((_, data),) = parser.feed(memoryview(stream)[: len(head("A")) + SECTOR + 10])

    assert data.obj is stream


@pytest.mark.parametrize("blocks", [127, 128, 129, 300])
def test_table_of_several_sectors_is_read_to_its_end(blocks: int) -> None:
    disk = "-" * (blocks - 1) + "A"

    _, found = parse(vhd_stream(disk))

    assert found == {blocks - 1: fill("A")}


def test_table_may_follow_the_header_at_once_or_after_eight_locators() -> None:
    for table_at in (1536, 2048, 8192):
        front = footer(BLOCK) + header(1, table_at=table_at)
        front += bytes(table_at - len(front)) + table("A", table_at)

        _, found = parse(front + b"\xff" * SECTOR + fill("A") + front[:SECTOR])

        assert found == {0: fill("A")}


def test_bytes_that_mean_nothing_may_be_anything() -> None:
    stream = bytearray(vhd_stream("A-B"))
    stream[1536:2048] = b"?" * 512  # room for a locator
    stream[TABLE_AT + 12 : TABLE_AT + 512] = b"?" * 500  # padding of the table

    _, found = parse(bytes(stream))

    assert found == {0: fill("A"), 2: fill("B")}


# -- streams that are not what they claim to be --------------------------------------------------


def test_every_flipped_byte_of_the_structures_is_found_out() -> None:
    disk = "A-B"
    stream = bytearray(vhd_stream(disk))
    first = len(head(disk))
    places = [
        *range(1536),  # footer copy and header
        *range(TABLE_AT, TABLE_AT + 4 * len(disk)),
        *range(first, first + SECTOR),  # bitmaps
        *range(first + STRIDE, first + STRIDE + SECTOR),
        *range(len(stream) - SECTOR, len(stream)),  # footer
    ]

    for place in places:
        stream[place] ^= 0x10
        with pytest.raises(VhdError):
            for _ in _fed(stream):
                pass
        stream[place] ^= 0x10


def test_every_cut_of_the_head_is_found_out() -> None:
    stream = vhd_stream("A-B")

    for length in range(len(head("A-B")) + SECTOR + 1):
        parser = VhdStreamParser(differencing=False)
        list(parser.feed(memoryview(stream)[:length]))
        with pytest.raises(VhdError, match=f"ended after {length}"):
            parser.finish()


def test_stream_without_its_last_byte_is_rejected_with_the_length_it_should_have() -> None:
    stream = vhd_stream("A")

    with pytest.raises(VhdError, match=f"ended after {len(stream) - 1} of {len(stream)} bytes"):
        parse(stream[:-1])


def test_stream_of_nothing_is_rejected() -> None:
    with pytest.raises(VhdError, match="ended after 0 bytes"):
        parse(b"")


def test_response_in_the_body_is_rejected() -> None:
    with pytest.raises(VhdError, match="no VHD"):
        parse(b"HTTP/1.1 500 Internal Server Error\r\n\r\n".ljust(SECTOR))


def test_bytes_behind_the_end_are_rejected() -> None:
    with pytest.raises(VhdError, match="1 bytes or more follow"):
        parse(vhd_stream("A") + b"\0")


def test_bytes_behind_the_end_are_rejected_in_a_piece_of_their_own() -> None:
    stream = vhd_stream("A")

    with pytest.raises(VhdError, match="4 bytes or more follow"):
        parse(stream + b"HTTP", cuts=[len(stream)])


def test_padding_between_blocks_is_rejected() -> None:
    stream = vhd_stream("AB")
    second = len(head("AB")) + STRIDE

    with pytest.raises(VhdError, match="block 1 is only partly present"):
        parse(stream[:second] + bytes(SECTOR) + stream[second:])


def test_padding_before_the_first_block_is_rejected() -> None:
    stream, first = vhd_stream("A"), len(head("A"))

    with pytest.raises(VhdError, match="only partly present"):
        parse(stream[:first] + bytes(SECTOR) + stream[first:])


def test_padding_before_the_footer_is_rejected() -> None:
    stream = vhd_stream("A")

    with pytest.raises(VhdError, match="footer at the end differs"):
        parse(stream[:-SECTOR] + bytes(SECTOR) + stream[-SECTOR:])


def test_doubled_block_is_rejected() -> None:
    stream, first = vhd_stream("A"), len(head("A"))

    with pytest.raises(VhdError, match="footer at the end differs"):
        parse(stream[: first + STRIDE] + stream[first:])


def test_missing_block_is_rejected() -> None:
    stream, first = vhd_stream("AB"), len(head("AB"))

    with pytest.raises(VhdError):
        parse(stream[: first + STRIDE] + stream[-SECTOR:])


def test_footer_of_another_stream_is_rejected() -> None:
    with pytest.raises(VhdError, match="footer at the end differs"):
        parse(vhd_stream("A")[:-SECTOR] + footer(3 * BLOCK))


def test_two_blocks_at_one_place_are_rejected() -> None:
    stream = bytearray(vhd_stream("AB"))
    stream[TABLE_AT + 4 : TABLE_AT + 8] = stream[TABLE_AT : TABLE_AT + 4]

    with pytest.raises(VhdError, match="block 1 is said to be at sector 5, where 4102 must be"):
        parse(bytes(stream))


def test_blocks_out_of_order_are_rejected() -> None:
    stream = bytearray(vhd_stream("AB"))
    entries = struct.unpack_from(">2I", stream, TABLE_AT)
    struct.pack_into(">2I", stream, TABLE_AT, *reversed(entries))

    with pytest.raises(VhdError, match="block 0 is said to be at sector 4102"):
        parse(bytes(stream))


@pytest.mark.parametrize("sector", [0, 4, 6, 5 + STRIDE // SECTOR, ABSENT - 1])
def test_block_at_any_other_place_is_rejected(sector: int) -> None:
    stream = bytearray(vhd_stream("A"))
    struct.pack_into(">I", stream, TABLE_AT, sector)

    with pytest.raises(VhdError, match=f"at sector {sector}"):
        parse(bytes(stream))


def test_block_that_the_table_forgot_is_rejected() -> None:
    stream = bytearray(vhd_stream("A"))
    struct.pack_into(">I", stream, TABLE_AT, ABSENT)

    with pytest.raises(VhdError, match="footer at the end differs"):
        parse(bytes(stream))


def test_delta_is_rejected_where_a_whole_disk_was_asked_for() -> None:
    with pytest.raises(VhdError, match="whole disk was asked for and a delta came"):
        parse(vhd_stream("A", kind=4))


def test_whole_disk_is_rejected_where_a_delta_was_asked_for() -> None:
    with pytest.raises(VhdError, match="delta was asked for and a whole disk came"):
        parse(vhd_stream("A"), differencing=True)


@pytest.mark.parametrize(
    "bitmap", [bytes(SECTOR), b"\xff" * 511 + b"\xfe", b"\x7f" + b"\xff" * 511]
)
def test_partly_present_block_is_rejected(bitmap: bytes) -> None:
    stream, first = vhd_stream("-A"), len(head("-A"))

    with pytest.raises(VhdError, match="block 1 is only partly present"):
        parse(stream[:first] + bitmap + stream[first + SECTOR :])


@pytest.mark.parametrize("entries", [0, 1, 3, 2**20, 2**32 - 1])
def test_table_of_another_size_than_the_disk_needs_is_rejected(entries: int) -> None:
    with pytest.raises(VhdError, match="a disk of 4194304 bytes has 2 blocks"):
        parse(footer(2 * BLOCK) + header(entries))


@pytest.mark.parametrize("size", [0, 1, 513, 2040 * GiB + 512, 2**63, 2**64 - 512])
def test_impossible_size_is_rejected(size: int) -> None:
    with pytest.raises(VhdError, match="not possible"):
        parse(footer(size))


# -- bounds --------------------------------------------------------------------------------------


def test_largest_disk_takes_less_than_one_mib_of_memory() -> None:
    blocks = 2040 * GiB // BLOCK
    front = footer(2040 * GiB) + header(blocks) + bytes(SECTOR)
    sector = (TABLE_AT + blocks * 4) // SECTOR
    part = 4096  # entries, of which half are present
    tracemalloc.start()
    try:
        parser = VhdStreamParser(differencing=False)
        list(parser.feed(memoryview(front)))
        for _ in range(0, blocks, part):
            following = sector + part // 2 * (STRIDE // SECTOR)
            present = range(sector, following, STRIDE // SECTOR)
            piece = struct.pack(f">{part // 2}I", *present).ljust(4 * part, b"\xff")
            sector = following
            list(parser.feed(memoryview(piece)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert parser.head_complete
    assert total(parser.extents) == 1020 * GiB
    assert peak < MiB


def test_boundless_claims_allocate_nothing() -> None:
    claims = [footer(2**64 - 512), footer(2040 * GiB) + header(2**32 - 1)]
    tracemalloc.start()
    try:
        for claim in claims:
            with pytest.raises(VhdError):
                parse(claim)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 64 * KiB


def test_data_of_a_block_is_not_held_back() -> None:
    stream = vhd_stream("A")
    parser = VhdStreamParser(differencing=False)
    list(parser.feed(memoryview(stream)[: len(head("A")) + SECTOR]))

    ((offset, data),) = parser.feed(memoryview(stream)[len(head("A")) + SECTOR :][:1])

    assert (offset, bytes(data)) == (0, b"A")


def _fed(stream: bytearray) -> Iterator[tuple[int, memoryview]]:
    parser = VhdStreamParser(differencing=False)
    yield from parser.feed(memoryview(stream))
    parser.finish()
