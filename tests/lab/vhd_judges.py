"""Others who read our VHD files: libvhdi, qemu-img, and the rules of XenServer's vhd-util check.

The last are written down here once more on purpose, from the specification and not with the lab's
own code: what is wrong in one should not be excused by the other.
"""

import hashlib
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import pyvhdi

from xorepd_lab.disks.store import DiskStore

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not installed (Debian: qemu-utils)"
)


def chain_of(path: Path) -> list[Path]:
    """Return a VHD and its ancestors by the names in their headers, the leaf first."""
    found = [path]
    while True:
        with found[-1].open("rb") as file:
            front = file.read(1536)
        if front[63] != 4:
            return found
        name = front[512 + 64 : 512 + 64 + 512].decode("utf-16-be").rstrip("\0")
        found.append(path.parent / name)


def digest_by_libvhdi(path: Path) -> str:
    """Return the SHA-256 of the whole virtual disk as libvhdi reads it."""
    files = []
    for each in chain_of(path):
        file = pyvhdi.file()
        file.open(str(each))
        files.append(file)
    for child, parent in pairwise(files):
        child.set_parent(parent)
    digest = hashlib.sha256()
    left = files[0].get_media_size()
    files[0].seek_offset(0, 0)
    while left:
        data = files[0].read_buffer(min(left, 1 << 20))
        digest.update(data)
        left -= len(data)
    for file in files:
        file.close()
    return digest.hexdigest()


def digest_by_qemu(path: Path, scratch: Path) -> str:
    """Return the SHA-256 of a dynamic disk as qemu-img converts it."""
    raw = scratch / "qemu.raw"
    # XAPI's streams carry a creator for which qemu would trust the coarser geometry.
    source = f"driver=vpc,force_size_calc=current_size,file.filename={path}"
    command = ("qemu-img", "convert", "--image-opts", "-O", "raw", source, str(raw))
    subprocess.run(command, check=True, capture_output=True)
    with raw.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(store: DiskStore, uuid: str) -> str:
    """Return the SHA-256 of the whole virtual disk as the lab reads it."""
    found = hashlib.sha256()
    with store.open(uuid) as disk:
        for offset in range(0, disk.virtual_size, 1 << 20):
            found.update(disk.read(offset, min(1 << 20, disk.virtual_size - offset)))
    return found.hexdigest()


def assert_sound(directory: Path) -> None:
    """Judge every VHD of a directory as ``vhd-util check`` would."""
    for path in sorted(directory.glob("*.vhd")):
        _assert_one_sound(path)


def _assert_one_sound(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        front = file.read(1536)
        file.seek(size - 512)
        footer = file.read()
        assert footer == front[:512], f"{path.name}: the footers differ"
        assert footer[:8] == b"conectix"
        assert _sum(footer, 64) == struct.unpack_from(">I", footer, 64)[0]
        assert footer[28:31] != b"tap", "that creator owes a batmap"
        assert footer[86:] == bytes(426)
        current, cylinders, heads, sectors, kind = struct.unpack_from(">QHBBI", footer, 48)
        assert cylinders * heads * sectors * 512 <= current
        assert kind in (3, 4)

        header = front[512:]
        assert header[:8] == b"cxsparse"
        assert _sum(header, 36) == struct.unpack_from(">I", header, 36)[0]
        table_at, version, entries, block = struct.unpack_from(">QIII", header, 16)
        assert (version, block) == (0x10000, 2 << 20)
        assert entries >= current >> 21
        end_of_headers = table_at + -(-entries * 4 // 512) * 512
        assert end_of_headers <= size - 512

        name = header[64:576].decode("utf-16-be").rstrip("\0")
        locators = [struct.unpack_from(">4sIIIQ", header, 576 + 24 * i) for i in range(8)]
        if kind == 3:
            assert header[40:60] == bytes(20)
            assert not name
            assert all(each[0] == bytes(4) for each in locators)
        else:
            parent = path.parent / name
            with parent.open("rb") as other:
                assert other.read(512)[68:84] == header[40:56], "not the parent's unique id"
            for code, space, length, reserved, offset in locators[:3]:
                assert (space, reserved) == (512, 0)
                assert offset + space <= size - 512
                file.seek(offset)
                text = file.read(length)
                if code == b"MacX":
                    assert text.decode() == f"file://./{name}"
                else:
                    assert text.decode("utf-16-le") == f".\\{name}"
                end_of_headers = max(end_of_headers, offset + space)
            assert [each[0] for each in locators] == [b"MacX", b"W2ku", b"W2ru"] + [bytes(4)] * 5

        file.seek(table_at)
        table = struct.unpack(f">{entries}I", file.read(4 * entries))
        starts = sorted(each * 512 for each in table if each != 0xFFFFFFFF)
        for start, following in pairwise([*starts, size - 512]):
            assert start >= end_of_headers, f"{path.name}: a block clobbers headers"
            assert start + 512 + (2 << 20) <= following, f"{path.name}: a block is clobbered"
            assert start % 4096 == 3584, "data is not aligned to 4 KiB"


def _sum(raw: bytes, at: int) -> int:
    return ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF
