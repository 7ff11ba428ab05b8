"""XAPI's disk streams, byte for byte where a client can see the byte."""

import hashlib
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pyvhdi

from tests.lab.vhd_judges import assert_sound, digest, digest_by_qemu, needs_qemu
from xorepd_lab.disks.store import Disk, DiskError, DiskStore
from xorepd_lab.disks.vhd import BLOCK, DIFFERENCING, FIXED, UNUSED, Footer, Header
from xorepd_lab.wire.streams import (
    ChunkedRawImport,
    RawExport,
    RawImport,
    StreamError,
    VhdExport,
    VhdImport,
)

PAGE = 4096
ALL = b"\xff" * 512


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path / "sr")
    yield store
    assert_sound(tmp_path / "sr")


@pytest.fixture
def target(store: DiskStore) -> Iterator[Disk]:
    """Give a disk of four blocks, filled with `o`, open for writing."""
    store.create("target", 4 * BLOCK)
    with store.open("target", writable=True) as disk:
        disk.write(0, b"o" * 4 * BLOCK)
        yield disk


def fill(store: DiskStore, uuid: str, blocks: int, letters: str) -> None:
    """Create a disk; a letter fills a block, `0` writes zeroes, `-` leaves a hole."""
    store.create(uuid, blocks * BLOCK)
    paint(store, uuid, letters)


def paint(store: DiskStore, uuid: str, letters: str) -> None:
    with store.open(uuid, writable=True) as disk:
        for index, letter in enumerate(letters):
            if letter != "-":
                disk.write(index * BLOCK, letter.replace("0", "\0").encode() * BLOCK)


def letters_of(store: DiskStore, uuid: str) -> str:
    with store.open(uuid) as disk:
        pieces = (disk.read(at, BLOCK) for at in range(0, disk.virtual_size, BLOCK))
        return "".join(
            chr(piece[0]) if piece == piece[:1] * BLOCK else "?" for piece in pieces
        ).replace("\0", "0")


def body_of(store: DiskStore, uuid: str, base: str | None = None) -> bytes:
    with VhdExport(store, uuid, base) as stream:
        body = b"".join(stream.pieces())
        assert len(body) == stream.length
        return body


def vhd(
    blocks: dict[int, tuple[bytes, bytes]],
    size: int = 4 * BLOCK,
    *,
    order: list[int] | None = None,
    table_offset: int = 2048,
    gap: int = 0,
    kind: int = DIFFERENCING,
    block_size: int = BLOCK,
    entries: int | None = None,
) -> bytes:
    """Lay out a VHD as some client might: {block: (bitmap, data)} in any order, with gaps."""
    entries = -(-size // BLOCK) if entries is None else entries
    order = sorted(blocks) if order is None else order
    table = [UNUSED] * entries
    position = table_offset + -(-4 * entries // 512) * 512
    body = b""
    for index in order:
        body += bytes(gap) + b"".join(blocks[index])
        table[index] = (position + gap) // 512
        position += gap + 512 + BLOCK
    footer = Footer(size, kind, UUID(int=5), creator=b"vpc ").pack()
    front = footer + Header(table_offset, entries, block_size).pack()
    packed = struct.pack(f">{entries}I", *table)
    head = front.ljust(table_offset, b"\0") + packed
    return head.ljust(position - len(body), b"\xff") + body + bytes(gap) + footer


def take(disk: Disk, body: bytes, length: int | None = None, step: int = 1 << 18) -> None:
    parser = VhdImport(disk, len(body) if length is None else length)
    for at in range(0, len(body), step):
        parser.feed(body[at : at + step])
    parser.finish()


# -- export ----------------------------------------------------------------------------------------


def test_a_vhd_export_has_every_byte_where_xapi_has_it(store: DiskStore) -> None:
    fill(store, "a", 5, "-A-0C")

    body = body_of(store, "a")

    footer, header, table = body[:512], body[512:1536], body[2048:2560]
    assert body[-512:] == footer
    assert footer[:24] == b"conectix" + struct.pack(">IIQ", 2, 0x10000, 512)
    assert footer[24:40] == struct.pack(">I4sII", 0, b"caml", 1, 0)
    assert footer[40:56] == struct.pack(">QQ", 5 * BLOCK, 5 * BLOCK)
    assert struct.unpack_from(">I", footer, 60)[0] == 3
    assert footer[84:] == bytes(428)
    assert header[:32] == b"cxsparse" + struct.pack(">QQII", 2**64 - 1, 2048, 0x10000, 5)
    assert header[32:36] == struct.pack(">I", BLOCK)
    assert header[40:] == bytes(984)
    assert body[1536:2048] == bytes(512)
    first = 2560 // 512
    sectors = [UNUSED, first, UNUSED, first + 4097, first + 2 * 4097]
    assert table == struct.pack(">5I", *sectors).ljust(512, b"\xff")
    assert body[2560:-512] == b"".join(ALL + letter * BLOCK for letter in (b"A", b"\0", b"C"))


def test_each_export_has_an_identity_of_its_own(store: DiskStore) -> None:
    fill(store, "a", 1, "A")

    assert body_of(store, "a")[68:84] != body_of(store, "a")[68:84]


def test_a_differencing_export_names_its_base(store: DiskStore) -> None:
    fill(store, "a", 2, "A-")
    store.split("a", "base", "copy")
    paint(store, "a", "-B")

    body = body_of(store, "a", "base")

    base = store.path("base").read_bytes()[:512]
    header = Header.unpack(body[512:1536])
    assert struct.unpack_from(">I", body, 60)[0] == 4
    assert header.parent_id.bytes == base[68:84]
    assert struct.pack(">I", header.parent_timestamp) == base[24:28]
    assert header.parent_name == "base.vhd"
    path = f"file://{store.path('base')}"
    [locator] = header.locators
    assert (locator.code, locator.space, locator.length, locator.offset) == (
        *(b"MacX", 1, len(path)),
        1536,
    )
    assert body[1536:2048] == bytes(512)
    assert body[2560:-512] == ALL + b"B" * BLOCK


@pytest.mark.parametrize(
    ("base", "head", "blocks"),
    [
        ("AB--", "----", []),
        ("AB--", "-C-D", [1, 3]),
        ("AB--", "0---", [0]),
    ],
)
def test_a_delta_has_the_blocks_allocated_since(
    store: DiskStore, base: str, head: str, blocks: list[int]
) -> None:
    fill(store, "a", 4, base)
    store.split("a", "base", "copy1")
    paint(store, "a", head)
    store.split("a", "head", "copy2")

    with VhdExport(store, "head", "base") as stream:
        assert stream.blocks == blocks


def test_a_delta_also_has_what_only_the_base_changed(store: DiskStore) -> None:
    fill(store, "a", 4, "AAAA")
    store.split("a", "b", "copy")
    paint(store, "a", "-X--")
    paint(store, "b", "--Y-")

    body = body_of(store, "a", "b")
    with store.open("b", writable=True) as disk:
        take(disk, body)

    assert letters_of(store, "b") == letters_of(store, "a") == "AXAA"


def test_a_delta_against_itself_is_empty(store: DiskStore) -> None:
    fill(store, "a", 4, "AB--")

    assert len(body_of(store, "a", "a")) == 2048 + 512 + 512


def test_a_delta_follows_the_size_of_the_disk(store: DiskStore) -> None:
    fill(store, "small", 2, "AB")
    fill(store, "large", 4, "CCCC")

    with VhdExport(store, "small", "large") as stream:
        assert stream.blocks == [0, 1]
    with VhdExport(store, "large", "small") as stream:
        assert stream.blocks == [0, 1, 2, 3]


def test_an_export_reads_through_a_split_and_holds_the_chain(store: DiskStore) -> None:
    fill(store, "a", 2, "AB")
    store.split("a", "snap0", "copy0")
    paint(store, "a", "X-")
    store.split("a", "snap1", "copy1")
    store.destroy("snap0")

    with VhdExport(store, "snap1") as stream:
        first = stream.block(0)
        store.split("snap1", "again", "copy2")
        assert store.collect().removed == ()
        assert (first, stream.block(1)) == (ALL + b"X" * BLOCK, ALL + b"B" * BLOCK)
    assert store.collect().removed == ("copy1",)


def test_an_export_of_what_is_not_there_holds_nothing(store: DiskStore) -> None:
    fill(store, "a", 1, "A")

    for arguments in (("nobody", None), ("a", "nobody")):
        with pytest.raises(DiskError):
            VhdExport(store, *arguments)
    store.destroy("a")


@pytest.mark.stranger
def test_libvhdi_reads_a_full_export(store: DiskStore, tmp_path: Path) -> None:
    fill(store, "a", 40, "A-BC-0" * 6)
    (tmp_path / "full.vhd").write_bytes(body_of(store, "a"))

    file = pyvhdi.file()
    file.open(str(tmp_path / "full.vhd"))
    found = hashlib.sha256(file.read_buffer(file.get_media_size())).hexdigest()
    file.close()

    assert found == digest(store, "a")


@pytest.mark.stranger
@needs_qemu
def test_qemu_reads_a_full_export(store: DiskStore, tmp_path: Path) -> None:
    fill(store, "a", 40, "A-BC-0" * 6)
    (tmp_path / "full.vhd").write_bytes(body_of(store, "a"))

    assert digest_by_qemu(tmp_path / "full.vhd", tmp_path) == digest(store, "a")


def test_a_raw_export_is_the_whole_disk(store: DiskStore) -> None:
    fill(store, "a", 4, "A-0B")

    with RawExport(store, "a") as stream:
        pieces = list(iter(lambda: stream.read(100_000), b""))
        assert stream.length == 4 * BLOCK

    expected = b"A" * BLOCK + bytes(2 * BLOCK) + b"B" * BLOCK
    assert b"".join(pieces) == expected
    assert max(map(len, pieces)) <= 100_000


def test_a_raw_export_with_a_base_has_zeroes_where_nothing_was_allocated(store: DiskStore) -> None:
    fill(store, "a", 3, "ABC")
    store.split("a", "base", "copy")
    paint(store, "a", "-X-")

    with RawExport(store, "a", "base") as stream:
        body = b"".join(stream.pieces())

    assert body == bytes(BLOCK) + b"X" * BLOCK + bytes(BLOCK)


# -- VHD import ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1000, 4096, 65536, 3 << 20])
def test_an_import_takes_its_stream_in_pieces_of_any_size(store: DiskStore, step: int) -> None:
    fill(store, "a", 3, "A0B")
    store.create("copy", 3 * BLOCK)
    body = body_of(store, "a")

    with store.open("copy", writable=True) as disk:
        take(disk, body, step=step)

    assert letters_of(store, "copy") == "A0B"


def test_an_import_leaves_alone_what_the_stream_does_not_have(
    store: DiskStore, target: Disk
) -> None:
    take(target, vhd({1: (ALL, b"n" * BLOCK)}))

    assert letters_of(store, "target") == "onoo"


def test_an_import_writes_the_sectors_whose_bit_is_set_and_no_others(target: Disk) -> None:
    bitmap = b"\x80\x01" + bytes(508) + b"\x00\x01"

    take(target, vhd({2: (bitmap, b"n" * BLOCK)}))

    expected = bytearray(b"o" * BLOCK)
    for sector in (0, 15, 4095):
        expected[sector * 512 : (sector + 1) * 512] = b"n" * 512
    assert target.read(2 * BLOCK, BLOCK) == bytes(expected)


def test_an_import_writes_zeroes_as_data(store: DiskStore, target: Disk) -> None:
    take(target, vhd({0: (ALL, bytes(BLOCK))}))

    assert letters_of(store, "target") == "0ooo"


def test_an_import_takes_blocks_as_they_come_and_skips_what_is_between(
    store: DiskStore, target: Disk
) -> None:
    blocks = {index: (ALL, bytes([97 + index]) * BLOCK) for index in range(3)}

    take(target, vhd(blocks, order=[2, 0, 1], gap=1536, table_offset=8192))

    assert letters_of(store, "target") == "abco"


def test_an_import_of_nothing_is_well(store: DiskStore, target: Disk) -> None:
    take(target, vhd({}))

    assert letters_of(store, "target") == "oooo"


@pytest.mark.parametrize("blocks", [1, 3])
def test_an_import_of_a_smaller_disk_is_well(store: DiskStore, target: Disk, blocks: int) -> None:
    take(target, vhd({0: (ALL, b"n" * BLOCK)}, size=blocks * BLOCK))

    assert letters_of(store, "target") == "nooo"


def test_an_import_of_a_larger_disk_fails_at_the_first_write_past_the_end(
    store: DiskStore, target: Disk
) -> None:
    take(target, vhd({1: (ALL, b"n" * BLOCK)}, size=9 * BLOCK))
    assert letters_of(store, "target") == "onoo"

    body = vhd({2: (ALL, b"m" * BLOCK), 4: (ALL, b"m" * BLOCK)}, size=9 * BLOCK)
    with pytest.raises(StreamError, match="past the disk's end"):
        take(target, body)
    assert letters_of(store, "target") == "onmo"


@pytest.mark.parametrize("error", [-BLOCK, -1024, -512, -1, 1, 512, 1 << 50])
def test_a_wrong_content_length_fails(target: Disk, error: int) -> None:
    body = vhd({0: (ALL, b"n" * BLOCK), 3: (ALL, b"m" * BLOCK)})

    with pytest.raises(StreamError):
        take(target, body, length=len(body) + error)


def test_without_content_length_the_disks_size_is_taken(target: Disk) -> None:
    parser = VhdImport(target, None)
    parser.feed(vhd({0: (ALL, b"n" * BLOCK)}))

    with pytest.raises(StreamError, match="ends after"):
        parser.finish()


@pytest.mark.parametrize("end", [0, 1, 511, 512, 1536, 2050, 2560, 3072, 5000, -512, -1])
def test_a_stream_that_ends_early_fails(target: Disk, end: int) -> None:
    body = vhd({0: (ALL, b"n" * BLOCK)})

    with pytest.raises(StreamError, match="ends after"):
        take(target, body[:end], length=len(body))


def broken(change: Callable[[bytearray], None]) -> bytes:
    body = bytearray(vhd({0: (ALL, b"n" * BLOCK), 1: (ALL, b"n" * BLOCK)}))
    change(body)
    return bytes(body)


def with_table(*entries: int) -> bytes:
    return broken(lambda body: struct.pack_into(f">{len(entries)}I", body, 2048, *entries))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (broken(lambda body: body.__setitem__(0, 0)), "cookie 'conectix'"),
        (broken(lambda body: body.__setitem__(100, 1)), "footer's checksum"),
        (broken(lambda body: body.__setitem__(600, 1)), "header's checksum"),
        (broken(lambda body: body.__setitem__(-1, 1)), "footer's checksum"),
        (with_table(5, 5), "behind what was read"),
        (with_table(5, 5 + 4096), "behind what was read"),
        (with_table(1, UNUSED), "behind what was read"),
        (with_table(5, 1 << 30), "past its content length"),
        (vhd({}, kind=FIXED), "neither dynamic nor differencing"),
        (vhd({}, block_size=1 << 20), "not of 2 MiB"),
        (vhd({}, entries=1_044_481), "entries"),
        (vhd({}, table_offset=512), "behind what was read"),
        (b"HTTP/1.1 500 Internal Error".ljust(4096), "cookie"),
    ],
)
def test_a_stream_that_makes_no_sense_fails(target: Disk, body: bytes, reason: str) -> None:
    with pytest.raises(StreamError, match=reason):
        take(target, body)


def test_a_stream_that_failed_stays_failed(target: Disk) -> None:
    parser = VhdImport(target, 4096)
    with pytest.raises(StreamError, match="cookie"):
        parser.feed(bytes(512))

    with pytest.raises(StreamError, match="cookie"):
        parser.feed(bytes(512))
    with pytest.raises(StreamError, match="cookie"):
        parser.finish()


def test_a_full_sr_fails_the_stream(store: DiskStore) -> None:
    store.create("b", 2 * BLOCK)
    store.capacity = 3 << 20

    with (
        store.open("b", writable=True) as disk,
        pytest.raises(StreamError, match="do not fit"),
    ):
        take(disk, vhd({0: (ALL, b"n" * BLOCK), 1: (ALL, b"n" * BLOCK)}, size=2 * BLOCK))


# -- raw and chunked import ------------------------------------------------------------------------


def chunk(offset: int, data: bytes) -> bytes:
    return struct.pack("<QI", offset, len(data)) + data


END = bytes(12)


def chunked(disk: Disk, body: bytes, step: int = 70_000) -> None:
    parser = ChunkedRawImport(disk)
    for at in range(0, len(body), step):
        parser.feed(memoryview(body)[at : at + step])
    parser.finish()


@pytest.mark.parametrize("step", [1, 7, 70_000])
def test_chunks_come_in_any_order_and_later_ones_win(target: Disk, step: int) -> None:
    body = chunk(2048, b"a" * 1024) + chunk(512, b"b" * 512) + chunk(2560, b"c" * 1024) + END

    chunked(target, body, step)

    expected = b"o" * 512 + b"b" * 512 + b"o" * 1024 + b"a" * 512 + b"c" * 1024 + b"o" * 512
    assert target.read(0, 4096) == expected


def test_a_chunk_may_cross_blocks(store: DiskStore, target: Disk) -> None:
    chunked(target, chunk(BLOCK - 512, b"x" * (2 * BLOCK + 1024)) + END)

    assert target.read(BLOCK - 1024, 1024) == b"o" * 512 + b"x" * 512
    assert target.read(3 * BLOCK, 1024) == b"x" * 512 + b"o" * 512
    assert letters_of(store, "target") == "?xx?"


def test_chunks_of_zeroes_are_written_and_silence_is_not(store: DiskStore, target: Disk) -> None:
    chunked(target, chunk(BLOCK, bytes(BLOCK)) + END)

    assert letters_of(store, "target") == "o0oo"


def test_an_end_marker_alone_is_well(store: DiskStore, target: Disk) -> None:
    chunked(target, END)

    assert letters_of(store, "target") == "oooo"


def test_an_empty_chunk_elsewhere_is_no_end(target: Disk) -> None:
    chunked(target, chunk(512, b"") + chunk(512, b"z" * 512) + END)

    assert target.read(512, 512) == b"z" * 512


def test_what_follows_the_end_marker_is_not_read(target: Disk) -> None:
    parser = ChunkedRawImport(target)
    parser.feed(END + b"whatever")

    assert parser.done
    parser.finish()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (chunk(1, bytes(512)), "not whole sectors"),
        (chunk(0, bytes(511)), "not whole sectors"),
        (chunk(4 * BLOCK, bytes(512)), "past the disk's end"),
        (chunk(4 * BLOCK - 512, bytes(1024)), "past the disk's end"),
        (struct.pack("<QI", 0, 1 << 31), "2 GiB"),
        (struct.pack("<QI", 2**64 - 512, 512), "past the disk's end"),
        (b"", "ends after 0"),
        (END[:11], "ends after 11"),
        (chunk(0, bytes(512)), "before its end"),
        (chunk(0, bytes(1024))[:-1] + b"", "before its end"),
    ],
)
def test_chunks_that_make_no_sense_fail(target: Disk, body: bytes, reason: str) -> None:
    with pytest.raises(StreamError, match=reason):
        chunked(target, body)


@pytest.mark.parametrize("length", [512, BLOCK, BLOCK + 512, BLOCK + 700, 4 * BLOCK])
def test_a_raw_import_writes_its_length_and_keeps_the_rest(target: Disk, length: int) -> None:
    parser = RawImport(target, length)
    body = b"r" * length
    for at in range(0, length, 99_999):
        parser.feed(body[at : at + 99_999])
    parser.finish()

    assert target.read(0, 4 * BLOCK) == body + b"o" * (4 * BLOCK - length)


def test_a_raw_import_without_length_takes_the_disks_size(store: DiskStore, target: Disk) -> None:
    parser = RawImport(target, None)
    parser.feed(b"r" * 4 * BLOCK)
    parser.finish()

    assert letters_of(store, "target") == "rrrr"


def test_a_raw_import_of_the_wrong_size_fails(target: Disk) -> None:
    with pytest.raises(StreamError, match="0 bytes"):
        RawImport(target, 0)
    short = RawImport(target, 2048)
    short.feed(b"r" * 2047)
    with pytest.raises(StreamError, match="ends after 2047"):
        short.finish()
    long = RawImport(target, 5 * BLOCK)
    with pytest.raises(StreamError, match="past the disk's end"):
        long.feed(b"r" * 5 * BLOCK)


@pytest.mark.parametrize("seed", range(5))
def test_a_delta_applied_to_a_clone_of_the_replica_gives_the_snapshot(
    store: DiskStore, seed: int
) -> None:
    """The way of an incremental replication: full copy, then deltas into clones."""
    rng = random.Random(seed)
    fill(store, "a", 4, "AB-0")
    store.split("a", "snap0", "copy0")
    store.create("replica0", 4 * BLOCK)
    with store.open("replica0", writable=True) as disk:
        take(disk, body_of(store, "snap0"))

    for number in range(1, 4):
        with store.open("a", writable=True) as disk:
            for _ in range(5):
                page = rng.randrange(4 * BLOCK // PAGE)
                disk.write(page * PAGE, rng.randbytes(PAGE))
        store.split("a", f"snap{number}", f"copy{number}")
        store.split(f"replica{number - 1}", f"replica{number}", str(uuid4()))
        with store.open(f"replica{number}", writable=True) as disk:
            take(disk, body_of(store, f"snap{number}", f"snap{number - 1}"))

        assert digest(store, f"replica{number}") == digest(store, f"snap{number}")
        assert digest(store, f"replica{number - 1}") == digest(store, f"snap{number - 1}")
