"""Disks as software reads them that we did not write: libvhdi for VHD chains, e2fsprogs for ext4.

libvhdi does not look for parents itself: each level is opened and handed over. It misreads blocks
whose sectors are mixed below 4 KiB, so what is judged here is written in multiples of 4 KiB; and it
refuses what lies beyond the end of a smaller parent, so disks that have grown are judged otherwise.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyvhdi

from xorepd_lab.demo.needs import find_tool

MiB = 1024 * 1024


class Disk:
    """One VDI of a file-based SR, read through its whole chain by libvhdi."""

    def __init__(self, directory: Path, uuid: str) -> None:
        self._files: list[Any] = []
        self.paths: list[Path] = []
        """The files of the chain, the youngest first."""
        name: str | None = f"{uuid}.vhd"
        while name:
            file = pyvhdi.file()
            self.paths.append(directory / Path(name).name)
            file.open(str(self.paths[-1]))
            if self._files:
                self._files[-1].set_parent(file)
            self._files.append(file)
            name = file.get_parent_filename()
        self.size: int = self._files[0].get_media_size()
        self.depth = len(self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()

    def read(self, offset: int, size: int) -> bytes:
        """Return so many bytes of what a guest would read there; fewer at the end of the disk."""
        self._files[0].seek(offset)
        return bytes(self._files[0].read(size))

    def sha256(self) -> str:
        """Return the SHA-256 of everything that a guest could read."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, 4 * MiB):
            wanted = min(4 * MiB, self.size - offset)
            data = self.read(offset, wanted)
            if len(data) < wanted:
                raise EOFError(f"libvhdi ends early, in the {wanted} bytes at {offset}")
            digest.update(data)
        return digest.hexdigest()

    def save(self, image: Path) -> None:
        """Write the disk as a raw image; zeroes become holes."""
        zeroes = bytes(MiB)
        self._files[0].seek(0)
        with image.open("wb") as raw:
            for offset in range(0, self.size, MiB):
                data = self._files[0].read(min(MiB, self.size - offset))
                if data != zeroes[: len(data)]:
                    raw.seek(offset)
                    raw.write(data)
            raw.truncate(self.size)


def virtual_size(directory: Path, uuid: str) -> int:
    """Return the bytes that a guest sees."""
    with Disk(directory, uuid) as disk:
        return disk.size


def sha256(directory: Path, uuid: str) -> str:
    """Return the SHA-256 of a VDI as libvhdi reads it."""
    with Disk(directory, uuid) as disk:
        return disk.sha256()


def check_ext4(image: Path) -> str:
    """Return what e2fsck says of a filesystem, which it does not change.

    Raises:
        subprocess.CalledProcessError: it finds anything wrong.
    """
    done = subprocess.run(
        [_tool("e2fsck"), "-f", "-n", image.name],
        cwd=image.parent,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout.strip().splitlines()[-1]


def read_ext4_file(image: Path, path: str) -> bytes:
    """Return a file's content from a filesystem image."""
    command = [_tool("debugfs"), "-R", f"cat {path}", str(image)]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout


def _tool(name: str) -> str:
    found = find_tool(name)
    if found is None:
        raise FileNotFoundError(f"{name} is missing: install the package e2fsprogs")
    return found
