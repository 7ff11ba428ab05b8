"""Streams that are cut, damaged or refused: no restore point appears, the last one stays."""

from __future__ import annotations

import pytest

from tests.lab.world import World
from xorepd.state.records import Outcome
from xorepd_lab.faults.faults import Fault

MiB = 1 << 20

# The HTTP client repeats a request that was cut before any answer, so resets go on and on.
BROKEN = {
    "export-cut-in-a-block": (Fault("export", cut_at=3 * MiB), "VDI_IO_ERROR"),
    "export-cut-in-the-head": (Fault("export", cut_at=700), "VDI_IO_ERROR"),
    "export-ends-early-in-order": (Fault("export", end_at=3 * MiB), "VDI_IO_ERROR"),
    "export-ends-before-its-footer": (Fault("export", end_at=2 * MiB + 4096), "VDI_IO_ERROR"),
    "damaged-footer-copy": (Fault("export", flip_at=40), "checksum"),
    "damaged-header": (Fault("export", flip_at=600), "checksum"),
    "damaged-block-table": (Fault("export", flip_at=2049), "sector"),
    "damaged-bitmap": (Fault("export", flip_at=2048 + 512 + 10), "partly present"),
    "padded": (Fault("export", append=512), "follow the end"),
    "error-inside-the-200": (
        Fault("export", error=("SR_BACKEND_FAILURE_46", "", "not detached cleanly", "")),
        "SR_BACKEND_FAILURE_46",
    ),
    "export-reset": (Fault("export", times=None, reset=True), "connection broke"),
    "import-reset": (Fault("import", times=None, reset=True), "connection broke"),
    "import-cut": (Fault("import", cut_at=3 * MiB), "VDI_IO_ERROR"),
    "import-refused": (
        Fault("import", error=("SR_BACKEND_FAILURE_46", "", "not detached cleanly", "")),
        "SR_BACKEND_FAILURE_46",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_stream_leaves_the_last_point_and_the_next_run_is_a_delta(
    replicated: World, name: str
) -> None:
    fault, said = BROKEN[name]
    # Both disks change, so that whichever stream the fault meets is long enough for it.
    for disk in (0, 1):
        await replicated.lab.guest_write("web01", disk, sequential=(20 * MiB, 4 * MiB), seed=disk)
    last = (await replicated.points())[0]["self"]
    before = await replicated.hashes("dr", last)
    replicated.lab.faults.add(fault)

    async with replicated.daemon() as context:
        failed = await replicated.run(context)
        assert fault.fired >= 1
        assert failed.outcome is Outcome.FAILED
        assert said in (failed.error or ""), failed.error
        assert "web01" in (failed.error or "")
        assert "OpaqueRef" not in (failed.error or "").replace("OpaqueRef:NULL", "")
        assert [mark["self"] for mark in await replicated.points()] == [last]
        assert await replicated.hashes("dr", last) == before
        assert await replicated.left_over() == []

        replicated.lab.faults.clear()
        record = await replicated.run(context)

    assert record.outcome is Outcome.DELTA, record.error
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_damaged_data_is_found_when_it_is_read_back(replicated: World) -> None:
    await replicated.lab.guest_write("web01", 1, sequential=(20 * MiB, 2 * MiB), seed=1)
    # The exports are the two of the transfer and then those of the check, on the other pool.
    fault = replicated.lab.faults.add(Fault("export", pool="dr", flip_at=2 * MiB))

    async with replicated.daemon() as context:
        failed = await replicated.run(context)

        assert fault.fired == 1
        assert failed.outcome is Outcome.FAILED
        assert "differs from what was sent" in (failed.error or "")
        assert len(await replicated.points()) == 1
        assert await replicated.left_over() == []
