"""Who is whose parent among the VHD files of one directory, as the files themselves say."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from xorepd_lab.disks.chain import LOAD, UNAVAILABLE, DiskError
from xorepd_lab.disks.vhd import DIFFERENCING, VhdError
from xorepd_lab.disks.vhd_file import inspect

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, slots=True)
class Node:
    """One file of the SR: a VDI, or a base copy when hidden. Sizes in bytes."""

    uuid: str
    parent: str | None
    hidden: bool
    virtual_size: int
    physical_size: int


@dataclass(slots=True)
class Entry:
    """What the tree keeps of a file in mind."""

    parent: str | None
    hidden: bool
    virtual_size: int


class Tree:
    """The files ``<uuid>.vhd`` of a directory. Not safe by itself: its owner has the lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.entries: dict[str, Entry] = {}

    def path(self, uuid: str) -> Path:
        """Return where the file of a node is, or would be."""
        if not _NAME.fullmatch(uuid):
            raise DiskError(LOAD, f"{uuid!r} cannot name a VDI")
        return self.directory / f"{uuid}.vhd"

    def scan(self, keep: Container[str] = ()) -> None:
        """Notice files that appeared and files that went; those to keep stay known."""
        found = {path.stem: path for path in self.directory.glob("*.vhd")}
        for uuid in [each for each in self.entries if each not in found]:
            if uuid not in keep:
                del self.entries[uuid]
        for uuid, path in found.items():
            if uuid not in self.entries and _NAME.fullmatch(uuid):
                with contextlib.suppress(VhdError, OSError):  # a broken file is no VDI
                    footer, header = inspect(path)
                    differencing = footer.disk_type == DIFFERENCING
                    parent = header.parent_name.removesuffix(".vhd") if differencing else None
                    self.entries[uuid] = Entry(parent, footer.hidden, footer.virtual_size)

    def node(self, uuid: str) -> Node:
        """Return one node as the outside sees it."""
        entry = self.entry(uuid)
        physical = self.path(uuid).stat().st_size
        return Node(uuid, entry.parent, entry.hidden, entry.virtual_size, physical)

    def entry(self, uuid: str) -> Entry:
        """Return what is known of a node; DiskError 46 when its file is not there."""
        if uuid not in self.entries or not self.path(uuid).exists():
            raise DiskError(UNAVAILABLE, f"VDI {uuid} not found")
        return self.entries[uuid]

    def lineage(self, uuid: str) -> Iterator[str]:
        """Yield a node and its ancestors; a chain that runs into nothing or a circle is broken."""
        self.entry(uuid)
        seen: set[str] = set()
        current: str | None = uuid
        while current is not None:
            if current in seen:
                raise DiskError(LOAD, f"the chain of {uuid} runs in a circle")
            if current not in self.entries:
                raise DiskError(LOAD, f"{current}, in the chain of {uuid}, is missing")
            seen.add(current)
            yield current
            current = self.entries[current].parent

    def children(self) -> dict[str | None, list[str]]:
        """Return the children of each node that has some; under None, the roots."""
        found: dict[str | None, list[str]] = {}
        for uuid, entry in self.entries.items():
            found.setdefault(entry.parent, []).append(uuid)
        return found
