"""Guests write real file systems, aligned, and the same for the same seed."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.vhd_judges import assert_sound, digest, digest_by_libvhdi
from xorepd_lab.disks.chain import runs
from xorepd_lab.disks.store import Disk, DiskStore
from xorepd_lab.disks.vhd import BLOCK
from xorepd_lab.guests.workload import (
    GuestError,
    load_raw,
    make_ext4,
    read_file,
    trim,
    write_files,
    write_random,
    write_sequential,
)

FILES = {"etc/motd": b"welcome\n", "/var/www/index.html": b"<p>hello</p>" * 5000}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path / "sr")
    yield store
    assert_sound(tmp_path / "sr")


@pytest.fixture
def disk(store: DiskStore) -> Iterator[Disk]:
    store.create("a", 32 << 20)
    with store.open("a", writable=True) as disk:
        yield disk


@pytest.fixture
def root(disk: Disk, tmp_path: Path) -> Disk:
    """Give a disk that holds FILES in a file system of 16 MiB."""
    load_raw(disk, make_ext4(FILES, 16 << 20, seed=1, directory=tmp_path))
    return disk


def test_a_file_system_holds_its_files(root: Disk) -> None:
    assert read_file(root, "/etc/motd") == b"welcome\n"
    assert read_file(root, "var/www/index.html") == FILES["/var/www/index.html"]


def test_the_same_seed_makes_the_same_image(tmp_path: Path) -> None:
    one, again, other = (
        make_ext4(FILES, 8 << 20, seed, tmp_path).read_bytes() for seed in (1, 1, 2)
    )

    assert one == again != other


def test_an_image_does_not_tell_when_it_was_made(tmp_path: Path) -> None:
    began = int(time.time())
    image = make_ext4(FILES, 8 << 20, 1, tmp_path).read_bytes()
    ended = int(time.time())

    stamps = [moment.to_bytes(4, "little") for moment in range(began, ended + 1)]
    assert not any(stamp in image for stamp in stamps)


def test_files_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="mkfs"):
        make_ext4({"big": b"x" * (3 << 20)}, 2 << 20, 1, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_loading_leaves_the_holes_of_the_image_out(disk: Disk, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        os.pwrite(file.fileno(), b"x" * 4096, 5 * BLOCK + 4096)
        file.truncate(10 * BLOCK)

    load_raw(disk, image)

    assert [index for index in range(16) if disk.holds(index)] == [5]
    assert disk.read(5 * BLOCK + 4096, 4096) == b"x" * 4096


def test_files_are_put_and_replaced(root: Disk) -> None:
    files = {"/etc/motd": b"changed", "srv/deep/er/file": b"n" * 300_000, "empty": b""}

    written = write_files(root, files)

    assert {name: read_file(root, name) for name in files} == files
    assert read_file(root, "var/www/index.html") == FILES["/var/www/index.html"]
    assert 300_000 < written < 800_000
    assert written % 4096 == 0


def test_writing_the_same_files_twice_writes_little(root: Disk) -> None:
    write_files(root, {"data": b"d" * 1_000_000})

    assert write_files(root, {"etc/motd": b"x"}) < 200_000


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"big": bytes([1]) * (20 << 20)}, "allocate"),
        ({"etc": b"a directory"}, "directory"),
        ({"etc/motd/below": b"a file"}, "director"),
        ({"../up": b""}, "cannot name"),
        ({"": b""}, "cannot name"),
    ],
)
def test_what_cannot_be_written_is_refused_and_changes_nothing(
    store: DiskStore, root: Disk, files: dict[str, bytes], reason: str
) -> None:
    before = digest(store, "a")

    with pytest.raises(GuestError, match=reason):
        write_files(root, files)

    assert digest(store, "a") == before


def test_what_is_not_there_cannot_be_read(root: Disk, store: DiskStore) -> None:
    with pytest.raises(GuestError, match="not found"):
        read_file(root, "nothing")
    store.create("blank", 16 << 20)
    with store.open("blank") as blank, pytest.raises(GuestError, match="no ext4"):
        read_file(blank, "etc/motd")


def test_a_snapshot_keeps_its_files(store: DiskStore, root: Disk) -> None:
    store.split("a", "snap", "base")
    write_files(root, {"etc/motd": b"later"})

    with store.open("snap") as snapshot:
        assert read_file(snapshot, "etc/motd") == b"welcome\n"
    assert read_file(root, "etc/motd") == b"later"
    assert digest(store, "a") == digest_by_libvhdi(store.path("a"))


def test_random_writes_are_the_same_for_the_same_seed(store: DiskStore, disk: Disk) -> None:
    store.create("b", 32 << 20)
    with store.open("b", writable=True) as other:
        assert write_random(disk, 50, seed=7) == write_random(other, 50, seed=7)

    assert digest(store, "a") == digest(store, "b")


def test_random_writes_stay_within_their_range(disk: Disk) -> None:
    written = write_random(disk, 100, seed=7, within=(5000, 40_000))

    assert {length for _, length in written} == {4096}
    assert {offset for offset, _ in written} <= set(range(8192, 45_000 - 4096 + 1, 4096))
    with pytest.raises(GuestError, match="no whole block"):
        write_random(disk, 1, seed=7, within=(4097, 4096))


def test_sequential_writes_fill_their_range_and_trim_empties_it(disk: Disk) -> None:
    write_sequential(disk, BLOCK - 8192, 3 * BLOCK, seed=3)
    data = disk.read(0, 5 * BLOCK)
    assert data[: BLOCK - 8192] == bytes(BLOCK - 8192)
    assert data[4 * BLOCK - 8192 :] == bytes(BLOCK + 8192)
    assert data[BLOCK : BLOCK + 4096] != data[2 * BLOCK : 2 * BLOCK + 4096]

    trim(disk, 0, 5 * BLOCK)
    assert disk.read(0, 5 * BLOCK) == bytes(5 * BLOCK)


@pytest.mark.parametrize(("offset", "length"), [(512, 4096), (0, 512)])
def test_unaligned_guests_are_refused(disk: Disk, offset: int, length: int) -> None:
    with pytest.raises(GuestError, match="4 KiB"):
        write_sequential(disk, offset, length, seed=1)
    with pytest.raises(GuestError, match="4 KiB"):
        trim(disk, offset, length)


def test_every_write_covers_whole_bytes_of_the_sector_bitmap(root: Disk, store: DiskStore) -> None:
    store.split("a", "snap", "base")
    write_files(root, {"etc/motd": b"short"})
    write_random(root, 20, seed=1)

    leaf = root.chain[0]
    found = [run for index in leaf.allocated() for run in runs(leaf.sectors(index))]
    assert found
    assert all(first % 8 == 0 and count % 8 == 0 for first, count in found)
