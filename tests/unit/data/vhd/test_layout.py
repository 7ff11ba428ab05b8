from __future__ import annotations

import pytest

from tests.unit.data.vhd.streams import BLOCK, checked, footer, header
from xorepd.data.vhd.layout import (
    DIFFERENCING,
    DYNAMIC,
    MAX_VIRTUAL_SIZE,
    Footer,
    VhdError,
    block_count,
    geometry,
    make_footer,
    make_header,
    parse_footer,
    parse_header,
    table_size,
)
from xorepd.units import GiB, MiB, TiB


def test_last_block_may_be_partly_beyond_the_disk() -> None:
    assert block_count(BLOCK) == 1
    assert block_count(BLOCK + 512) == 2


def test_table_fills_whole_sectors() -> None:
    assert table_size(1) == 512
    assert table_size(128) == 512
    assert table_size(129) == 1024


@pytest.mark.parametrize("kind", [DYNAMIC, DIFFERENCING])
def test_footer_of_xapi_is_understood(kind: int) -> None:
    assert parse_footer(footer(5 * BLOCK, kind=kind)) == Footer(
        5 * BLOCK, kind, b"0123456789abcdef"
    )


def test_our_footer_is_valid_and_has_a_new_identity_each_time() -> None:
    one, other = parse_footer(make_footer(GiB)), parse_footer(make_footer(GiB))

    assert (one.virtual_size, one.disk_type) == (GiB, DYNAMIC)
    assert one.unique_id != other.unique_id


def test_our_header_fits_our_footer() -> None:
    found = parse_header(make_header(5 * BLOCK + 512), parse_footer(make_footer(5 * BLOCK + 512)))

    assert (found.table_offset, found.blocks) == (2048, 6)


@pytest.mark.parametrize("size", [0, 511, 513])
def test_footer_of_another_length_is_rejected(size: int) -> None:
    with pytest.raises(VhdError, match="has 512 bytes"):
        parse_footer(bytes(size))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (footer(BLOCK, cookie=b"HTTP/1.1"), "no VHD"),
        (footer(BLOCK, version=0x20000), "version 0x20000"),
        (footer(BLOCK, kind=2), "disk type 2"),
        (footer(BLOCK, data_offset=1024), "at 1024"),
        (footer(0), "size of 0"),
        (footer(BLOCK + 1), f"size of {BLOCK + 1}"),
        (footer(MAX_VIRTUAL_SIZE + 512), "not possible"),
        (footer(2**64 - 512), "not possible"),
    ],
)
def test_footer_that_xapi_never_sends_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(VhdError, match=reason):
        parse_footer(data)


def test_largest_disk_of_xapi_is_accepted() -> None:
    assert parse_footer(footer(2040 * GiB)).virtual_size == 2040 * GiB


@pytest.mark.parametrize("size", [0, 1023, 1025])
def test_header_of_another_length_is_rejected(size: int) -> None:
    with pytest.raises(VhdError, match="has 1024 bytes"):
        parse_header(bytes(size), parse_footer(footer(BLOCK)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(3, cookie=b"conectix"), "begins with"),
        (header(3, version=0x10001), "version 0x10001"),
        (header(3, block_size=512 * 1024), "block size of 524288"),
        (header(3, block_size=0), "block size of 0"),
        (header(2), "has 2 entries"),
        (header(4), "has 4 entries"),
        (header(2**32 - 1), "has 4294967295 entries"),
        (header(3, table_at=1024), "cannot be at 1024"),
        (header(3, table_at=2047), "cannot be at 2047"),
        (header(3, table_at=2**40), "cannot be at"),
    ],
)
def test_header_that_does_not_fit_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(VhdError, match=reason):
        parse_header(data, parse_footer(footer(3 * BLOCK)))


def test_checksum_is_the_one_of_the_specification() -> None:
    made = make_footer(7 * BLOCK)

    assert checked(made, 64) == made


@pytest.mark.parametrize(
    ("size", "expected"),
    [  # from the table of the specification's appendix, computed by hand
        (2 * MiB, (60, 4, 17)),
        (100 * MiB, (1003, 12, 17)),
        (GiB, (2080, 16, 63)),
        (2 * TiB, (65535, 16, 255)),
    ],
)
def test_geometry_is_the_one_of_the_specification(
    size: int, expected: tuple[int, int, int]
) -> None:
    assert geometry(size) == expected


@pytest.mark.parametrize("size", [512, 2 * MiB, 100 * MiB, GiB, 127 * GiB, 2040 * GiB])
def test_geometry_never_claims_more_than_the_disk_has(size: int) -> None:
    cylinders, heads, sectors = geometry(size)

    assert cylinders * heads * sectors * 512 <= size
    assert cylinders < 65536
