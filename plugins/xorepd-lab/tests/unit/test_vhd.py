from uuid import UUID, uuid4

import pytest

from xorepd_lab.disks.vhd import (
    BLOCK,
    DIFFERENCING,
    DYNAMIC,
    Footer,
    Header,
    VhdError,
    blocks_of,
    geometry,
    relative_locators,
    table_size,
)


def test_a_footer_reads_as_it_was_written() -> None:
    footer = Footer(5 * BLOCK, DIFFERENCING, uuid4(), 12, hidden=True, original_size=2 * BLOCK)

    assert Footer.unpack(footer.pack()) == footer
    assert len(footer.pack()) == 512


def test_a_footer_has_its_fields_where_the_specification_has_them() -> None:
    raw = Footer(4 << 20, DYNAMIC, UUID(int=7), 1, creator=b"caml", creator_version=1).pack()

    assert raw[:8] == b"conectix"
    assert raw[8:24] == bytes.fromhex("00000002 00010000 0000000000000200")
    assert raw[24:40] == bytes.fromhex("00000001") + b"caml" + bytes.fromhex("00000001 00000000")
    assert raw[40:56] == (4 << 20).to_bytes(8, "big") * 2
    assert raw[56:60] == bytes.fromhex("0078 04 11")
    assert raw[60:64] == bytes.fromhex("00000003")
    assert raw[68:86] == UUID(int=7).bytes + bytes(2)


def test_a_header_reads_as_it_was_written() -> None:
    locators = tuple(locator for locator, _ in relative_locators("p.vhd"))
    header = Header(3072, 9, BLOCK, uuid4(), 77, "p.vhd", locators)

    assert Header.unpack(header.pack()) == header
    assert len(header.pack()) == 1024


@pytest.mark.parametrize("at", [0, 10, 50, 63, 64, 511])
def test_a_damaged_footer_is_refused(at: int) -> None:
    raw = bytearray(Footer(BLOCK, DYNAMIC, uuid4()).pack())
    raw[at] ^= 1

    with pytest.raises(VhdError):
        Footer.unpack(bytes(raw))


@pytest.mark.parametrize("at", [0, 16, 36, 40, 1023])
def test_a_damaged_header_is_refused(at: int) -> None:
    raw = bytearray(Header(2048, 1).pack())
    raw[at] ^= 1

    with pytest.raises(VhdError):
        Header.unpack(bytes(raw))


@pytest.mark.parametrize("length", [0, 511, 513])
def test_anything_but_a_sector_is_no_footer(length: int) -> None:
    with pytest.raises(VhdError, match="cookie"):
        Footer.unpack(b"conectix".ljust(length, b"\0")[:length])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2 << 20, (60, 4, 17)),
        (40 << 20, (963, 5, 17)),
        (512 << 20, (1040, 16, 63)),
        (8 << 30, (16644, 16, 63)),
        (127 << 30, (65278, 16, 255)),
        (2040 << 30, (65535, 16, 255)),
    ],
)
def test_geometry_follows_the_specification(size: int, expected: tuple[int, int, int]) -> None:
    assert geometry(size) == expected


def test_the_geometry_never_says_more_than_the_size() -> None:
    for size in range(2 << 20, 300 << 30, 977 * (2 << 20)):
        cylinders, heads, sectors = geometry(size)
        assert size - 16 * 255 * 512 < cylinders * heads * sectors * 512 <= size or (
            size > 65535 * 16 * 255 * 512
        )


def test_sizes_round_up() -> None:
    assert [blocks_of(each) for each in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]
    assert [table_size(each) for each in (0, 1, 128, 129)] == [0, 512, 512, 1024]
