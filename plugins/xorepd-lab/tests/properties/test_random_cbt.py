"""The lab's changed-block logs against a pure model, through any life a tracked disk can have.

The model knows two things of each element: what each of its 64 KiB blocks was last filled with, and
which of them were written since the element before it. What the logs answer about two elements must
follow from that; then what the older one holds, with the changed blocks of the newer one, is the
newer one.
"""

import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
)

from xorepd_lab.disks.cbt import BLOCK as TRACKED
from xorepd_lab.disks.chain import DiskError
from xorepd_lab.disks.store import DiskStore
from xorepd_lab.disks.vhd import BLOCK

PER_BLOCK: Final = BLOCK // TRACKED
SECTOR: Final = 512
PLACES: Final = st.tuples(st.integers(0, 3 * PER_BLOCK - 1), st.integers(1, 40))
ENOUGH: Final = 6
"""With more disks than that, most of what happens has nothing to do with each other."""


@dataclass
class Element:
    """A disk, a snapshot, or what is left of one.

    Attributes:
        size: In tracked blocks.
        content: The seed that each block was last filled with; 0 for never.
        since: Blocks written since the element before it; None when it is not tracked.
        line: The elements of its line, oldest first; shared by all of them.
    """

    size: int
    content: dict[int, int] = field(default_factory=dict)
    since: set[int] | None = None
    line: list[str] = field(default_factory=list)
    has_data: bool = True


def filled(seed: int) -> bytes:
    return (
        bytes(TRACKED) if seed == 0 else random.Random(seed).randbytes(SECTOR) * (TRACKED // SECTOR)
    )


class Lives(RuleBasedStateMachine):
    disks = Bundle("disks")
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="lab-cbt-"))
        self.store = DiskStore(self.directory)
        self.elements: dict[str, Element] = {}
        self.numbers = 0

    def teardown(self) -> None:
        try:
            self.every_pair_is_as_the_model_says()
        finally:
            shutil.rmtree(self.directory)

    def new_uuid(self) -> str:
        self.numbers += 1
        return str(UUID(int=self.numbers))

    # -- what can happen ------------------------------------------------------------------------

    @initialize(target=disks, blocks=st.integers(1, 3))
    def first(self, blocks: int) -> str:
        uuid = self.new_uuid()
        self.store.create(uuid, blocks * BLOCK)
        self.elements[uuid] = Element(blocks * PER_BLOCK)
        self.enable(uuid)
        return uuid

    @rule(uuid=disks)
    def enable(self, uuid: str) -> None:
        element = self.elements[uuid]
        self.store.track(uuid, in_use=False)
        if element.since is None:
            element.since, element.line = set(), [uuid]

    @rule(uuid=disks, unclean=st.booleans(), again=st.booleans())
    def stop_tracking(self, uuid: str, unclean: bool, again: bool) -> None:
        """Switch it off, or lose the host and find that out when the disk is used again."""
        element = self.elements[uuid]
        if unclean:
            self.store.logs.set_consistent(uuid, False)
            assert not self.store.logs.is_consistent(uuid)
        self.store.untrack(uuid)
        if element.since is not None:
            element.line.remove(uuid)
            element.since, element.line = None, []
        if again:
            self.enable(uuid)

    @rule(uuid=disks, places=st.lists(PLACES, min_size=1, max_size=4))
    def write(self, uuid: str, places: list[tuple[int, int]]) -> None:
        for first, count in places:
            self.fill(uuid, first, count)

    def fill(self, uuid: str, first: int, count: int) -> None:
        element = self.elements[uuid]
        first %= element.size
        places = range(first, min(first + count, element.size))
        self.numbers += 1
        with self.store.open(uuid, writable=True) as disk:
            disk.write(first * TRACKED, filled(self.numbers) * len(places))
        element.content.update(dict.fromkeys(places, self.numbers))
        if element.since is not None:
            element.since.update(places)

    @rule(uuid=disks, sector=st.integers(0, 3 * BLOCK // SECTOR - 1))
    def write_one_sector_again(self, uuid: str, sector: int) -> None:
        """Write what is there: a write is a change whatever it writes."""
        element = self.elements[uuid]
        sector %= element.size * TRACKED // SECTOR
        with self.store.open(uuid, writable=True) as disk:
            disk.write(sector * SECTOR, disk.read(sector * SECTOR, SECTOR))
        if element.since is not None:
            element.since.add(sector * SECTOR // TRACKED)

    @rule(target=snapshots, uuid=disks, places=st.lists(st.one_of(st.none(), PLACES), max_size=3))
    def snapshots_with_writes_between(
        self, uuid: str, places: list[tuple[int, int] | None]
    ) -> MultipleResults[str]:
        taken = [self.snapshot(uuid)]
        for place in places:
            if place is not None:
                self.fill(uuid, *place)
            taken.append(self.snapshot(uuid))
        return multiple(*taken)

    def snapshot(self, uuid: str) -> str:
        element, new = self.elements[uuid], self.new_uuid()
        self.store.split(uuid, new, self.new_uuid(), give_log=True)
        copy = Element(element.size, dict(element.content), element.since, element.line)
        if element.since is not None:
            element.line.insert(element.line.index(uuid), new)
            element.since = set()
        self.elements[new] = copy
        return new

    @rule(target=disks, uuid=st.one_of(disks, snapshots))
    def clone(self, uuid: str) -> str | MultipleResults[str]:
        element, new = self.elements[uuid], self.new_uuid()
        if not element.has_data or len(self.elements) > ENOUGH:
            return multiple()
        self.store.split(uuid, new, self.new_uuid())
        self.elements[new] = Element(element.size, dict(element.content))
        return new

    @rule(uuid=disks, blocks=st.integers(0, 2))
    def grow(self, uuid: str, blocks: int) -> None:
        element = self.elements[uuid]
        if element.size < 8 * PER_BLOCK:
            element.size += blocks * PER_BLOCK
            self.store.resize(uuid, element.size * TRACKED)

    @rule(uuid=snapshots)
    def destroy_data(self, uuid: str) -> None:
        element = self.elements[uuid]
        if element.has_data and element.since is not None:
            self.store.destroy_data(uuid)
            element.has_data = False

    @rule(uuid=consumes(snapshots))
    def destroy(self, uuid: str) -> None:
        element = self.elements.pop(uuid)
        if element.has_data:
            self.store.destroy(uuid)
        else:
            self.store.logs.merge(uuid)
        if element.since is not None:
            place = element.line.index(uuid)
            element.line.remove(uuid)
            if place < len(element.line):
                self.logged(element.line[place]).update(element.since)

    @rule(leaves=st.booleans())
    def collect(self, leaves: bool) -> None:
        self.store.collect(leaves)

    @rule()
    def start_again(self) -> None:
        """What is in the files is all there is."""
        self.store = DiskStore(self.directory)

    # -- what must hold -------------------------------------------------------------------------

    def logged(self, uuid: str) -> set[int]:
        since = self.elements[uuid].since
        assert since is not None
        return since

    def expected(self, older: str, newer: str) -> set[int] | None:
        """Return the changed blocks; None when the two have nothing to do with each other."""
        before, after = self.elements[older], self.elements[newer]
        if before.since is None or after.since is None or before.line is not after.line:
            return None
        start, end = before.line.index(older), before.line.index(newer)
        if start >= end:
            return None
        return set().union(*(self.logged(uuid) for uuid in before.line[start + 1 : end + 1]))

    @rule()
    def every_pair_is_as_the_model_says(self) -> None:
        for uuid, element in self.elements.items():
            assert self.store.logs.has(uuid) == (element.since is not None)
        for older in self.elements:
            for newer in self.elements:
                self.check_pair(older, newer)

    def check_pair(self, older: str, newer: str) -> None:
        expected = self.expected(older, newer)
        if expected is None:
            with pytest.raises(DiskError) as error:
                self.store.logs.changed(older, newer)
            assert error.value.backend == 460
            return
        bitmap = self.store.logs.changed(older, newer)
        after = self.elements[newer]
        assert len(bitmap) == -(-after.size // 8)
        bits = f"{int.from_bytes(bitmap):0{len(bitmap) * 8}b}"
        changed = {block for block, bit in enumerate(bits) if bit == "1"}
        assert changed == expected, (older, newer)
        before = self.elements[older]
        rebuilt = {block: seed for block, seed in before.content.items() if block not in changed}
        rebuilt |= {block: seed for block, seed in after.content.items() if block in changed}
        assert rebuilt == after.content
        if after.has_data:
            with self.store.open(newer) as disk:
                for block in sorted(changed)[:2] + sorted(after.content)[:1]:
                    data = disk.read(block * TRACKED, TRACKED)
                    assert data == filled(after.content.get(block, 0))


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
