"""What a guest does to its disk while it runs, seeded so that it can be done again.

Every write is aligned to 4 KiB, as a file system's are. That matters to one reader of the files,
libvhdi: where the eight sectors of one bitmap byte are mixed, it gives zeroes for the clear ones
instead of asking the parent.

File systems are real: made and changed with Debian's e2fsprogs, without root or loop devices.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

from xorepd_lab.disks.chain import Disk
from xorepd_lab.disks.vhd import BLOCK

PAGE: Final = 4096
_SUPERBLOCK: Final = slice(1024, 2048)
_MAGIC: Final = slice(56, 58)  # within the superblock; Linux: fs/ext4/ext4.h, s_magic
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
# e2fsprogs: lib/ext2fs/initialize.c and misc/mke2fs.c take "now" from here, and so debugfs does.
_MOMENT: Final = 1_760_000_000
_NOW: Final = {"E2FSPROGS_FAKE_TIME": str(_MOMENT), "SOURCE_DATE_EPOCH": str(_MOMENT)}
_EXPECTED: Final = "rm: File not found"


class GuestError(Exception):
    """The guest could not do it: no file system on the disk, no such file, no space in it."""


def make_ext4(files: dict[str, bytes], size: int, seed: int, directory: Path | None = None) -> Path:
    """Return a new sparse raw image with an ext4 file system that holds those files.

    Args:
        files: Content by path; a leading slash is the root.
        size: Bytes of the image, a multiple of 4 KiB, at least 1 MiB.
        seed: Decides the file system's UUID and directory hash.
        directory: Where to put the image; the caller removes it. None: a temporary one.

    Raises:
        GuestError: They do not fit.
    """
    rng = random.Random(seed)
    identity, hash_seed = (UUID(int=rng.getrandbits(128), version=4) for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="ext4-", dir=directory) as scratch:
        root = Path(scratch) / "root"
        root.mkdir(mode=0o755)
        for name, content in sorted(files.items()):
            place = root / _relative(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        places = (root, *sorted(root.rglob("*")))
        for place in places:
            os.utime(place, (_MOMENT, _MOMENT))
        handle, image = tempfile.mkstemp(prefix="guest-", suffix=".ext4", dir=directory)
        os.close(handle)
        os.truncate(image, size)
        options = f"hash_seed={hash_seed},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
        try:
            _run(
                *("mkfs.ext4", "-q", "-F", "-b", str(PAGE), "-U", str(identity), "-E", options),
                *("-d", str(root), image),
            )
            # mkfs took the moment of creation from the files, where nobody can set it.
            names = [_quoted(place.relative_to(root)) for place in places[1:]]
            commands = [f"set_inode_field {name} ctime @{_MOMENT}" for name in ("/", *names)]
            if complaints := _complaints(_debugfs(Path(image), commands, Path(scratch))):
                raise GuestError(f"debugfs: {complaints[0]}")
        except BaseException:
            Path(image).unlink()
            raise
    return Path(image)


def load_raw(disk: Disk, image: Path) -> None:
    """Copy a sparse raw image to the beginning of a disk, leaving its holes out."""
    with image.open("rb") as file:
        for offset, end in _data_ranges(file.fileno()):
            position = offset
            while position < end:
                step = min(BLOCK - position % BLOCK, end - position)
                data = os.pread(file.fileno(), step, position)
                disk.write(position, data.ljust(step, b"\0"))
                position += step


def write_random(
    disk: Disk, blocks: int, seed: int, within: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """Write that many blocks of 4 KiB of random bytes to random places.

    Args:
        disk: Open for writing.
        blocks: How many writes; two may hit the same place.
        seed: The same seed writes the same bytes to the same places.
        within: (offset, length) of the range to stay in; None: the whole disk.

    Returns:
        (offset, length) of each write, in their order.
    """
    offset, length = within or (0, disk.virtual_size)
    first, last = -(-offset // PAGE), (offset + length) // PAGE
    if last <= first:
        raise GuestError(f"no whole block of 4 KiB lies in {length} bytes at {offset}")
    rng = random.Random(seed)
    written = []
    for _ in range(blocks):
        place = rng.randrange(first, last) * PAGE
        disk.write(place, rng.randbytes(PAGE))
        written.append((place, PAGE))
    return written


def write_sequential(disk: Disk, offset: int, length: int, seed: int) -> None:
    """Fill a range with random bytes; offset and length are multiples of 4 KiB."""
    _check_aligned(offset, length)
    rng = random.Random(seed)
    end = offset + length
    while offset < end:
        step = min(BLOCK - offset % BLOCK, end - offset)
        disk.write(offset, rng.randbytes(step))
        offset += step


def trim(disk: Disk, offset: int, length: int) -> None:
    """Discard a range; what is allocated there reads as zeroes. Multiples of 4 KiB."""
    _check_aligned(offset, length)
    disk.trim(offset, length)


def write_files(disk: Disk, files: dict[str, bytes]) -> int:
    """Put files into the disk's ext4 file system, replacing those that are there.

    Returns:
        Bytes written to the disk: the 4 KiB blocks that changed, among them metadata.

    Raises:
        GuestError: No ext4 on the disk, no room in it, or it was not clean afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="guest-") as scratch:
        image = _copy_out(disk, Path(scratch))
        paths = {_relative(name): content for name, content in sorted(files.items())}
        commands = [f"mkdir {_quoted(each)}" for each in _missing(image, _parents(paths))]
        for number, (path, content) in enumerate(paths.items()):
            source = Path(scratch) / f"file{number}"
            source.write_bytes(content)
            commands += [f"rm {_quoted(path)}", f"write {source} {_quoted(path)}"]
        complaints = _complaints(_debugfs(image, commands, Path(scratch)))
        if complaints:
            raise GuestError(f"debugfs: {complaints[0]}")
        _run("e2fsck", "-fn", str(image))
        return _copy_back(disk, image)


def read_file(disk: Disk, path: str) -> bytes:
    """Return a file of the disk's ext4 file system.

    Raises:
        GuestError: No ext4 on the disk, or no such file.
    """
    with tempfile.TemporaryDirectory(prefix="guest-") as scratch:
        image = _copy_out(disk, Path(scratch))
        found = Path(scratch) / "found"
        command = f"dump {_quoted(_relative(path))} {found}"
        complaints = _complaints(_debugfs(image, [command], Path(scratch)))
        if complaints:
            raise GuestError(f"debugfs: {complaints[0]}")
        return found.read_bytes()


def _copy_out(disk: Disk, directory: Path) -> Path:
    """Return a sparse raw copy of a disk that holds an ext4 file system."""
    if disk.read(0, PAGE)[_SUPERBLOCK][_MAGIC] != b"\x53\xef":
        raise GuestError(f"the disk {disk.uuid} holds no ext4 file system")
    image = directory / "disk"
    with image.open("wb") as file:
        file.truncate(disk.virtual_size)
        for index in range(-(-disk.virtual_size // BLOCK)):
            if disk.holds(index):
                data = disk.read(index * BLOCK, min(BLOCK, disk.virtual_size - index * BLOCK))
                for start, end in _changed(bytes(len(data)), data):
                    os.pwrite(file.fileno(), data[start:end], index * BLOCK + start)
    return image


def _copy_back(disk: Disk, image: Path) -> int:
    """Write what differs in the copy back to the disk; return how many bytes that was."""
    written = 0
    with image.open("rb") as file:
        for index in range(-(-disk.virtual_size // BLOCK)):
            offset = index * BLOCK
            size = min(BLOCK, disk.virtual_size - offset)
            if not disk.holds(index) and not _has_data(file.fileno(), offset, size):
                continue
            old, new = disk.read(offset, size), os.pread(file.fileno(), size, offset)
            for start, end in _changed(old, new):
                disk.write(offset + start, new[start:end])
                written += end - start
    return written


def _changed(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of 4 KiB blocks in which two equally long texts differ."""
    if old == new:
        return
    start: int | None = None
    for at in range(0, len(new), PAGE):
        differs = old[at : at + PAGE] != new[at : at + PAGE]
        if differs and start is None:
            start = at
        elif not differs and start is not None:
            yield start, at
            start = None
    if start is not None:
        yield start, len(new)


def _data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what a sparse file holds, in whole 4 KiB blocks."""
    position = 0
    while True:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only holes from here on
            return
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start // PAGE * PAGE, -(-position // PAGE) * PAGE


def _has_data(fd: int, offset: int, length: int) -> bool:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) < offset + length
    except OSError:  # ENXIO: only holes from here on
        return False


def _parents(paths: Iterable[Path]) -> list[Path]:
    """Return every directory on the way to these paths, upper ones first, but not the root."""
    found = {parent for path in paths for parent in path.parents if parent.parts}
    return sorted(found, key=lambda each: each.parts)


def _missing(image: Path, directories: list[Path]) -> list[Path]:
    """Return those that are not there: debugfs breaks the file system making one that is."""
    said = _debugfs(
        image, [f"stat {_quoted(each)}" for each in directories], image.parent
    ).splitlines()
    return [each for each in directories if any(line.startswith(f"/{each}: ") for line in said)]


def _debugfs(image: Path, commands: list[str], scratch: Path) -> str:
    script = scratch / "commands"
    script.write_text("".join(f"{command}\n" for command in commands))
    return _run("debugfs", "-w", "-f", str(script), str(image))


def _complaints(said: str) -> list[str]:
    """Return what debugfs objected to; its exit code is 0 whatever happens.

    That a file to be replaced is not there is as it should be.
    """
    lines = [line.strip() for line in said.splitlines()[1:]]  # the first names the program
    return [line for line in lines if line and not line.startswith(_EXPECTED)]


def _run(*command: str) -> str:
    """Run a program of e2fsprogs and return what it wrote to stderr."""
    try:
        done = subprocess.run(
            command,
            env=_ENVIRONMENT | _NOW,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise GuestError(f"{command[0]} is not installed (Debian: e2fsprogs)") from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise GuestError(f"{command[0]} failed ({done.returncode}): {told[-1]}")
    return done.stderr


def _relative(name: str) -> Path:
    path = Path(name.lstrip("/"))
    if not path.parts or ".." in path.parts or '"' in name or "\n" in name:
        raise GuestError(f"{name!r} cannot name a file")
    return path


def _quoted(path: Path) -> str:
    return f'"/{path}"'


def _check_aligned(offset: int, length: int) -> None:
    if offset % PAGE or length % PAGE:
        raise GuestError(f"{length} bytes at {offset} are not whole blocks of 4 KiB")
