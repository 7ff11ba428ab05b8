"""VDIs: sizes, snapshots, clones, and their contents through the disk handlers."""

import random
import struct

import pytest

from pool.target import MIB, NULL, Bench

pytestmark = pytest.mark.pool

END = bytes(12)
BLOCK = 2 * MIB


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def chunk(offset: int, data: bytes) -> bytes:
    """Return one extent of a chunked raw import."""
    return struct.pack("<QI", offset, len(data)) + data


def test_sizes_are_rounded_up_to_2_mib(bench: Bench) -> None:
    vdi = bench.new_vdi(3 * MIB)

    assert bench.api.VDI.get_virtual_size(vdi) == str(4 * MIB)


def test_a_snapshot_is_of_its_disk_and_keeps_its_config(bench: Bench) -> None:
    vdi = bench.new_vdi(other_config={"xorepd-test": "kept"})

    snapshot = bench.keep_vdi(bench.api.VDI.snapshot(vdi))

    record = bench.api.VDI.get_record(snapshot)
    assert record["is_a_snapshot"] is True
    assert record["snapshot_of"] == vdi
    assert record["name_label"] == bench.api.VDI.get_name_label(vdi)
    assert record["other_config"]["xorepd-test"] == "kept"
    assert record["read_only"] is False
    assert record["managed"] is True
    assert record["parent"] == NULL
    assert bench.api.VDI.get_snapshots(vdi) == [snapshot]


def test_a_clone_is_a_disk_of_its_own(bench: Bench) -> None:
    vdi = bench.new_vdi()

    clone = bench.keep_vdi(bench.api.VDI.clone(bench.keep_vdi(bench.api.VDI.snapshot(vdi))))

    record = bench.api.VDI.get_record(clone)
    assert (record["is_a_snapshot"], record["snapshot_of"]) == (False, NULL)
    assert record["virtual_size"] == str(4 * MIB)


def test_clones_and_copies_inherit_every_mark_of_their_disk(bench: Bench) -> None:
    vdi = bench.new_vdi(other_config={"xorepd-test": "kept"}, name_description="said")
    snapshot = bench.keep_vdi(bench.api.VDI.snapshot(vdi))

    made = [
        bench.api.VDI.clone(vdi),
        bench.api.VDI.clone(snapshot),
        bench.api.VDI.copy(vdi, bench.sr, NULL, NULL),
        bench.api.VDI.copy(snapshot, bench.sr, NULL, NULL),
    ]

    uuids = {bench.api.VDI.get_uuid(bench.keep_vdi(each)) for each in made}
    assert len(uuids) == len(made)
    for each in made:
        record = bench.api.VDI.get_record(each)
        assert record["other_config"]["xorepd-test"] == "kept"
        assert record["name_label"] == bench.api.VDI.get_name_label(vdi)
        assert record["name_description"] == "said"
        assert (record["is_a_snapshot"], record["snapshot_of"]) == (False, NULL)
    assert bench.api.VDI.get_snapshots(vdi) == [snapshot]


def test_disks_grow_and_do_not_shrink(bench: Bench) -> None:
    vdi = bench.new_vdi()

    bench.api.VDI.resize(vdi, str(8 * MIB))

    assert bench.api.VDI.get_virtual_size(vdi) == str(8 * MIB)
    assert bench.failure("VDI.resize", vdi, str(4 * MIB))[0] == "SR_BACKEND_FAILURE_79"


def test_what_is_destroyed_is_gone(bench: Bench) -> None:
    vdi = bench.new_vdi()

    bench.api.VDI.destroy(vdi)

    assert bench.failure("VDI.get_record", vdi)[0] == "HANDLE_INVALID"
    assert bench.failure("VDI.destroy", vdi)[0] == "HANDLE_INVALID"


def test_extents_arrive_where_they_belong(bench: Bench) -> None:
    vdi = bench.new_vdi(6 * MIB)
    first, second = noise(1, 4096), noise(2, 64 << 10)

    done = bench.write_disk(
        vdi,
        chunk(BLOCK + 512, first) + chunk(0, second) + END,
        format="raw",
        chunked="true",
    )

    assert done["status"] == "success", done["error_info"]
    expected = bytearray(6 * MIB)
    expected[: len(second)] = second
    expected[BLOCK + 512 : BLOCK + 512 + len(first)] = first
    assert bench.read_disk(vdi, format="raw") == bytes(expected)


def test_extents_that_are_not_aligned_are_refused(bench: Bench) -> None:
    vdi = bench.new_vdi()

    done = bench.write_disk(vdi, chunk(100, bytes(512)) + END, format="raw", chunked="true")

    assert done["status"] == "failure"
    assert done["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]


def test_a_vhd_holds_the_blocks_that_were_written(bench: Bench) -> None:
    vdi = bench.new_vdi(8 * MIB)
    data = noise(3, 4096)
    bench.write_disk(vdi, chunk(2 * BLOCK, data) + END, format="raw", chunked="true")

    stream = bench.read_disk(vdi, format="vhd")

    assert stream[:8] == b"conectix"
    assert stream[-512:] == stream[:512]
    assert struct.unpack(">Q", stream[48:56])[0] == 8 * MIB
    entries = struct.unpack(">4I", stream[2048 : 2048 + 16])
    assert [entry != 0xFFFFFFFF for entry in entries] == [False, False, True, False]
    start = entries[2] * 512 + 512
    assert stream[start : start + 4096] == data
    assert not any(stream[start + 4096 : start + BLOCK])


def test_a_vhd_goes_back_in(bench: Bench) -> None:
    source, target = bench.new_vdi(8 * MIB), bench.new_vdi(8 * MIB)
    bench.write_disk(source, chunk(BLOCK, noise(4, MIB)) + END, format="raw", chunked="true")

    done = bench.write_disk(target, bench.read_disk(source, format="vhd"), format="vhd")

    assert done["status"] == "success", done["error_info"]
    assert done["result"] == f"<value>{target}</value>"
    assert bench.read_disk(target, format="raw") == bench.read_disk(source, format="raw")


def test_a_delta_brings_a_clone_up_to_date(bench: Bench) -> None:
    vdi = bench.new_vdi(8 * MIB)
    bench.write_disk(vdi, chunk(0, noise(5, 4096)) + END, format="raw", chunked="true")
    base = bench.keep_vdi(bench.api.VDI.snapshot(vdi))
    bench.write_disk(vdi, chunk(3 * BLOCK, noise(6, 4096)) + END, format="raw", chunked="true")
    head = bench.keep_vdi(bench.api.VDI.snapshot(vdi))

    delta = bench.read_disk(head, format="vhd", base=base)
    clone = bench.keep_vdi(bench.api.VDI.clone(base))
    bench.write_disk(clone, delta, format="vhd")

    assert struct.unpack(">I", delta[60:64])[0] == 4
    assert len(delta) < 2 * BLOCK
    assert bench.read_disk(clone, format="raw") == bench.read_disk(head, format="raw")


def test_a_disk_that_nobody_knows_is_a_real_500(bench: Bench) -> None:
    task = bench.new_task()

    status, page = bench.http("GET", "/export_raw_vdi", {"vdi": "none", "task_id": task}, b"")

    assert status == 500
    assert b"UUID_INVALID" in page
    assert bench.api.task.get_status(task) == "pending"
