"""An installed system as the file system of a disk: what a first full copy really consists of.

Nobody's random bytes compress as a server's files do. The files come from a directory (such as
debootstrap makes one), or from the Debian packages that are installed on this machine, the
required ones first. One file in 16 is left out, for the guest to install later: its delta.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

MIB: Final = 1 << 20
HELD_BACK: Final = 16
"""One file of so many is not on the disk at first."""
DPKG: Final = Path("/var/lib/dpkg/info")
PRIORITIES: Final = ("required", "important", "standard", "optional", "extra")


class InstalledError(Exception):
    """There is no installed system to take."""


@dataclass
class Installed:
    """A tree of files to make a disk of, and those that come later, by their paths on it."""

    tree: Path
    size: int = 0
    later: dict[str, str] = field(default_factory=dict)


def lay_out(tree: Path, source: Path | None, mib: int) -> Installed:
    """Make a tree of files, hard links where that is possible.

    Args:
        tree: an empty directory to be.
        source: where the system lies; None: on this machine, as its packages list it.
        mib: stop after so much.

    Raises:
        InstalledError: this machine knows no packages.
    """
    root = source or Path("/")
    installed = Installed(tree)
    tree.mkdir()
    for name in _walk(source) if source else _packaged():
        if installed.size >= mib * MIB:
            break
        there, here = root / name, tree / name
        if os.path.lexists(here) or not os.path.lexists(there):
            continue
        if there.is_symlink():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(os.readlink(there))
        elif there.is_file():
            installed.size += there.stat().st_size
            if crc32(os.fsencode(name)) % HELD_BACK == 0 and name.isascii() and '"' not in name:
                installed.later[name] = str(there)
            else:
                here.parent.mkdir(parents=True, exist_ok=True)
                _put(there, here)
    return installed


def make_image(tree: Path, image: Path, size: int) -> None:
    """Make a sparse image of that many bytes with an ext4 file system that holds the tree."""
    with image.open("wb") as file:
        file.truncate(size)
    options = ("-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0", "-d", str(tree))
    done = subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-b", "4096", *options, str(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InstalledError(f"mkfs.ext4: {done.stderr.strip()}")


def _put(there: Path, here: Path) -> None:
    try:
        os.link(there, here)
    except OSError:  # another file system, or not allowed
        with suppress(OSError):
            shutil.copy2(there, here)


def _walk(source: Path) -> Iterator[str]:
    for directory, names, files in os.walk(source):
        names.sort()
        links = [name for name in names if (Path(directory) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield str((Path(directory) / name).relative_to(source))


def _packaged() -> Iterator[str]:
    """Yield the files of the installed packages, in an order that is the same at each run."""
    if shutil.which("dpkg-query") is None:
        raise InstalledError("this is no Debian; give the directory of a system with --tree")
    fields = "${Priority} ${binary:Package}\n"
    said = subprocess.run(
        ["dpkg-query", "-W", "-f", fields], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    packages = [line.split() for line in said.splitlines()]
    for _, name in sorted(packages, key=lambda each: (_rank(each[0]), crc32(each[1].encode()))):
        yield from _listed(name)


def _rank(priority: str) -> int:
    return PRIORITIES.index(priority) if priority in PRIORITIES else len(PRIORITIES)


def _listed(package: str) -> Iterable[str]:
    """Return the files of a package; those of one architecture only are listed without it."""
    for name in (package, package.partition(":")[0]):
        with suppress(FileNotFoundError):
            lines = (DPKG / f"{name}.list").read_text(errors="surrogateescape").splitlines()
            return [_real(Path(line)) for line in lines if line.strip("/.")]
    return []


def _real(path: Path) -> str:
    """Return where a file lies: packages may name it by way of `/lib`, a link to `/usr/lib`."""
    return str((path.parent.resolve() / path.name).relative_to("/"))
