"""Garbage collection and coalescing: what becomes of files that no VDI needs as they are.

    garbage     base copy, hidden, nothing on it                    it goes
    merge       P ◄─ N ◄─ children, both hidden, N alone on P       N's data into P, children on P
    leaf        P ◄─ L, L a disk alone on its hidden base copy P    L's data into P, P becomes L

Each step leaves every disk readable whenever the process is killed: data moved down changes nothing
as long as it is also above, and only then files are relinked, renamed or removed.

Source: sm: libs/sm/cleanup.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

from xorepd.lab.chain import runs
from xorepd.lab.tree import Tree
from xorepd.lab.vhd_file import VhdFile


@dataclass(frozen=True, slots=True)
class Collected:
    """What one garbage collection changed."""

    removed: tuple[str, ...]
    relinked: dict[str, str | None]  # child: its new parent; None only by a merged leaf


class Collector:
    """One garbage collection of a tree nobody else changes meanwhile.

    Args:
        tree: The files.
        busy: Nodes that are part of a chain somebody has open; nothing is merged into them.
        load: Opens a node's file.
    """

    def __init__(self, tree: Tree, busy: Container[str], load: Callable[[str], VhdFile]) -> None:
        self._tree = tree
        self._busy = busy
        self._load = load
        self._relinked: dict[str, str | None] = {}

    def run(self, leaves: bool) -> Collected:
        """Do all there is to do, one step after another as each makes room for the next."""
        removed: list[str] = []
        while True:
            if (victim := self._garbage()) is not None:
                self._tree.path(victim).unlink()
                del self._tree.entries[victim]
            elif (victim := self._only_child(hidden=True)) is not None:
                self._merge(victim)
            elif leaves and (leaf := self._only_child(hidden=False)) is not None:
                victim = self._merge_leaf(leaf)
            else:
                break
            removed.append(victim)
        kept = {child: to for child, to in self._relinked.items() if child not in removed}
        return Collected(tuple(removed), kept)

    def finish(self, uuid: str) -> None:
        """Finish a merge that was cut off: give a node's children to its parent, remove it."""
        parent = self._tree.entries[uuid].parent
        assert parent is not None
        with contextlib.closing(self._load(parent)) as file:
            link = file.as_parent()
        for child in self._tree.children().get(uuid, []):
            with contextlib.closing(self._load(child)) as file:
                file.relink(link)
            self._tree.entries[child].parent = parent
            self._relinked[child] = parent
        self._tree.path(uuid).unlink()
        del self._tree.entries[uuid]
        journal_of(self._tree.path(uuid)).unlink()

    def _garbage(self) -> str | None:
        children = self._tree.children()
        for uuid, entry in self._tree.entries.items():
            if entry.hidden and uuid not in self._busy and uuid not in children:
                return uuid
        return None

    def _only_child(self, hidden: bool) -> str | None:
        """A node alone on a hidden parent that nobody reads, not even through another leaf."""
        children = self._tree.children()
        for uuid, entry in self._tree.entries.items():
            parent = self._tree.entries.get(entry.parent) if entry.parent else None
            alone = children[entry.parent] == [uuid] and entry.parent not in self._busy
            if entry.hidden == hidden and parent and parent.hidden and alone:
                return uuid
        return None

    def _merge(self, uuid: str) -> None:
        self._move_data_down(uuid)
        # Were the children moved without a note, a kill between two of them would leave both
        # nodes with children, and neither would ever be merged again.
        journal_of(self._tree.path(uuid)).touch()
        self.finish(uuid)

    def _merge_leaf(self, uuid: str) -> str:
        parent = self._move_data_down(uuid)
        entry = self._tree.entries[parent]
        with contextlib.closing(self._load(parent)) as file:
            file.set_hidden(False)
        self._tree.path(parent).rename(self._tree.path(uuid))
        entry.hidden = False
        self._tree.entries[uuid] = entry
        del self._tree.entries[parent]
        self._relinked[uuid] = entry.parent
        return parent

    def _move_data_down(self, uuid: str) -> str:
        """Write what a node holds into its parent as well; return the parent."""
        to = self._tree.entries[uuid].parent
        assert to is not None
        with (
            contextlib.closing(self._load(uuid)) as child,
            contextlib.closing(self._load(to)) as parent,
        ):
            if parent.virtual_size < child.virtual_size:
                parent.grow(child.virtual_size)
            for index in child.allocated():
                for first, count in runs(child.sectors(index)):
                    parent.write(index, first, child.read(index, first, count))
        self._tree.entries[to].virtual_size = self._tree.entries[uuid].virtual_size
        return to


def journal_of(path: Path) -> Path:
    """Return the file whose presence says: this node's children are being moved."""
    return path.with_suffix(".relink")
