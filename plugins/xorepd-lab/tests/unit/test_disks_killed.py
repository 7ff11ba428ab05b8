"""A lab that is killed between any two steps of a change finds every disk again.

The change runs in a forked child in which the Nth call that alters the directory ends the process
instead; N grows until the child lives to the end. What stays behind is opened anew each time.
"""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.lab.vhd_judges import assert_sound, chain_of, digest, digest_by_libvhdi
from xorepd_lab.disks.store import Disk, DiskStore
from xorepd_lab.disks.vhd import BLOCK

PAGE: Final = 4096
KILLED: Final = 9
STEPS: Final = ("pwrite", "pwritev", "rename", "unlink", "ftruncate", "truncate", "utime", "open")


def run_and_kill(directory: Path, at: int, change: Callable[[DiskStore], Any]) -> bool:
    """Run a change in a child killed before its step number ``at``; False when it had fewer."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            store = DiskStore(directory)
            left = at

            def counted(name: str) -> Callable[..., Any]:
                genuine = getattr(os, name)

                def step(*args: Any, **kwargs: Any) -> Any:
                    nonlocal left
                    if name != "open" or args[1] & os.O_CREAT:
                        if left == 0:
                            os._exit(KILLED)
                        left -= 1
                    return genuine(*args, **kwargs)

                return step

            for name in STEPS:
                setattr(os, name, counted(name))
            change(store)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, KILLED)
    return os.waitstatus_to_exitcode(status) == KILLED


def every_kill(tmp_path: Path, change: Callable[[DiskStore], Any]) -> Iterator[DiskStore]:
    """Yield the store as found after a kill at each step of the change, and after none."""
    for at in range(1000):
        directory = tmp_path / f"kill{at}"
        prepare(directory)
        killed = run_and_kill(directory, at, change)
        found = DiskStore(directory)
        assert_sound(directory)
        assert not [path for path in directory.iterdir() if path.suffix != ".vhd"]
        yield found
        if not killed:
            assert at > 3, "the sweep saw no steps at all"
            return
    pytest.fail("the change never came to its end")


def prepare(directory: Path) -> None:
    """Make base0 ← base1 with a snapshot on each, and `a` with changes of its own on top."""
    store = DiskStore(directory)
    store.create("a", 3 * BLOCK)
    with store.open("a", writable=True) as disk:
        for number in range(2):
            scribble(disk, number)
            store.split("a", f"snap{number}", f"base{number}")
        scribble(disk, 2)


def scribble(disk: Disk, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(6):
        page = rng.randrange(disk.virtual_size // PAGE - 8)
        disk.write(page * PAGE, rng.randbytes(PAGE * rng.choice([1, 3, 8])))


@pytest.fixture
def before(tmp_path: Path) -> dict[str, str]:
    """Give the digests of what `prepare` makes; it makes the same each time."""
    prepare(tmp_path / "before")
    store = DiskStore(tmp_path / "before")
    return {uuid: digest(store, uuid) for uuid in ("a", "snap0", "snap1")}


def test_a_killed_split_happened_or_did_not(tmp_path: Path, before: dict[str, str]) -> None:
    outcomes = set()
    for store in every_kill(tmp_path, lambda each: each.split("a", "new", "base2")):
        assert {uuid: digest(store, uuid) for uuid in before} == before
        nodes = store.nodes()
        assert ("new" in nodes) == ("base2" in nodes)
        if "new" in nodes:
            assert nodes["base2"].hidden
            assert nodes["a"].parent == nodes["new"].parent == "base2"
            assert digest(store, "new") == before["a"] == digest_by_libvhdi(store.path("new"))
        outcomes.add("new" in nodes)
        with store.open("a", writable=True) as disk:
            disk.write(0, b"!" * PAGE)
        store.destroy("snap1")
        store.collect()
        assert digest(store, "snap0") == before["snap0"]
    assert outcomes == {False, True}


def test_a_killed_snapshot_of_an_idle_disk_adds_one_leaf_or_none(
    tmp_path: Path, before: dict[str, str]
) -> None:
    for store in every_kill(tmp_path, lambda each: each.split("snap1", "new", "unused")):
        assert {uuid: digest(store, uuid) for uuid in before} == before
        if "new" in store.nodes():
            assert digest(store, "new") == before["snap1"]


def test_a_killed_collection_is_finished_by_the_next(
    tmp_path: Path, before: dict[str, str]
) -> None:
    kept = {uuid: before[uuid] for uuid in ("a", "snap1")}

    def destroy_and_collect(store: DiskStore) -> None:
        store.destroy("snap0")
        store.collect()

    for store in every_kill(tmp_path, destroy_and_collect):
        assert {uuid: digest(store, uuid) for uuid in kept} == kept
        if "snap0" in store.nodes():
            store.destroy("snap0")
        store.collect()

        assert set(store.nodes()) == {"base0", "a", "snap1"}
        assert {uuid: digest_by_libvhdi(store.path(uuid)) for uuid in kept} == kept


def test_a_killed_merge_of_a_leaf_is_finished_by_the_next(
    tmp_path: Path, before: dict[str, str]
) -> None:
    def destroy_and_collect(store: DiskStore) -> None:
        for snapshot in ("snap0", "snap1"):
            store.destroy(snapshot)
        store.collect(leaves=True)

    for store in every_kill(tmp_path, destroy_and_collect):
        assert digest(store, "a") == before["a"]
        for snapshot in {"snap0", "snap1"} & set(store.nodes()):
            store.destroy(snapshot)
        store.collect(leaves=True)

        assert set(store.nodes()) == {"a"}
        assert digest_by_libvhdi(store.path("a")) == before["a"]


def test_a_killed_resize_keeps_the_content(tmp_path: Path, before: dict[str, str]) -> None:
    def content(store: DiskStore) -> bytes:
        with store.open("a") as disk:
            return disk.read(0, 3 * BLOCK)

    expected = content(DiskStore(tmp_path / "before"))
    sizes = set()
    for store in every_kill(tmp_path, lambda each: each.resize("a", 10 << 30)):
        assert content(store) == expected
        sizes.add(store.node("a").virtual_size)
        with store.open("a", writable=True) as disk:
            disk.write(disk.virtual_size - PAGE, b"!" * PAGE)
        assert content(store)[: 2 * BLOCK] == expected[: 2 * BLOCK]
    assert sizes == {3 * BLOCK, 10 << 30}


def test_a_killed_write_leaves_old_or_new_in_each_sector(
    tmp_path: Path, before: dict[str, str]
) -> None:
    def write(store: DiskStore) -> None:
        with store.open("snap1", writable=True) as disk:
            disk.write(BLOCK - PAGE, b"n" * 3 * PAGE)
            disk.write(BLOCK + 7 * PAGE, b"m" * PAGE)

    with DiskStore(tmp_path / "before").open("snap1") as disk:
        old = disk.read(0, 3 * BLOCK)
    for store in every_kill(tmp_path, write):
        with store.open("snap1", writable=True) as disk:
            found = disk.read(0, 3 * BLOCK)
            for at in range(0, 3 * BLOCK, PAGE):
                expected = b"n" if at < BLOCK + 2 * PAGE else b"m"
                page = found[at : at + PAGE]
                assert page in (old[at : at + PAGE], expected * PAGE)
            write_again = random.Random(5).randbytes(PAGE)
            disk.write(2 * BLOCK, write_again)
            assert disk.read(2 * BLOCK, PAGE) == write_again
        assert {uuid: digest(store, uuid) for uuid in ("a", "snap0")} == {
            uuid: before[uuid] for uuid in ("a", "snap0")
        }


def test_a_killed_create_leaves_a_disk_or_nothing(tmp_path: Path) -> None:
    for store in every_kill(tmp_path, lambda each: each.create("fresh", BLOCK)):
        if "fresh" in store.nodes():
            with store.open("fresh") as disk:
                assert disk.read(0, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("garbage", [b"", b"x" * 512, b"x" * (1 << 20)])
def test_what_stands_behind_the_last_block_is_replaced_by_a_footer(
    tmp_path: Path, garbage: bytes
) -> None:
    prepare(tmp_path / "sr")
    path = tmp_path / "sr" / "base0.vhd"
    whole = path.read_bytes()
    expected = digest(DiskStore(tmp_path / "sr"), "base0")

    path.write_bytes(whole[:-512] + garbage)

    assert digest(DiskStore(tmp_path / "sr"), "base0") == expected
    assert path.read_bytes() == whole


def test_a_lost_footer_copy_is_restored(tmp_path: Path) -> None:
    prepare(tmp_path / "sr")
    path = tmp_path / "sr" / "base0.vhd"
    whole = path.read_bytes()
    expected = digest(DiskStore(tmp_path / "sr"), "base0")

    path.write_bytes(bytes(512) + whole[512:])

    assert digest(DiskStore(tmp_path / "sr"), "base0") == expected
    assert path.read_bytes() == whole


def test_the_chain_the_headers_tell_is_the_chain_of_the_store(tmp_path: Path) -> None:
    prepare(tmp_path / "sr")

    names = [path.stem for path in chain_of(tmp_path / "sr" / "a.vhd")]

    assert names == ["a", "base1", "base0"]
