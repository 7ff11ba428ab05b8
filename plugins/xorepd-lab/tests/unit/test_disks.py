"""Chains of VHD files: what a snapshot, a clone, a garbage collection make of them."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.vhd_judges import assert_sound, digest, digest_by_libvhdi, digest_by_qemu, needs_qemu
from xorepd_lab.disks.store import Disk, DiskError, DiskStore
from xorepd_lab.disks.vhd import BLOCK

PAGE = 4096


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    """Give an SR whose files must be sound at the end of every test."""
    store = DiskStore(tmp_path / "sr")
    yield store
    assert_sound(tmp_path / "sr")


def scribble(disk: Disk, seed: int, writes: int = 30) -> None:
    """Write 4 KiB aligned pieces of many lengths, some across blocks, and trim some."""
    rng = random.Random(seed)
    pages = disk.virtual_size // PAGE
    for _ in range(writes):
        page = rng.randrange(pages)
        length = min(rng.choice([1, 1, 2, 7, 600]), pages - page) * PAGE
        if rng.random() < 0.2:
            disk.trim(page * PAGE, length)
        else:
            disk.write(page * PAGE, rng.randbytes(length))


def backend_of(error: pytest.ExceptionInfo[DiskError]) -> int:
    return error.value.backend


def test_a_new_disk_reads_as_zeroes(store: DiskStore) -> None:
    store.create("a", 4 * BLOCK)

    with store.open("a") as disk:
        assert disk.virtual_size == 4 * BLOCK
        assert disk.read(0, 4 * BLOCK) == bytes(4 * BLOCK)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (1, 1), (BLOCK, 1), (BLOCK + 1, 2)])
def test_sizes_are_rounded_up_to_2_mib(store: DiskStore, asked: int, given: int) -> None:
    assert store.create("a", asked) == given * BLOCK


@pytest.mark.parametrize("size", [-1, (2040 << 30) + 1])
def test_impossible_sizes_are_refused(store: DiskStore, size: int) -> None:
    with pytest.raises(DiskError) as error:
        store.create("a", size)
    assert backend_of(error) == 79
    assert store.nodes() == {}


def test_the_largest_disk_takes_a_few_megabytes(store: DiskStore) -> None:
    assert store.create("a", 2040 << 30) == 2040 << 30

    with store.open("a", writable=True) as disk:
        disk.write(disk.virtual_size - PAGE, b"z" * PAGE)
        assert disk.read(disk.virtual_size - PAGE, PAGE) == b"z" * PAGE
    assert store.node("a").physical_size < 8 << 20


def test_an_existing_uuid_is_refused(store: DiskStore) -> None:
    store.create("a", BLOCK)

    with pytest.raises(DiskError) as error:
        store.create("a", BLOCK)
    assert backend_of(error) == 43


@pytest.mark.parametrize("uuid", ["", "../a", "a/b", ".hidden", "a" * 101])
def test_what_cannot_be_a_file_name_is_refused(store: DiskStore, uuid: str) -> None:
    with pytest.raises(DiskError):
        store.create(uuid, BLOCK)


def test_writes_of_single_sectors_are_kept(store: DiskStore) -> None:
    store.create("a", 2 * BLOCK)
    with store.open("a", writable=True) as disk:
        disk.write(BLOCK - 512, b"x" * 1024)

        assert disk.read(BLOCK - 1024, 2048) == bytes(512) + b"x" * 1024 + bytes(512)
    assert store.node("a").physical_size > 2 * BLOCK


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 5), (2 * BLOCK, 512), (-512, 512)])
def test_ranges_outside_or_across_sectors_are_refused(
    store: DiskStore, offset: int, length: int
) -> None:
    store.create("a", 2 * BLOCK)

    with store.open("a", writable=True) as disk:
        with pytest.raises(DiskError):
            disk.write(offset, bytes(length))
        with pytest.raises(DiskError):
            disk.read(offset, length)


def test_a_disk_opened_for_reading_is_not_written(store: DiskStore) -> None:
    store.create("a", BLOCK)

    with store.open("a") as disk, pytest.raises(DiskError, match="reading only"):
        disk.write(0, bytes(512))


def test_a_closed_disk_says_so(store: DiskStore) -> None:
    store.create("a", BLOCK)
    disk = store.open("a")
    disk.close()
    disk.close()

    with pytest.raises(DiskError, match="closed"):
        disk.read(0, 512)


def test_zeroes_are_data_but_cost_the_host_nothing(store: DiskStore) -> None:
    store.create("a", 64 * BLOCK)

    with store.open("a", writable=True) as disk:
        for offset in range(0, disk.virtual_size, BLOCK):
            disk.write(offset, bytes(BLOCK))
        assert all(disk.holds(index) for index in range(64))

    assert store.node("a").physical_size > 64 * BLOCK
    assert store.path("a").stat().st_blocks * 512 < 2 * BLOCK


def test_trim_hides_what_the_parent_holds_and_allocates_nothing_else(store: DiskStore) -> None:
    store.create("a", 4 * BLOCK)
    with store.open("a", writable=True) as disk:
        disk.write(BLOCK, b"p" * BLOCK)
        store.split("a", "snap", "base")

        disk.trim(0, 4 * BLOCK)

        assert disk.read(0, 4 * BLOCK) == bytes(4 * BLOCK)
        assert [disk.chain[0].holds(index) for index in range(4)] == [False, True, False, False]
    with store.open("snap") as disk:
        assert disk.read(BLOCK, BLOCK) == b"p" * BLOCK


def test_a_split_puts_two_empty_leaves_on_a_hidden_base_copy(store: DiskStore) -> None:
    store.create("a", 2 * BLOCK)
    with store.open("a", writable=True) as disk:
        disk.write(0, b"x" * PAGE)

    assert store.split("a", "snap", "base") == "base"

    nodes = store.nodes()
    assert {uuid: (node.parent, node.hidden) for uuid, node in nodes.items()} == {
        "base": (None, True),
        "a": ("base", False),
        "snap": ("base", False),
    }
    assert nodes["a"].physical_size == nodes["snap"].physical_size < PAGE * 2
    assert digest(store, "a") == digest(store, "snap") == digest_by_libvhdi(store.path("snap"))


def test_a_leaf_without_data_gets_no_base_copy(store: DiskStore) -> None:
    store.create("a", 2 * BLOCK)
    assert store.split("a", "one", "base") == "base"

    assert store.split("a", "two", "unused") is None
    assert store.split("two", "three", "unused") is None

    assert {node.parent for node in store.nodes().values() if not node.hidden} == {"base"}
    assert store.depth("a") == 2


def test_a_disk_without_parent_gets_a_base_copy_even_when_empty(store: DiskStore) -> None:
    store.create("a", 2 * BLOCK)

    assert store.split("a", "snap", "base") == "base"


def test_a_chain_has_at_most_30_files(store: DiskStore) -> None:
    store.create("a", BLOCK)
    with store.open("a", writable=True) as disk:
        for number in range(29):
            disk.write(0, bytes([number]) * PAGE)
            store.split("a", f"snap{number}", f"base{number}")
        assert store.depth("a") == 30

        disk.write(0, b"!" * PAGE)
        with pytest.raises(DiskError) as error:
            store.split("a", "more", "base")

    assert backend_of(error) == 109
    assert digest(store, "a") == digest_by_libvhdi(store.path("a"))


def test_a_base_copy_is_neither_split_nor_written(store: DiskStore) -> None:
    store.create("a", BLOCK)
    store.split("a", "snap", "base")

    with pytest.raises(DiskError):
        store.split("base", "x", "y")
    with pytest.raises(DiskError):
        store.open("base", writable=True)


@pytest.mark.parametrize("taken", ["snap", "base"])
def test_a_split_refuses_uuids_that_are_taken(store: DiskStore, taken: str) -> None:
    store.create("a", BLOCK)
    store.create(taken, BLOCK)

    with pytest.raises(DiskError) as error:
        store.split("a", "snap", "base")
    assert backend_of(error) == 43


def test_an_open_disk_writes_on_into_its_new_leaf(store: DiskStore) -> None:
    store.create("a", 2 * BLOCK)
    with store.open("a", writable=True) as disk, store.open("a") as other:
        disk.write(0, b"1" * PAGE)
        store.split("a", "snap", "base")

        disk.write(0, b"2" * PAGE)

        assert disk.read(0, PAGE) == other.read(0, PAGE) == b"2" * PAGE
    with store.open("snap") as snapshot:
        assert snapshot.read(0, PAGE) == b"1" * PAGE


def test_a_resize_only_grows_and_only_what_nobody_has_open(store: DiskStore) -> None:
    store.create("a", 4 * BLOCK)
    assert store.resize("a", 4 * BLOCK) == 4 * BLOCK
    assert store.resize("a", 4 * BLOCK + 1) == 5 * BLOCK

    with pytest.raises(DiskError) as shrunk:
        store.resize("a", 4 * BLOCK)
    with store.open("a"), pytest.raises(DiskError) as used:
        store.resize("a", 6 * BLOCK)

    assert backend_of(shrunk) == 79
    assert backend_of(used) == 24


def test_a_resize_moves_the_blocks_that_its_longer_bat_needs(store: DiskStore) -> None:
    store.create("a", 8 * BLOCK)
    with store.open("a", writable=True) as disk:
        scribble(disk, seed=1)
        before = disk.read(0, 8 * BLOCK)

    store.resize("a", 600 << 30)  # 300 sectors of BAT, where 1 was

    with store.open("a", writable=True) as disk:
        assert disk.read(0, 8 * BLOCK) == before
        assert disk.read(8 * BLOCK, BLOCK) == bytes(BLOCK)
        disk.write(disk.virtual_size - PAGE, b"z" * PAGE)
    assert_sound(store.directory)
    assert DiskStore(store.directory).nodes() == store.nodes()


def test_a_leaf_larger_than_its_parent_reads_zeroes_behind_it(store: DiskStore) -> None:
    store.create("a", 2 * BLOCK)
    with store.open("a", writable=True) as disk:
        disk.write(BLOCK, b"x" * BLOCK)
    store.split("a", "snap", "base")

    store.resize("a", 4 * BLOCK)
    assert store.split("a", "late", "unused") is None

    assert store.node("late").virtual_size == 4 * BLOCK
    with store.open("late") as disk:
        assert disk.read(BLOCK, 3 * BLOCK) == b"x" * BLOCK + bytes(2 * BLOCK)


def test_a_destroyed_leaf_goes_at_once_and_its_base_with_the_collection(store: DiskStore) -> None:
    store.create("a", BLOCK)
    store.split("a", "snap", "base")

    store.destroy("a")
    store.destroy("snap")
    assert list(store.nodes()) == ["base"]

    assert store.collect().removed == ("base",)
    assert store.nodes() == {}


def test_what_is_in_use_is_not_destroyed(store: DiskStore) -> None:
    store.create("a", BLOCK)

    with store.open("a"), pytest.raises(DiskError) as error:
        store.destroy("a")
    assert backend_of(error) == 24


def test_what_is_not_there_fails_with_46(store: DiskStore) -> None:
    store.create("a", BLOCK)
    store.path("a").unlink()

    for call in (store.node, store.open, store.destroy, store.depth):
        for name in ("a", "nobody"):
            with pytest.raises(DiskError, match=f"^VDI {name} not found$") as error:
                call(name)
            assert backend_of(error) == 46


def history(store: DiskStore, rounds: int) -> list[str]:
    """Give `a` a snapshot per round, each with changes of its own."""
    store.create("a", 6 * BLOCK)
    with store.open("a", writable=True) as disk:
        for number in range(rounds):
            scribble(disk, number)
            store.split("a", f"snap{number}", f"base{number}")
        scribble(disk, rounds)
    return [f"snap{number}" for number in range(rounds)]


def test_a_collection_merges_an_only_child_and_moves_its_children(store: DiskStore) -> None:
    history(store, rounds=3)  # base0 ← base1 ← base2, a snapshot on each
    kept = {uuid: digest(store, uuid) for uuid in ("snap1", "snap2", "a")}
    store.destroy("snap0")

    found = store.collect()

    assert found.removed == ("base1",)
    assert found.relinked == {"snap1": "base0", "base2": "base0"}
    assert store.node("base2").parent == "base0"
    assert {uuid: digest(store, uuid) for uuid in kept} == kept
    assert {uuid: digest_by_libvhdi(store.path(uuid)) for uuid in kept} == kept


def test_a_collection_of_everything_leaves_one_base_per_snapshot(store: DiskStore) -> None:
    history(store, rounds=6)
    kept = {uuid: digest(store, uuid) for uuid in ("snap5", "a")}
    for number in range(5):
        store.destroy(f"snap{number}")

    found = store.collect()

    assert set(store.nodes()) == {"base0", "snap5", "a"}
    assert found.relinked == {"snap5": "base0", "a": "base0"}
    assert {uuid: digest_by_libvhdi(store.path(uuid)) for uuid in kept} == kept


def test_a_collection_grows_the_parent_of_a_larger_child(store: DiskStore) -> None:
    history(store, rounds=1)
    store.resize("a", 200 << 20)
    with store.open("a", writable=True) as disk:
        disk.write(disk.virtual_size - PAGE, b"z" * PAGE)
    store.split("a", "snap1", "base1")
    expected = digest(store, "snap1")
    store.destroy("snap0")

    assert store.collect().removed == ("base1",)

    assert store.node("base0").virtual_size == 200 << 20
    assert digest(store, "a") == expected == digest_by_libvhdi(store.path("snap1"))


def test_a_leaf_alone_on_its_base_copy_is_merged_when_asked(store: DiskStore) -> None:
    history(store, rounds=2)
    expected = digest(store, "a")
    for snapshot in ("snap0", "snap1"):
        store.destroy(snapshot)

    with store.open("a"):
        assert store.collect(leaves=True).removed == ()
    found = store.collect(leaves=True)

    assert set(found.removed) == {"base0", "base1"}
    assert found.relinked == {"a": None}
    [node] = store.nodes().values()
    assert (node.uuid, node.parent, node.hidden) == ("a", None, False)
    assert digest(store, "a") == expected == digest_by_libvhdi(store.path("a"))
    assert DiskStore(store.directory).nodes() == store.nodes()


def test_a_collection_leaves_an_open_chain_alone(store: DiskStore) -> None:
    history(store, rounds=3)
    store.destroy("snap0")

    with store.open("snap2"):
        assert store.collect().removed == ()
    assert store.collect().removed == ("base1",)


def test_disks_survive_a_restart(store: DiskStore) -> None:
    names = [*history(store, rounds=3), "a"]
    before = {uuid: digest(store, uuid) for uuid in names}

    again = DiskStore(store.directory)

    assert again.nodes() == store.nodes()
    assert {uuid: digest(again, uuid) for uuid in names} == before


def test_a_file_that_appears_is_found_and_one_that_goes_is_missed(store: DiskStore) -> None:
    store.create("a", BLOCK)
    store.path("b").write_bytes(store.path("a").read_bytes())
    store.path("broken").write_bytes(b"no VHD")
    assert set(store.nodes()) == {"a", "b"}

    store.path("b").unlink()
    store.path("broken").unlink()

    assert set(store.nodes()) == {"a"}


def test_a_missing_parent_fails_the_disk_and_only_that(store: DiskStore, tmp_path: Path) -> None:
    history(store, rounds=1)
    store.create("whole", BLOCK)
    hidden_away = store.path("base0").rename(tmp_path / "base0.vhd")
    again = DiskStore(store.directory)

    with pytest.raises(DiskError) as error:
        again.open("a")
    again.open("whole").close()

    assert backend_of(error) == 65
    hidden_away.rename(store.path("base0"))


def test_a_full_sr_refuses_and_keeps_what_it_has(store: DiskStore) -> None:
    store.create("a", 8 * BLOCK)
    with store.open("a", writable=True) as disk:
        disk.write(0, b"x" * BLOCK)
        store.capacity = store.node("a").physical_size + 1024

        with pytest.raises(DiskError) as write:
            disk.write(BLOCK, b"y" * BLOCK)
        with pytest.raises(DiskError) as create:
            store.create("b", 4 << 30)
        store.capacity = 0
        with pytest.raises(DiskError) as split:
            store.split("a", "snap", "base")
        disk.write(0, b"z" * BLOCK)  # what is allocated may change

    assert [backend_of(each) for each in (write, create, split)] == [200, 78, 81]
    assert set(store.nodes()) == {"a"}
    assert_sound(store.directory)


def test_a_snapshot_taken_while_the_guest_writes_never_changes(store: DiskStore) -> None:
    store.create("a", 6 * BLOCK)
    stop = threading.Event()
    failures: list[BaseException] = []

    def guest(seed: int) -> None:
        try:
            with store.open("a", writable=True) as disk:
                while not stop.is_set():
                    seed += 1
                    scribble(disk, seed, writes=5)
        except BaseException as error:
            failures.append(error)

    guests = [threading.Thread(target=guest, args=(seed,)) for seed in (1000, 2000)]
    for thread in guests:
        thread.start()
    at_once = {}
    for number in range(12):
        store.split("a", f"snap{number}", f"base{number}")
        at_once[f"snap{number}"] = digest(store, f"snap{number}")
        if number % 4 == 3:
            store.destroy(f"snap{number - 2}")
            del at_once[f"snap{number - 2}"]
            store.collect()
    stop.set()
    for thread in guests:
        thread.join()

    assert not failures
    store.collect()
    assert {uuid: digest(store, uuid) for uuid in at_once} == at_once
    assert {uuid: digest_by_libvhdi(store.path(uuid)) for uuid in at_once} == at_once


@pytest.mark.stranger
def test_libvhdi_reads_the_same_through_a_whole_life(store: DiskStore) -> None:
    store.create("a", 6 * BLOCK)
    with store.open("a", writable=True) as disk:
        scribble(disk, seed=1)
    store.resize("a", 100 << 20)
    with store.open("a", writable=True) as disk:
        for number in range(4):
            scribble(disk, seed=number)
            store.split("a", f"snap{number}", f"base{number}")
        scribble(disk, seed=5)
    assert store.split("snap1", "clone", "unused") is None
    with store.open("clone", writable=True) as disk:
        scribble(disk, seed=77)
    for gone in ("snap0", "snap2", "a"):
        store.destroy(gone)
    assert set(store.collect().removed) == {"base1", "base3"}

    for uuid in ("snap1", "snap3", "clone", "base0", "base2"):
        assert digest_by_libvhdi(store.path(uuid)) == digest(store, uuid)


@pytest.mark.stranger
@needs_qemu
def test_qemu_reads_a_dynamic_disk_the_same(store: DiskStore, tmp_path: Path) -> None:
    store.create("a", 6 * BLOCK)
    with store.open("a", writable=True) as disk:
        scribble(disk, seed=3)
    store.resize("a", 100 << 20)

    assert digest_by_qemu(store.path("a"), tmp_path) == digest(store, "a")
