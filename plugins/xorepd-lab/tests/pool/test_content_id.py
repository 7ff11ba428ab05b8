"""content_id: what XAPI says of a disk's content without looking at it.

It stands for "not attached for writing since": XAPI takes it away when a disk is attached for
writing, and gives it a new one when the disk is detached. Whether anything was written matters to
nobody.
"""

import struct

import pytest

from pool.target import MIB, NULL, Bench

pytestmark = pytest.mark.pool

END = bytes(12)
NO_CONTENT = "/No content: this is a cbt_metadata VDI/"


def content(bench: Bench, vdi: str) -> str:
    """Return a disk's content_id, "" when it has none."""
    other_config: dict[str, str] = bench.api.VDI.get_other_config(vdi)
    return other_config.get("content_id", "")


def fill(bench: Bench, vdi: str, body: bytes = END, **query: str) -> str:
    """Import a body into a disk and return its content_id."""
    query = query or {"format": "raw", "chunked": "true"}
    done = bench.write_disk(vdi, body, **query)
    assert done["status"] == "success", done["error_info"]
    return content(bench, vdi)


def test_a_new_disk_has_none(bench: Bench) -> None:
    vdi = bench.new_vdi()

    assert content(bench, vdi) == ""


def test_every_import_gives_a_new_one_even_an_empty_one(bench: Bench) -> None:
    vdi, other = bench.new_vdi(), bench.new_vdi()
    fill(bench, other)
    vhd = bench.read_disk(other, format="vhd")

    found = [
        fill(bench, vdi, struct.pack("<QI", 0, 512) + b"x" * 512 + END),
        fill(bench, vdi),
        fill(bench, vdi),
        fill(bench, vdi, vhd, format="vhd"),
        fill(bench, vdi, bytes(4 * MIB), format="raw"),
    ]

    assert all(found)
    assert len(set(found)) == len(found)


def test_an_import_replaces_a_value_of_the_client_s(bench: Bench) -> None:
    vdi = bench.new_vdi(other_config={"content_id": "ours"})

    assert fill(bench, vdi) not in ("", "ours")


def test_snapshots_and_clones_copy_it_from_their_source(bench: Bench) -> None:
    vdi = bench.new_vdi()
    bare = bench.keep_vdi(bench.api.VDI.snapshot(vdi))
    bare_clone = bench.keep_vdi(bench.api.VDI.clone(vdi))

    before = fill(bench, vdi)
    snapshot = bench.keep_vdi(bench.api.VDI.snapshot(vdi))
    clone = bench.keep_vdi(bench.api.VDI.clone(snapshot))

    assert [content(bench, each) for each in (bare, bare_clone)] == ["", ""]
    assert [content(bench, each) for each in (vdi, snapshot, clone)] == [before] * 3


def test_an_export_keeps_it_and_makes_it_where_there_is_none(bench: Bench) -> None:
    vdi, named = bench.new_vdi(), bench.new_vdi(other_config={"content_id": "ours"})

    bench.read_disk(vdi, format="raw")
    made = content(bench, vdi)
    bench.read_disk(vdi, format="vhd")
    bench.read_disk(named, format="vhd", base=vdi)

    assert made
    assert content(bench, vdi) == made
    assert content(bench, named) == "ours"


def test_a_client_s_own_value_goes_with_snapshots(bench: Bench) -> None:
    vdi = bench.new_vdi(other_config={"content_id": "ours"})

    snapshot = bench.keep_vdi(bench.api.VDI.snapshot(vdi))
    bench.read_disk(snapshot, format="raw")

    assert content(bench, snapshot) == content(bench, vdi) == "ours"


def test_a_revert_brings_that_of_the_snapshot_back(bench: Bench) -> None:
    vm, vdi = bench.new_vm(), bench.new_vdi()
    then = fill(bench, vdi)
    bench.new_disk(vm, vdi, userdevice="0")
    snapshot = bench.keep_vm(bench.api.VM.snapshot(vm, bench.name()))
    [vbd] = bench.api.VM.get_VBDs(snapshot)
    bench.keep_vdi(bench.api.VBD.get_VDI(vbd))
    assert fill(bench, vdi) != then

    bench.api.VM.revert(snapshot)

    [vbd] = bench.api.VM.get_VBDs(vm)
    reverted = bench.keep_vdi(bench.api.VBD.get_VDI(vbd))
    assert reverted != vdi
    assert content(bench, reverted) == then


@pytest.mark.parametrize("into", ["a-disk-of-its-own", "a-disk-that-is-there"])
def test_the_target_of_a_copy_has_a_new_one_and_the_source_keeps_its_own(
    bench: Bench, into: str
) -> None:
    vdi = bench.new_vdi()
    before = fill(bench, vdi)
    there = NULL if into == "a-disk-of-its-own" else bench.new_vdi()
    sr = bench.sr if there == NULL else NULL

    copy = bench.keep_vdi(bench.api.VDI.copy(vdi, sr, NULL, there))

    assert content(bench, vdi) == before
    assert content(bench, copy) not in ("", before)


def test_a_disk_without_data_says_so(bench: Bench) -> None:
    vdi = bench.new_vdi()
    fill(bench, vdi)
    bench.api.VDI.enable_cbt(vdi)
    snapshot = bench.keep_vdi(bench.api.VDI.snapshot(vdi))

    bench.api.VDI.data_destroy(snapshot)

    assert content(bench, snapshot) == NO_CONTENT


def test_a_forgotten_disk_comes_back_with_nothing_but_its_data(bench: Bench) -> None:
    vdi = bench.new_vdi(other_config={"xorepd-test": "lost", "content_id": "ours"})
    uuid = bench.api.VDI.get_uuid(vdi)
    bench.write_disk(vdi, b"x" * (4 * MIB), format="raw")

    bench.api.VDI.forget(vdi)
    bench.api.SR.scan(bench.sr)

    found = bench.keep_vdi(bench.api.VDI.get_by_uuid(uuid))
    record = bench.api.VDI.get_record(found)
    assert found != vdi
    assert (record["name_label"], record["name_description"]) == ("", "")
    assert record["other_config"] == {}
    assert (record["managed"], record["is_a_snapshot"]) == (True, False)
    assert bench.read_disk(found, format="raw") == b"x" * (4 * MIB)
    assert content(bench, found) not in ("", "ours")
