"""Changed-block tracking and what NBD would offer."""

import base64

import pytest

from pool.target import MIB, Bench
from pool.test_disks import END, chunk, noise

pytestmark = pytest.mark.pool


def write(bench: Bench, vdi: str, offset: int) -> None:
    body = chunk(offset, noise(offset, 4096)) + END
    assert bench.write_disk(vdi, body, format="raw", chunked="true")["status"] == "success"


def blocks(bitmap: str) -> list[int]:
    """Return the numbers of the 64 KiB blocks that are set."""
    raw = base64.b64decode(bitmap)
    return [i for i in range(len(raw) * 8) if raw[i // 8] & (0x80 >> i % 8)]


def test_changed_blocks_are_those_written_in_between(bench: Bench) -> None:
    vdi = bench.new_vdi(8 * MIB)
    write(bench, vdi, 0)
    bench.api.VDI.enable_cbt(vdi)
    first = bench.keep_vdi(bench.api.VDI.snapshot(vdi))
    write(bench, vdi, 64 << 10)
    write(bench, vdi, 5 * MIB)
    second = bench.keep_vdi(bench.api.VDI.snapshot(vdi))
    write(bench, vdi, 7 * MIB)

    bitmap = bench.api.VDI.list_changed_blocks(first, second)

    assert bench.api.VDI.get_cbt_enabled(second) is True
    assert len(base64.b64decode(bitmap)) == 8 * MIB // (64 << 10) // 8
    assert blocks(bitmap) == [1, 80]


def test_disks_without_relation_have_no_changed_blocks(bench: Bench) -> None:
    one, other = bench.new_vdi(), bench.new_vdi()
    bench.api.VDI.enable_cbt(one)
    bench.api.VDI.enable_cbt(other)

    refused = bench.failure("VDI.list_changed_blocks", one, other)
    itself = bench.failure("VDI.list_changed_blocks", one, one)

    assert refused[0] == itself[0] == "SR_BACKEND_FAILURE_460"
    assert "Source and target VDI are unrelated" in refused[2]
    assert "Source and target VDI are same" in itself[2]


def test_a_snapshot_without_its_data_still_serves_as_a_base(bench: Bench) -> None:
    vdi = bench.new_vdi(8 * MIB)
    bench.api.VDI.enable_cbt(vdi)
    base = bench.keep_vdi(bench.api.VDI.snapshot(vdi))
    write(bench, vdi, 2 * MIB)
    head = bench.keep_vdi(bench.api.VDI.snapshot(vdi))

    bench.api.VDI.data_destroy(base)

    assert bench.api.VDI.get_type(base) == "cbt_metadata"
    assert blocks(bench.api.VDI.list_changed_blocks(base, head)) == [32]
    refused = ["VDI_INCOMPATIBLE_TYPE", base, "CBT metadata"]
    assert bench.failure("VDI.clone", base) == refused
    assert bench.failure("VDI.get_nbd_info", base) == refused


def test_data_is_not_destroyed_of_what_is_no_snapshot(bench: Bench) -> None:
    vdi = bench.new_vdi()
    bench.api.VDI.enable_cbt(vdi)

    assert bench.failure("VDI.data_destroy", vdi)[0] == "OPERATION_NOT_ALLOWED"
    snapshot = bench.keep_vdi(bench.api.VDI.snapshot(bench.new_vdi()))
    assert bench.failure("VDI.data_destroy", snapshot) == ["VDI_NO_CBT_METADATA", snapshot]
    assert bench.failure("VDI.enable_cbt", snapshot)[0] == "OPERATION_NOT_ALLOWED"


def test_a_clone_is_not_tracked(bench: Bench) -> None:
    vdi = bench.new_vdi()
    bench.api.VDI.enable_cbt(vdi)

    clone = bench.keep_vdi(bench.api.VDI.clone(vdi))

    assert bench.api.VDI.get_cbt_enabled(vdi) is True
    assert bench.api.VDI.get_cbt_enabled(clone) is False


def test_nbd_is_offered_on_networks_that_are_meant_for_it(bench: Bench) -> None:
    vdi = bench.new_vdi()
    uuid = bench.api.VDI.get_uuid(vdi)
    purposes = [p for n in bench.api.network.get_all_records().values() for p in n["purpose"]]

    offers = bench.api.VDI.get_nbd_info(vdi)

    assert bool(offers) == bool(purposes)
    for offer in offers:
        assert set(offer) == {"exportname", "address", "port", "cert", "subject"}
        assert offer["exportname"] == f"/{uuid}?session_id={bench.ref}"
        assert offer["port"].isdigit()
        assert "BEGIN CERTIFICATE" in offer["cert"]
