from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
import pyvhdi

from tests.unit.data.vhd.streams import BLOCK, SECTOR, STRIDE, apply, content, fill, head, parse
from xorepd.data.blocks import BlockMap
from xorepd.data.vhd.encoder import VhdStreamEncoder
from xorepd.data.vhd.layout import VhdError
from xorepd.extents import Extent
from xorepd.units import GiB, KiB, MiB


def encode(disk: bytes, extents: Iterable[Extent], *, step: int = BLOCK) -> bytes:
    """Return the stream that carries some extents of a disk, given in pieces of `step` bytes."""
    encoder = VhdStreamEncoder(len(disk), extents)
    out = bytearray().join(encoder.head())
    for extent in extents:
        for offset in range(extent.offset, extent.end, step):
            piece = memoryview(disk)[offset : min(offset + step, extent.end)]
            for part in encoder.encode(offset, piece):
                out += part
    for part in encoder.tail():
        out += part
    assert len(out) == encoder.length
    return bytes(out)


def by_libvhdi(stream: bytes, directory: Path) -> bytes:
    """Return the disk that libvhdi reads in a stream, saved as a file."""
    file = directory / "stream.vhd"
    file.write_bytes(stream)
    vhd = pyvhdi.file()
    vhd.open(str(file))
    try:
        return bytes(vhd.read_buffer(vhd.get_media_size()))
    finally:
        vhd.close()


def test_whole_blocks_come_back_from_the_parser() -> None:
    extents = [Extent(0, BLOCK), Extent(2 * BLOCK, 2 * BLOCK)]

    parser, found = parse(encode(content("A-B0"), extents))

    assert found == {0: fill("A"), 2: fill("B"), 3: fill("0")}
    assert list(parser.extents) == extents


def test_head_is_laid_out_as_xapi_lays_it_out() -> None:
    encoder = VhdStreamEncoder(4 * BLOCK, [Extent(0, BLOCK), Extent(3 * BLOCK, BLOCK)])

    found = b"".join(encoder.head())

    assert found[1536:] == head("A--B")[1536:]


def test_disk_without_extents_is_head_and_footer() -> None:
    stream = encode(content("--"), [])

    assert len(stream) == len(head("--")) + SECTOR
    assert parse(stream)[1] == {}


def test_libvhdi_reads_extents_that_are_smaller_than_a_block(tmp_path: Path) -> None:
    disk = content("ABCD")
    extents = [
        Extent(4 * KiB, 64 * KiB),
        Extent(BLOCK - 4 * KiB, 8 * KiB),  # over the edge of a block
        Extent(3 * BLOCK + 64 * KiB, BLOCK - 64 * KiB),
    ]
    model = bytearray(len(disk))
    for extent in extents:
        model[extent.offset : extent.end] = disk[extent.offset : extent.end]

    found = by_libvhdi(encode(disk, extents), tmp_path)

    assert found == model


def test_sectors_between_extents_stay_as_they_are_on_the_target() -> None:
    target = bytearray(content("XY"))

    apply(encode(content("AB"), [Extent(512, 512), Extent(BLOCK + 1024, 512)]), target)

    model = bytearray(content("XY"))
    model[512:1024] = b"A" * 512
    model[BLOCK + 1024 : BLOCK + 1536] = b"B" * 512
    assert target == model


def test_last_block_is_padded_to_its_full_length_with_the_bits_clear() -> None:
    disk = content("AB", BLOCK + 3 * SECTOR)
    target = bytearray(len(disk))

    stream = encode(disk, [Extent(0, len(disk))])
    apply(stream, target)

    assert target == disk
    assert len(stream) == len(head("AB")) + 2 * STRIDE + SECTOR


@pytest.mark.parametrize("step", [1 * KiB + 1, 64 * KiB, 3 * BLOCK])
def test_stream_does_not_depend_on_how_the_data_was_cut(step: int) -> None:
    disk, extents = content("ABC"), [Extent(SECTOR, 2 * BLOCK), Extent(3 * BLOCK - 4096, 4096)]
    target = bytearray(len(disk))

    apply(encode(disk, extents, step=step), target)

    assert target[SECTOR : 2 * BLOCK + SECTOR] == disk[SECTOR : 2 * BLOCK + SECTOR]
    assert target[-4096:] == disk[-4096:]
    assert target.count(0) == SECTOR + BLOCK - SECTOR - 4096


def test_length_of_a_sparse_disk_is_exact_without_its_data() -> None:
    encoder = VhdStreamEncoder(2040 * GiB, [Extent(0, 512), Extent(2040 * GiB - 512, 512)])

    assert encoder.length == 2048 + 2040 * 512 * 4 + 2 * STRIDE + SECTOR


@pytest.mark.parametrize(
    "extent",
    [Extent(1, 512), Extent(0, 511), Extent(512, 1), Extent(BLOCK, 512), Extent(0, BLOCK + 512)],
)
def test_extent_that_is_not_aligned_or_outside_is_rejected(extent: Extent) -> None:
    with pytest.raises(VhdError, match=rf"extent {extent.offset}\+{extent.length}"):
        VhdStreamEncoder(BLOCK, [extent])


@pytest.mark.parametrize("size", [0, 511, 2040 * GiB + 512])
def test_disk_that_no_vhd_holds_is_rejected(size: int) -> None:
    with pytest.raises(VhdError, match=f"{size} bytes"):
        VhdStreamEncoder(size, [])


def test_data_at_another_place_than_announced_is_rejected() -> None:
    encoder = VhdStreamEncoder(BLOCK, [Extent(512, 1024)])

    with pytest.raises(VhdError, match="data at 1024 came where 512 is the next"):
        list(encoder.encode(1024, memoryview(bytes(512))))


def test_data_of_an_extent_twice_is_rejected() -> None:
    encoder = VhdStreamEncoder(BLOCK, [Extent(0, 1024)])
    list(encoder.encode(0, memoryview(bytes(512))))

    with pytest.raises(VhdError, match="data at 0 came where 512 is the next"):
        list(encoder.encode(0, memoryview(bytes(512))))


def test_data_beyond_the_last_extent_is_rejected() -> None:
    encoder = VhdStreamEncoder(BLOCK, [Extent(0, 512)])
    list(encoder.encode(0, memoryview(bytes(512))))

    with pytest.raises(VhdError, match="data at 512 is beyond the last extent"):
        list(encoder.encode(512, memoryview(bytes(512))))


def test_data_longer_than_its_extent_is_rejected() -> None:
    encoder = VhdStreamEncoder(2 * BLOCK, [Extent(0, 512), Extent(BLOCK, 512)])

    with pytest.raises(VhdError, match=f"data at 512 came where {BLOCK} is the next"):
        list(encoder.encode(0, memoryview(bytes(1024))))


def test_end_before_all_data_has_come_is_rejected() -> None:
    encoder = VhdStreamEncoder(2 * BLOCK, [Extent(0, 512), Extent(BLOCK, 512)])
    list(encoder.encode(0, memoryview(bytes(512))))

    with pytest.raises(VhdError, match=f"the data from {BLOCK} never came"):
        list(encoder.tail())


def test_end_in_the_middle_of_an_extent_is_rejected() -> None:
    encoder = VhdStreamEncoder(BLOCK, [Extent(0, 1024)])
    list(encoder.encode(0, memoryview(bytes(512))))

    with pytest.raises(VhdError, match="the data from 512 never came"):
        list(encoder.tail())


def test_fragmented_disk_of_many_extents_takes_little_memory() -> None:
    extents = BlockMap(16 * GiB, 64 * KiB)
    for block in range(0, 16 * GiB // (64 * KiB), 32):  # one in each block of the VHD
        extents.add(block)
        extents.add(block + 2)
    tracemalloc.start()
    try:
        encoder = VhdStreamEncoder(16 * GiB, extents)
        length = sum(len(piece) for piece in encoder.head())
        for extent in extents:
            for offset in (extent.offset, extent.offset + 32 * KiB):
                data = memoryview(bytes(32 * KiB))
                length += sum(len(part) for part in encoder.encode(offset, data))
            if extent.offset > 128 * MiB:
                break
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert encoder.length == 2048 + 8192 * 4 + 8192 * STRIDE + SECTOR
    assert peak < 2 * MiB


def test_table_of_the_largest_disk_is_made_in_small_pieces() -> None:
    encoder = VhdStreamEncoder(2040 * GiB, [])

    sizes = [len(piece) for piece in encoder.head()]

    assert max(sizes) <= 64 * KiB
    assert sum(sizes) + SECTOR == encoder.length


def test_gap_of_a_whole_block_is_made_in_small_pieces() -> None:
    encoder = VhdStreamEncoder(BLOCK, [Extent(BLOCK - 512, 512)])

    sizes = [len(part) for part in encoder.encode(BLOCK - 512, memoryview(bytes(512)))]

    assert max(sizes) <= 64 * KiB
    assert sum(sizes) == STRIDE
