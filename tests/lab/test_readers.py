"""Which way the data of a disk goes, and that it arrives whole on each of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.world import World, serve_nbd
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault

KiB, MiB = 1 << 10, 1 << 20


def readers(record: RunRecord) -> dict[str, str]:
    return {disk.device: disk.reader for disk in record.disks}


def sizes(record: RunRecord) -> dict[str, tuple[int | None, int]]:
    return {disk.device: (disk.changed_bytes, disk.sent_bytes) for disk in record.disks}


async def test_changed_blocks_over_nbd_send_what_changed_and_no_more(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod")
    first = await two_pools.replicate(changed_blocks="enable")
    touched = await two_pools.lab.guest_write("web01", 1, random=20, seed=3)
    blocks = {offset // (64 * KiB) for offset, _ in touched}

    second = await two_pools.replicate(changed_blocks="enable")

    assert set(readers(first).values()) == {"nbd-allocated"}
    assert readers(second) == {"0": "unchanged", "1": "nbd-changes"}
    assert second.outcome is Outcome.DELTA
    assert sizes(second)["1"] == (len(blocks) * 64 * KiB, len(blocks) * 64 * KiB)
    assert sizes(second)["0"] == (0, 0)
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_a_network_for_insecure_nbd_is_not_used(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod", "insecure_nbd")

    record = await two_pools.replicate()

    assert set(readers(record).values()) == {"export"}
    assert all("refuses TLS" in disk.reader_reason for disk in record.disks)


async def test_without_nbd_changed_blocks_are_picked_out_of_an_export(two_pools: World) -> None:
    await two_pools.replicate(changed_blocks="enable")
    await two_pools.lab.guest_write("web01", 1, random=3, seed=3, within=(0, 2 * MiB))

    second = await two_pools.replicate(changed_blocks="enable")

    [disk] = [disk for disk in second.disks if disk.device == "1"]
    assert disk.reader == "export-changes"
    assert "has the purpose nbd" in disk.reader_reason
    assert disk.changed_bytes == disk.sent_bytes <= 3 * 64 * KiB
    await two_pools.newest_equals_its_source()


async def test_a_job_that_does_not_want_tracking_leaves_it_alone(two_pools: World) -> None:
    first = await two_pools.replicate(changed_blocks="use")

    enabled = await two_pools.ask(
        "prod", lambda x: [vdi["cbt_enabled"] for vdi in x.VDI.get_all_records().values()]
    )
    assert not any(enabled)
    assert set(readers(first).values()) == {"export"}


async def test_tracking_that_was_lost_is_switched_on_again_and_said(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod")
    await two_pools.replicate(changed_blocks="enable")

    def lose(xenapi: Any) -> None:
        for ref, vdi in xenapi.VDI.get_all_records().items():
            if vdi["cbt_enabled"] and not vdi["is_a_snapshot"]:
                xenapi.VDI.disable_cbt(ref)

    await two_pools.ask("prod", lose)
    await two_pools.lab.guest_write("web01", 1, random=2, seed=4)

    second = await two_pools.replicate(changed_blocks="enable")
    await two_pools.lab.guest_write("web01", 1, random=2, seed=5)
    third = await two_pools.replicate(changed_blocks="enable")

    [disk] = [disk for disk in second.disks if disk.device == "1"]
    assert disk.reader == "export"
    assert "does not list changed blocks" in disk.reader_reason
    assert "SR_BACKEND_FAILURE_460" in disk.reader_reason
    assert readers(third)["1"] == "nbd-changes"
    await two_pools.newest_equals_its_source()


async def test_a_server_that_refuses_connections_is_left_for_the_export(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod")
    await two_pools.replicate(changed_blocks="enable")
    await two_pools.lab.guest_write("web01", 1, random=4, seed=3)
    two_pools.lab.faults.add(Fault("nbd", "connect", reset=True, times=None))

    second = await two_pools.replicate(changed_blocks="enable")

    [disk] = [disk for disk in second.disks if disk.device == "1"]
    assert disk.reader == "export-changes"
    assert "NBD" in disk.reader_reason
    assert "OpaqueRef" not in disk.reader_reason
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_a_connection_that_breaks_is_opened_again_and_goes_on(
    two_pools: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xorepd.data.nbd.reader.PAUSE_S", 0.01)
    await serve_nbd(two_pools, "prod")
    fault = two_pools.lab.faults.add(Fault("nbd", "read", skip=3, reset=True))

    record = await two_pools.replicate()

    assert fault.fired == 1
    assert set(readers(record).values()) == {"nbd-allocated"}
    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []


async def test_a_target_that_serves_nbd_is_read_back_there(two_pools: World) -> None:
    await serve_nbd(two_pools, "dr")
    two_pools.lab.recorder.calls.clear()

    await two_pools.replicate(verify="sample")

    asked = [(call.pool, call.kind) for call in two_pools.lab.calls]
    assert ("dr", "nbd") in asked
    assert ("dr", "export") not in asked
    await two_pools.newest_equals_its_source()


async def test_a_lost_write_is_found_by_reading_back(two_pools: World) -> None:
    await serve_nbd(two_pools, "dr")
    two_pools.lab.faults.add(Fault("nbd", "read", pool="dr", flip_at=100 * KiB))

    async with two_pools.daemon() as context:
        record = await two_pools.run(context, verify="full")

    assert record.outcome is Outcome.FAILED
    assert "differs from what was sent" in (record.error or "")
    assert await two_pools.points() == []
    assert await two_pools.left_over() == []


async def test_a_host_that_takes_no_extents_gets_a_vhd(two_pools: World) -> None:
    # 404 is how XAPI says that it does not know a format, or not with these parameters.
    two_pools.lab.faults.add(Fault("import", "raw", http_status=404, times=None))

    record = await two_pools.replicate()

    assert {disk.writer for disk in record.disks} == {"vhd"}
    await two_pools.newest_equals_its_source()
