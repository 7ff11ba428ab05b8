"""The lab's disks against a dictionary of sectors, through any life a disk can have."""

import shutil
import tempfile
from pathlib import Path
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from xorepd_lab.disks.store import Disk, DiskStore
from xorepd_lab.disks.vhd import BLOCK
from xorepd_lab.wire.streams import ChunkedRawImport, RawExport, VhdExport, VhdImport

SECTOR: Final = 512
PER_BLOCK: Final = BLOCK // SECTOR
# Places where something can go wrong: the edges of blocks and of bitmap bytes.
PLACES: Final = st.one_of(
    st.sampled_from([0, 1, 7, 8, 15, PER_BLOCK - 9, PER_BLOCK - 1, PER_BLOCK, 2 * PER_BLOCK - 1]),
    st.integers(0, 3 * PER_BLOCK - 1),
)
COUNTS: Final = st.one_of(
    st.integers(1, 24), st.sampled_from([PER_BLOCK - 1, PER_BLOCK, PER_BLOCK + 9])
)


class Model:
    """A disk as a dictionary: sector number to the byte it is filled with; absent = zero."""

    def __init__(self, blocks: int, sectors: dict[int, int] | None = None) -> None:
        self.blocks = blocks
        self.sectors = dict(sectors or {})

    def copy(self) -> "Model":
        return Model(self.blocks, self.sectors)

    def content(self) -> bytes:
        found = bytearray(self.blocks * BLOCK)
        for sector, value in self.sectors.items():
            found[sector * SECTOR : (sector + 1) * SECTOR] = bytes([value]) * SECTOR
        return bytes(found)


def content(store: DiskStore, uuid: str) -> bytes:
    with store.open(uuid) as disk:
        return disk.read(0, disk.virtual_size)


class Lives(RuleBasedStateMachine):
    disks = Bundle("disks")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="lab-disks-"))
        self.store = DiskStore(self.directory)
        self.models: dict[str, Model] = {}
        self.handles: dict[str, Disk] = {}
        self.named = 0

    def teardown(self) -> None:
        for handle in self.handles.values():
            handle.close()
        try:
            self.everything_reads_as_it_should()
        finally:
            shutil.rmtree(self.directory)

    def name(self, kind: str) -> str:
        self.named += 1
        return f"{kind}{self.named}"

    def everything_reads_as_it_should(self) -> None:
        for uuid, model in self.models.items():
            assert content(self.store, uuid) == model.content(), uuid

    @initialize(target=disks)
    def first(self) -> str:
        return self.make(blocks=2)

    @rule(target=disks, blocks=st.integers(1, 3))
    def create(self, blocks: int) -> str:
        return self.make(blocks)

    def make(self, blocks: int) -> str:
        uuid = self.name("disk")
        self.store.create(uuid, blocks * BLOCK)
        self.models[uuid] = Model(blocks)
        return uuid

    @rule(uuid=disks, first=PLACES, count=COUNTS, value=st.integers(0, 255))
    def write(self, uuid: str, first: int, count: int, value: int) -> None:
        model = self.models[uuid]
        first %= model.blocks * PER_BLOCK
        count = min(count, model.blocks * PER_BLOCK - first)
        with self.store.open(uuid, writable=True) as disk:
            disk.write(first * SECTOR, bytes([value]) * SECTOR * count)
        model.sectors.update(dict.fromkeys(range(first, first + count), value))

    @rule(uuid=disks, first=PLACES, count=COUNTS)
    def trim(self, uuid: str, first: int, count: int) -> None:
        model = self.models[uuid]
        first %= model.blocks * PER_BLOCK
        count = min(count, model.blocks * PER_BLOCK - first)
        with self.store.open(uuid, writable=True) as disk:
            disk.trim(first * SECTOR, count * SECTOR)
        model.sectors.update(dict.fromkeys(range(first, first + count), 0))

    @rule(target=disks, uuid=disks)
    def split(self, uuid: str) -> str:
        new, base = self.name("disk"), self.name("base")
        made = self.store.split(uuid, new, base)
        assert made in (base, None)
        self.models[new] = self.models[uuid].copy()
        return new

    @rule(uuid=disks, blocks=st.sampled_from([0, 1, 130]))
    def resize(self, uuid: str, blocks: int) -> None:
        model = self.models[uuid]
        if uuid in self.handles or model.blocks + blocks > 140:
            return
        before, kept = model.content(), len(model.content())
        self.store.resize(uuid, (model.blocks + blocks) * BLOCK)
        with self.store.open(uuid) as disk:
            assert disk.virtual_size == (model.blocks + blocks) * BLOCK
            assert disk.read(0, kept) == before
        if blocks < 100:
            model.blocks += blocks
        else:  # comparing all of such a disk at every turn would take too long
            self.store.destroy(uuid)
            self.store.create(uuid, model.blocks * BLOCK)
            self.models[uuid] = Model(model.blocks)

    @rule(uuid=consumes(disks))
    def destroy(self, uuid: str) -> None:
        if uuid in self.handles:
            self.handles.pop(uuid).close()
        self.store.destroy(uuid)
        del self.models[uuid]

    @rule(leaves=st.booleans())
    def collect(self, leaves: bool) -> None:
        before = self.store.nodes()
        found = self.store.collect(leaves)

        after = self.store.nodes()
        assert set(before) - set(after) == set(found.removed)
        moved = {u: n.parent for u, n in after.items() if n.parent != before[u].parent}
        assert moved == found.relinked

    @rule(uuid=disks)
    def hold_open(self, uuid: str) -> None:
        if uuid not in self.handles:
            self.handles[uuid] = self.store.open(uuid)

    @rule(uuid=disks)
    def let_go(self, uuid: str) -> None:
        if uuid in self.handles:
            self.handles.pop(uuid).close()

    @rule()
    def reopen(self) -> None:
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()
        before = self.store.nodes()
        self.store = DiskStore(self.directory)
        assert self.store.nodes() == before

    @rule(target=disks, base=disks, uuid=disks)
    def apply_a_delta_to_a_clone_of_any_base(
        self, base: str, uuid: str
    ) -> str | MultipleResults[str]:
        """The union of what either side has alone turns the one into the other."""
        if self.models[base].blocks < self.models[uuid].blocks:
            return multiple()  # it would not fit
        replica = self.name("disk")
        self.store.split(base, replica, self.name("base"))
        with (
            self.store.open(replica, writable=True) as disk,
            VhdExport(self.store, uuid, base) as stream,
        ):
            parser = VhdImport(disk, stream.length)
            for piece in stream.pieces():
                parser.feed(piece)
            parser.finish()
        size = self.models[uuid].blocks * BLOCK
        assert content(self.store, replica)[:size] == self.models[uuid].content()
        self.models[replica] = self.models[base].copy()
        for sector in range(self.models[uuid].blocks * PER_BLOCK):
            value = self.models[uuid].sectors.get(sector, 0)
            self.models[replica].sectors[sector] = value
        return replica

    @rule(target=disks, uuid=disks)
    def copy_by_chunks(self, uuid: str) -> str:
        copy = self.make(self.models[uuid].blocks)
        with (
            self.store.open(copy, writable=True) as disk,
            RawExport(self.store, uuid) as stream,
        ):
            parser = ChunkedRawImport(disk)
            offset = 0
            for piece in stream.pieces():
                parser.feed(offset.to_bytes(8, "little") + len(piece).to_bytes(4, "little"))
                parser.feed(piece)
                offset += len(piece)
            parser.feed(bytes(12))
            parser.finish()
        self.models[copy] = self.models[uuid].copy()
        return copy

    @invariant()
    def one_disk_reads_as_it_should(self) -> None:
        """A different one each time; at the end all of them."""
        if self.models:
            uuid = sorted(self.models)[self.named % len(self.models)]
            assert content(self.store, uuid) == self.models[uuid].content()
            if uuid in self.handles:
                handle = self.handles[uuid]
                assert handle.read(0, handle.virtual_size) == self.models[uuid].content()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
