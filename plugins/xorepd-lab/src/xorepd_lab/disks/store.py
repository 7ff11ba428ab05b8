"""Every disk of one SR as a VHD file in a directory, in chains as a file SR keeps them.

A snapshot renames the disk's file to that of a *base copy*, which is hidden and never written
again, and puts two empty leaves on it: one keeps the disk's UUID, the other gets a new one.

    before     web ─► p                 a guest that has `web` open writes on into the new leaf

    after      web ─► base copy ─► p    (base copy: the old file of web, hidden)
               new ─┘

What a process killed half-way leaves is put right when the directory is opened again:

=============================  ===================================================================
found                          means
=============================  ===================================================================
``X.vhd.new``, its parent is   the split had been decided (its base copy exists): the file takes
there and ``X.vhd`` is not     its place
any other ``X.vhd.new``        nothing had been decided: it goes
a visible node with children   the base copy had not been hidden yet: now it is
``N.relink``                   N had been merged into its parent: its children move, N goes
``X.cbtlog.new``               X was to be tracked: it goes
=============================  ===================================================================

What is written where is noted in the disk's changed-block log if it has one, see ``cbt``.

Sources: sm: libs/sm/drivers/FileSR.py (``_snapshot``), libs/sm/cleanup.py (coalesce); blktap:
vhd/lib/vhd-util-snapshot.c (a leaf without data gets no base copy).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from xorepd_lab.disks.cbt import ACTIVATE, DEACTIVATE, CbtLogs
from xorepd_lab.disks.chain import (
    CLONE,
    CREATE,
    DEPTH,
    EXISTS,
    IN_USE,
    IO,
    LOAD,
    RESIZE,
    SIZE,
    Disk,
    DiskError,
    Opened,
    backend_failure,
)
from xorepd_lab.disks.collector import Collected, Collector, Step
from xorepd_lab.disks.tree import Entry, Node, Tree
from xorepd_lab.disks.vhd import BLOCK, MAX_VIRTUAL_SIZE, VhdError, blocks_of, table_size
from xorepd_lab.disks.vhd_file import VhdFile, inspect

__all__ = ["Collected", "Disk", "DiskError", "DiskStore", "Node"]

# sm: libs/sm/vhdutil.py MAX_CHAIN_SIZE, compared with ``vhd-util query -d``, where a disk without a
# parent has depth 1.
MAX_DEPTH: Final = 30
_DISKS: Final = (".vhd", ".vhd.new")


class DiskStore:
    """All disks of one SR.

    Safe from several threads: whatever changes the shape of the tree takes the store's lock,
    writes to one disk take that disk's, reads take none.

    Args:
        directory: Created if need be; what is in it is taken over.
        capacity: Bytes the SR may spend, to be changed at any time; None: what the host has.
        max_size: Largest virtual size of a disk.
    """

    def __init__(
        self, directory: Path, capacity: int | None = None, max_size: int = MAX_VIRTUAL_SIZE
    ) -> None:
        self.directory = directory
        self._capacity = capacity
        self._room = 0  # at least so many bytes are free; found out anew when it is not enough
        self._max_size = max_size
        self.preallocated = False  # whether a disk's space is taken when it is made, not here
        self._lock = threading.RLock()
        self._tree = Tree(directory)
        self._opened: dict[str, Opened] = {}
        self._files: dict[str, VhdFile] = {}  # of every node in a chain that is open
        directory.mkdir(parents=True, exist_ok=True)
        self.logs = CbtLogs(directory, self._must_fit)
        self._recover()

    @property
    def capacity(self) -> int | None:
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int | None) -> None:
        self._capacity, self._room = capacity, 0

    # -- what is there ------------------------------------------------------------------------

    def nodes(self) -> dict[str, Node]:
        """Return everything in the directory; files that appeared or went are noticed here."""
        with self._lock:
            self._tree.scan(keep=self._files)
            self.logs.scan()
            return {uuid: self._tree.node(uuid) for uuid in self._tree.entries}

    def node(self, uuid: str) -> Node:
        """Return one disk or base copy; DiskError 46 when it is not there."""
        with self._lock:
            self._tree.entry(uuid)
            return self._tree.node(uuid)

    def exists(self, uuid: str) -> bool:
        """Tell whether a disk, or base copy, has its file: one whose data is destroyed has not."""
        return self.path(uuid).exists()

    def is_open(self, uuid: str) -> bool:
        """Tell whether somebody has this disk open."""
        with self._lock:
            return uuid in self._opened

    def lose_files(self) -> None:
        """Close every file that is in use, as storage that goes away does: what follows fails."""
        with self._lock:
            for file in self._files.values():
                file.close()

    def path(self, uuid: str) -> Path:
        """Return where the file of a node is, or would be."""
        return self._tree.path(uuid)

    def depth(self, uuid: str) -> int:
        """Return how many files the chain of a node has, itself included."""
        with self._lock:
            return sum(1 for _ in self._tree.lineage(uuid))

    # -- what changes the tree ----------------------------------------------------------------

    def create(self, uuid: str, virtual_size: int) -> int:
        """Make an empty disk and return its size, rounded up to 2 MiB.

        Raises:
            DiskError: 79 for a negative size or one above 2040 GiB, 43 when it exists, 78 when
                there is no space.
        """
        size = self._rounded(virtual_size)
        with self._lock, backend_failure(CREATE):
            self._must_be_new(uuid)
            self._put(uuid, size, None)
            return size

    def split(
        self,
        source: str,
        new: str,
        base_copy: str,
        *,
        give_log: bool = False,
        in_use: bool = False,
    ) -> str | None:
        """Take a snapshot or a clone: put two empty leaves on what the disk holds now.

        Args:
            source: The disk.
            new: The snapshot or clone.
            base_copy: What holds the data from now on, if it is needed.
            give_log: Let the new leaf, a snapshot, take over the changed-block log. When there is
                no room for the next one the source is no longer tracked; that is no failure.
            in_use: Whether somebody may be writing to the source.

        Returns:
            The UUID of the base copy; None when the source had no block of its own, so that the
            new leaf joined it on its parent.

        Raises:
            DiskError: 109 when the chain has 30 files already, 43 when a UUID is taken, 46 for a
                source that is not there, 65 for a base copy, 81 when there is no space.
        """
        with self._lock, backend_failure(CLONE):
            entry = self._tree.entry(source)
            if entry.hidden:
                raise DiskError(LOAD, f"{source} is a base copy")
            if self.depth(source) >= MAX_DEPTH:
                raise DiskError(DEPTH, f"the chain of {source} has {MAX_DEPTH} files")
            self._must_be_new(new)
            self._must_be_new(base_copy)
            opened = self._opened.get(source)
            with opened.writing if opened else contextlib.nullcontext():
                joins = entry.parent is not None and self._is_empty(source)
                if joins:
                    self._put(new, entry.virtual_size, entry.parent)
                else:
                    self._split(source, new, base_copy)
                if give_log and self.logs.has(source):
                    with contextlib.suppress(OSError, DiskError):
                        self.logs.snapshot(source, new, entry.virtual_size, in_use)
                return None if joins else base_copy

    def resize(self, uuid: str, virtual_size: int) -> int:
        """Grow a disk nobody has open and return its size, rounded up to 2 MiB.

        When there is no room for the longer log the disk is no longer tracked.

        Raises:
            DiskError: 79 for a shrink or too large a size, 24 when it is open.
        """
        with self._lock, backend_failure(RESIZE):
            entry = self._tree.entry(uuid)
            size = self._rounded(virtual_size)
            if size < entry.virtual_size:
                raise DiskError(SIZE, "shrinking not allowed")
            self._must_be_closed(uuid)
            if size > entry.virtual_size:
                with contextlib.closing(self._load(uuid)) as file:
                    file.grow(size)
                entry.virtual_size = size
                try:
                    self.logs.grow(uuid, size)
                except (OSError, DiskError):
                    self.logs.remove(uuid)
            return size

    def destroy(self, uuid: str) -> None:
        """Remove a disk's file; a node with children is only hidden, for ``collect``.

        Its changed-block log is merged into that of what follows.
        """
        with self._lock, backend_failure(IO):
            self.destroy_data(uuid)
            self.logs.merge(uuid)

    def destroy_data(self, uuid: str) -> None:
        """Remove a disk's file and keep its changed-block log."""
        with self._lock, backend_failure(IO):
            self._tree.entry(uuid)
            if self._tree.children().get(uuid):
                self._hide(uuid)
                return
            self._must_be_closed(uuid)
            self.path(uuid).unlink()
            del self._tree.entries[uuid]

    def track(self, uuid: str, in_use: bool) -> None:
        """Begin to note which blocks of a disk are written; no change when that is done already.

        Raises:
            DiskError: 457 when there is no room for the log.
        """
        with self._lock:
            size = self._tree.entry(uuid).virtual_size
            if not self.logs.has(uuid):
                with backend_failure(ACTIVATE):
                    self.logs.create(uuid, size, consistent=not in_use)

    def untrack(self, uuid: str) -> None:
        """Stop noting the changes of a disk and forget those noted.

        Raises:
            DiskError: 458 when the log cannot be removed.
        """
        with self._lock, backend_failure(DEACTIVATE):
            if self.logs.has(uuid):
                self.logs.stop(uuid)

    def collect(self, leaves: bool = False) -> Collected:
        """Do one whole garbage collection and return what it changed.

        Hidden nodes without children go. A hidden node that is its hidden parent's only child is
        merged into the parent, its children moving up. A chain that is open is left alone.

        Args:
            leaves: Also merge a disk that is alone on its base copy into that.
        """
        with self._lock, backend_failure(IO):
            return Collector(self._tree, self._files, self._load).run(leaves)

    def next_step(self, kept: Container[str], merge: bool = True, busy: bool = True) -> Step | None:
        """Return what a garbage collection would do first.

        Args:
            kept: Disks that stay what they are: none of them is merged into its base copy.
            merge: Whether base copies may be merged; otherwise they only go when nobody needs them.
            busy: Whether chains that are open are left out.
        """
        with self._lock:
            self._tree.scan(keep=self._files)
            collector = Collector(self._tree, self._files if busy else (), self._load)
            return collector.next(lambda uuid: merge and uuid not in kept, merge)

    def do_step(self, step: Step) -> bool:
        """Do one step of a garbage collection, if it still is to be done."""
        with self._lock, backend_failure(IO):
            collector = Collector(self._tree, self._files, self._load)
            possible = step.uuid in self._tree.entries and collector.can(step)
            if possible:
                collector.do(step)
            return possible

    # -- open disks ---------------------------------------------------------------------------

    def open(self, uuid: str, writable: bool = False) -> Disk:
        """Open a disk; close it with ``with`` or ``close()``.

        Raises:
            DiskError: 46 when it is missing, 65 when it is broken, or a file of its chain missing
                or broken, or when a base copy is to be written.
        """
        with self._lock, backend_failure(LOAD):
            if self._tree.entry(uuid).hidden and writable:
                raise DiskError(LOAD, f"{uuid} is a base copy")
            opened = self._opened.get(uuid)
            if opened is None:
                opened = Opened(self._load_chain(uuid), partial(self.logs.mark, uuid))
                self._opened[uuid] = opened
            opened.handles += 1
            return Disk(uuid, opened, writable, self._release)

    def _release(self, uuid: str, opened: Opened) -> None:
        with self._lock:
            opened.handles -= 1
            if opened.handles == 0:
                del self._opened[uuid]
                self._close_unused()

    def _load_chain(self, uuid: str) -> tuple[VhdFile, ...]:
        try:
            for each in self._tree.lineage(uuid):
                if each not in self._files:
                    self._files[each] = self._load(each)
        except BaseException:
            self._close_unused()
            raise
        return tuple(self._files[each] for each in self._tree.lineage(uuid))

    def _close_unused(self) -> None:
        used = {id(file) for opened in self._opened.values() for file in opened.chain}
        for uuid in [each for each, file in self._files.items() if id(file) not in used]:
            self._files.pop(uuid).close()

    def _load(self, uuid: str) -> VhdFile:
        return VhdFile(self.path(uuid), self._must_fit)

    def spent(self) -> int:
        """Return how many bytes the files take."""
        files = os.scandir(self.directory)
        disks = sum(each.stat().st_size for each in files if each.name.endswith(_DISKS))
        return disks + sum(self.logs.sizes().values())

    def _must_fit(self, size: int) -> None:
        if self._capacity is None or self.preallocated:
            return
        if size > self._room:
            self._room = self._capacity - self.spent()
            if size > self._room:
                raise OSError(errno.ENOSPC, f"{size} bytes do not fit, {self._room} are free")
        self._room -= size

    # -- split --------------------------------------------------------------------------------

    def _put(self, uuid: str, virtual_size: int, parent: str | None) -> None:
        fresh = self._make_fresh(uuid, virtual_size, parent, parent)
        fresh.rename(self.path(uuid))
        self._tree.entries[uuid] = Entry(parent, False, virtual_size)

    def _make_fresh(self, uuid: str, size: int, parent: str | None, link_to: str | None) -> Path:
        """Write an empty leaf beside its place; ``link_to`` is the file the parent is now."""
        link = None
        if parent is not None and link_to is not None:
            with self._borrowed(link_to) as file:
                link = file.as_parent(self.path(parent).name)
        self._must_fit(table_size(blocks_of(size)))
        fresh = _fresh(self.path(uuid))
        fresh.unlink(missing_ok=True)
        try:
            VhdFile.create(fresh, size, link).close()
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        return fresh

    def _split(self, source: str, new: str, base_copy: str) -> None:
        entry = self._tree.entries[source]
        size = entry.virtual_size
        opened = self._opened.get(source)
        leaf: VhdFile | None = None
        try:
            fresh = [self._make_fresh(each, size, base_copy, source) for each in (source, new)]
            leaf = VhdFile(fresh[0], self._must_fit) if opened else None
            self.path(source).rename(self.path(base_copy))  # from here on it is decided
        except OSError:
            for uuid in (source, new):
                _fresh(self.path(uuid)).unlink(missing_ok=True)
            if leaf is not None:
                leaf.close()
            raise
        for path, uuid in zip(fresh, (source, new), strict=True):
            path.rename(self.path(uuid))
        self._tree.entries[base_copy] = Entry(entry.parent, False, size)
        self._tree.entries[source] = Entry(base_copy, False, size)
        self._tree.entries[new] = Entry(base_copy, False, size)
        if opened is not None and leaf is not None:
            base = self._files[base_copy] = self._files.pop(source)
            base.path, leaf.path = self.path(base_copy), self.path(source)
            self._files[source] = leaf
            opened.chain = (leaf, *opened.chain)
        self._hide(base_copy)

    @contextlib.contextmanager
    def _borrowed(self, uuid: str) -> Iterator[VhdFile]:
        """The file of a node, the open one if there is one, to be left as it was."""
        if uuid in self._files:
            yield self._files[uuid]
            return
        with contextlib.closing(self._load(uuid)) as file:
            yield file

    def _is_empty(self, uuid: str) -> bool:
        with self._borrowed(uuid) as file:
            return file.is_empty

    def _hide(self, uuid: str) -> None:
        with self._borrowed(uuid) as file:
            file.set_hidden(True)
        self._tree.entries[uuid].hidden = True

    # -- the directory ------------------------------------------------------------------------

    def _recover(self) -> None:
        for fresh in sorted(self.directory.glob("*.vhd.new")):
            final = fresh.with_suffix("")
            with contextlib.suppress(VhdError):
                parent = inspect(fresh)[1].parent_name
                if not final.exists() and parent and (self.directory / parent).exists():
                    fresh.rename(final)
                    continue
            fresh.unlink()
        for path in self.directory.glob("*.vhd"):
            with contextlib.suppress(VhdError, OSError):
                VhdFile(path).close()  # loading repairs the ends of the file
        self._tree.scan()
        for journal in sorted(self.directory.glob("*.relink")):
            if journal.stem in self._tree.entries:
                Collector(self._tree, self._files, self._load).finish(journal.stem)
            else:
                journal.unlink()
        parents = {entry.parent for entry in self._tree.entries.values()}
        for uuid, entry in self._tree.entries.items():
            if uuid in parents and not entry.hidden:
                self._hide(uuid)

    def _rounded(self, virtual_size: int) -> int:
        """Round up to 2 MiB. Source: sm: libs/sm/vhdutil.py, validate_and_round_vhd_size."""
        if not 0 <= virtual_size <= self._max_size:
            largest = self._max_size >> 20
            raise DiskError(SIZE, f"VDI size must be between 1 MB and {largest} MB")
        return max(1, blocks_of(virtual_size)) * BLOCK

    def _must_be_new(self, uuid: str) -> None:
        if self.path(uuid).exists():
            raise DiskError(EXISTS, f"the VDI {uuid} already exists")

    def _must_be_closed(self, uuid: str) -> None:
        if uuid in self._files:
            raise DiskError(IN_USE, f"the VDI {uuid} is currently in use")


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")
