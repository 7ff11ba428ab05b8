"""VDI.copy: what it makes, and where it is wrong without a word."""

import random

import pytest

from pool.target import MIB, NULL, Bench
from pool.test_disks import BLOCK, END, chunk

pytestmark = pytest.mark.pool

SIZE = 8 * MIB


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(4096)


def write(bench: Bench, vdi: str, *blocks: int, seed: int) -> None:
    """Fill the first page of some blocks of 2 MiB."""
    body = b"".join(chunk(block * BLOCK, noise(seed + block)) for block in blocks) + END
    done = bench.write_disk(vdi, body, format="raw", chunked="true")
    assert done["status"] == "success", done["error_info"]


def pages(bench: Bench, vdi: str) -> list[bytes]:
    """Return the first page of each block, b"" for one of zeroes."""
    content = bench.read_disk(vdi, format="raw")
    found = [content[start : start + 4096] for start in range(0, SIZE, BLOCK)]
    return [page if any(page) else b"" for page in found]


@pytest.fixture
def source(bench: Bench) -> str:
    """A disk with something in its second and third block."""
    vdi = bench.new_vdi(SIZE)
    write(bench, vdi, 1, 2, seed=10)
    return vdi


EXPECTED = [b"", noise(11), noise(12), b""]


def test_a_full_copy_into_a_fresh_disk_is_the_source(bench: Bench, source: str) -> None:
    target = bench.new_vdi(SIZE)

    assert bench.api.VDI.copy(source, NULL, NULL, target) == target

    assert pages(bench, target) == EXPECTED


def test_a_full_copy_leaves_what_the_source_does_not_have(bench: Bench, source: str) -> None:
    target = bench.new_vdi(SIZE)
    write(bench, target, 0, 1, seed=70)

    bench.api.VDI.copy(source, NULL, NULL, target)

    assert pages(bench, target) == [noise(70), noise(11), noise(12), b""]


@pytest.mark.parametrize("base", ["OpaqueRef:nothing", "", "a VDI that is gone"])
def test_a_base_that_is_none_makes_it_a_full_copy(bench: Bench, source: str, base: str) -> None:
    if base == "a VDI that is gone":
        base = bench.new_vdi(SIZE)
        bench.api.VDI.destroy(base)
    target = bench.new_vdi(SIZE)

    bench.api.VDI.copy(source, NULL, base, target)

    assert pages(bench, target) == EXPECTED


def test_a_base_of_another_chain_makes_all_of_both_be_copied(bench: Bench, source: str) -> None:
    base, target = bench.new_vdi(SIZE), bench.new_vdi(SIZE)
    write(bench, base, 0, seed=80)
    write(bench, target, 0, 3, seed=70)

    bench.api.VDI.copy(source, NULL, base, target)

    assert pages(bench, target) == [b"", noise(11), noise(12), noise(73)]


def test_a_copy_with_its_base_brings_an_earlier_one_up_to_date(bench: Bench, source: str) -> None:
    base = bench.keep_vdi(bench.api.VDI.snapshot(source))
    target = bench.keep_vdi(bench.api.VDI.copy(base, bench.sr, NULL, NULL))
    write(bench, source, 2, 3, seed=20)
    head = bench.keep_vdi(bench.api.VDI.snapshot(source))

    bench.api.VDI.copy(head, NULL, base, target)

    assert pages(bench, target) == [b"", noise(11), noise(22), noise(23)]


def test_a_snapshot_may_be_copied_over(bench: Bench, source: str) -> None:
    other = bench.new_vdi(SIZE)
    write(bench, other, 0, seed=70)
    snapshot = bench.keep_vdi(bench.api.VDI.snapshot(other))

    bench.api.VDI.copy(source, NULL, NULL, snapshot)

    assert pages(bench, snapshot) == [noise(70), noise(11), noise(12), b""]
    record = bench.api.VDI.get_record(snapshot)
    assert (record["is_a_snapshot"], record["snapshot_of"]) == (True, other)
    assert pages(bench, other) == [noise(70), b"", b"", b""]


def test_what_it_copies_into_keeps_its_record(bench: Bench, source: str) -> None:
    bench.api.VDI.add_to_other_config(source, "xorepd-test", "source")
    target = bench.new_vdi(SIZE, other_config={"xorepd-test": "target"})
    name = bench.api.VDI.get_name_label(target)

    bench.api.VDI.copy(source, NULL, NULL, target)

    assert bench.api.VDI.get_other_config(target)["xorepd-test"] == "target"
    assert bench.api.VDI.get_name_label(target) == name
