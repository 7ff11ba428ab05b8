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
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from xorepd_lab.disks.chain import DiskError, runs
from xorepd_lab.disks.tree import Tree
from xorepd_lab.disks.vhd_file import VhdFile


class Kind(Enum):
    """What a step does to its node, see the drawing above."""

    GARBAGE = auto()
    MERGE = auto()
    LEAF = auto()


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, and the disks whose chain it changes."""

    kind: Kind
    uuid: str
    leaves: tuple[str, ...] = ()


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
        while (step := self.next(leaf=lambda _: leaves)) is not None:
            removed.append(self.do(step))
        kept = {child: to for child, to in self._relinked.items() if child not in removed}
        return Collected(tuple(removed), kept)

    def next(self, leaf: Callable[[str], bool], merge: bool = True) -> Step | None:
        """Return what is to be done first, if anything is.

        Args:
            leaf: Tells whether a disk may be merged into its base copy.
            merge: Whether base copies may be merged.
        """
        children = self._tree.children()
        for uuid, entry in self._tree.entries.items():
            if entry.hidden and uuid not in self._busy and uuid not in children:
                return Step(Kind.GARBAGE, uuid)
        if not merge:
            return None
        found = list(self._only_children(hidden=True))
        if found:
            # The tallest tree is nearest to the limit.
            uuid = max(found, key=lambda each: self._tree_height(each, children))
            return Step(Kind.MERGE, uuid, tuple(self._leaves(uuid, children)))
        for uuid in self._only_children(hidden=False):
            if leaf(uuid):
                return Step(Kind.LEAF, uuid, (uuid,))
        return None

    def can(self, step: Step) -> bool:
        """Say whether a step is still to be done: others may have changed the tree since."""
        if step.kind is Kind.GARBAGE:
            entry = self._tree.entries[step.uuid]
            free = step.uuid not in self._busy and step.uuid not in self._tree.children()
            return entry.hidden and free
        return step.uuid in self._only_children(hidden=step.kind is Kind.MERGE)

    def do(self, step: Step) -> str:
        """Do one step and return the node that is gone."""
        match step.kind:
            case Kind.GARBAGE:
                self._tree.path(step.uuid).unlink()
                del self._tree.entries[step.uuid]
            case Kind.MERGE:
                self._merge(step.uuid)
            case Kind.LEAF:
                return self._merge_leaf(step.uuid)
        return step.uuid

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

    def _only_children(self, hidden: bool) -> Iterator[str]:
        """Yield nodes alone on a hidden parent that nobody reads, not even through another leaf."""
        children = self._tree.children()
        for uuid, entry in self._tree.entries.items():
            parent = self._tree.entries.get(entry.parent) if entry.parent else None
            alone = children[entry.parent] == [uuid] and entry.parent not in self._busy
            if entry.hidden == hidden and parent and parent.hidden and alone:
                yield uuid

    def _tree_height(self, uuid: str, children: dict[str | None, list[str]]) -> int:
        try:
            *_, root = self._tree.lineage(uuid)
        except DiskError:  # the chain is broken
            return 0
        return self._height(root, children)

    def _height(self, uuid: str, children: dict[str | None, list[str]]) -> int:
        below = (self._height(child, children) for child in children.get(uuid, ()))
        return 1 + max(below, default=0)

    def _leaves(self, uuid: str, children: dict[str | None, list[str]]) -> Iterator[str]:
        if uuid not in children:
            yield uuid
        for child in children.get(uuid, ()):
            yield from self._leaves(child, children)

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
