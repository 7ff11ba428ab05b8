"""Bases without data: the source keeps no chain, and the next run is a delta all the same."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.faults.killing import killed_at
from tests.lab import hands
from tests.lab.beginnings import Beginning
from tests.lab.test_forget import forget
from tests.lab.whole import left_by
from tests.lab.world import World, new_run, serve_nbd, world
from xorepd.data.http import chunked
from xorepd.errors import ObjectBusy
from xorepd.ids import PoolName, Ref
from xorepd.replication.run.jobs import run_job
from xorepd.replication.transfer import disks as transfer
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd.xapi.vdis import destroy_data
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.topology import SMALL, PoolSpec, SrSpec

pytestmark = pytest.mark.lab

KiB, MiB = 1 << 10, 1 << 20
UNIT = 64 * KiB

SHED: dict[str, Any] = {"base_data": "destroy", "changed_blocks": "enable", "verify": "off"}
STAGING = "[Importing] web01-data"
BUSY = ("VDI_IN_USE", "OpaqueRef:x", "data_destroy")

DR = {"pool": "dr", "sr": "dr-storage"}
FAR = {"pool": "far", "sr": "far-storage"}
BOTH: dict[str, Any] = SHED | {"targets": [DR, FAR]}
FAR_POOL = PoolSpec("far", ("far-h1",), (SrSpec("far-storage", "ext", ("far-h1",)),), ("lan",))
THREE_POOLS = replace(SMALL, name="three", pools=(*SMALL.pools, FAR_POOL))


async def shed(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod")
    await two_pools.replicate(**SHED)


@pytest.fixture
def beginning(request: pytest.FixtureRequest) -> Beginning | None:
    return shed if "shedding" in request.fixturenames else None


@pytest.fixture
def shedding(two_pools: World) -> World:
    """Prod serves NBD, and has one base, of two disks without data."""
    return two_pools


@pytest.fixture
async def three_pools(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with world(tmp_path / "lab", THREE_POOLS, leaves=left_by(request)) as made:
        await serve_nbd(made, "prod")
        yield made


async def kept(world: World) -> list[tuple[str, str, bool, dict[str, str]]]:
    """Return the disks of our bases: content of which disk, type, in a snapshot or not, for whom.

    Those of one base follow each other, the oldest base first.
    """
    names = {sr.uuid: name for pool in world.lab.pools.values() for name, sr in pool.srs.items()}

    def read(xenapi: Any) -> list[tuple[int, str, str, bool, dict[str, str]]]:
        found = []
        for vdi in xenapi.VDI.get_all_records().values():
            if vdi["is_a_snapshot"] and "xorepd:mark" in vdi["other_config"]:
                keys = vdi["other_config"].items()
                uses = {names[k[11:]]: v for k, v in keys if k.startswith("xorepd:for:")}
                order = json.loads(vdi["other_config"]["xorepd:mark"])["order"]
                found.append((order, vdi["name_label"], vdi["type"], bool(vdi["VBDs"]), uses))
        return sorted(found, key=lambda each: each[:2])

    return [each[1:] for each in await world.ask("prod", read)]


def bare(*srs: str) -> list[tuple[str, str, bool, dict[str, str]]]:
    """Return what `kept` tells of a base without data."""
    uses = dict.fromkeys(srs, "bare")
    return [(name, "cbt_metadata", False, uses) for name in ("web01-data", "web01-root")]


async def extra_files(world: World) -> set[str]:
    """Return the VHDs that the SRs of the source keep beside the disks of VMs."""

    def read(xenapi: Any) -> set[str]:
        records = xenapi.VDI.get_all_records().values()
        return {vdi["uuid"] for vdi in records if vdi["managed"] and not vdi["is_a_snapshot"]}

    live: set[str] = await world.ask("prod", read)
    await world.lab.settled()  # coalescing takes a while
    files = [f for sr in world.lab.pools["prod"].srs.values() for f in sr.directory.rglob("*.vhd")]
    return {file.stem for file in files} - live


async def assert_equal(world: World, pool: str = "dr") -> None:
    """Check the newest restore point against the VM itself, which nobody has written to since."""
    vm = await world.ask("prod", lambda x: x.VM.get_uuid(hands.vm_of(x, "web01")))
    point = (await world.points(pool))[0]["self"]
    assert await world.hashes(pool, point) == await world.hashes("prod", vm)


async def assert_nothing_else_left(world: World) -> None:
    bases = await world.ask(
        "prod",
        lambda x: [v["uuid"] for v in x.VDI.get_all_records().values() if v["type"][:3] == "cbt"],
    )
    assert await world.left_over(but=bases) == []


def data_disk(record: RunRecord) -> DiskRecord:
    [disk] = [disk for disk in record.disks if disk.device == "1"]
    return disk


async def test_source_keeps_no_chain_and_the_next_run_is_a_delta(shedding: World) -> None:
    for seed in (1, 2):
        assert await kept(shedding) == bare("dr-storage")
        assert await shedding.bases() == []
        assert await extra_files(shedding) == set()
        touched = await shedding.lab.guest_write("web01", 1, random=5, seed=seed)
        touched += await shedding.lab.guest_write("web01", 1, trim=(8 * MiB, 2 * MiB))

        record = await shedding.replicate(**SHED | {"verify": "full"})

        disk = data_disk(record)
        assert (record.outcome, disk.mode, disk.reader) == ("delta", "delta", "nbd-changes")
        blocks = {at // UNIT for start, size in touched for at in range(start, start + size, UNIT)}
        assert disk.sent_bytes == disk.changed_bytes
        assert len(blocks) * UNIT <= disk.sent_bytes <= (len(blocks) + len(touched)) * UNIT
        await assert_equal(shedding)
    assert await kept(shedding) == bare("dr-storage")
    await assert_nothing_else_left(shedding)


async def test_metadata_of_others_is_left_alone(shedding: World) -> None:
    def shed_one(xenapi: Any) -> str:
        disk = hands.disks_of(xenapi, hands.vm_of(xenapi, "web01"))["1"]
        theirs = xenapi.VDI.snapshot(disk, {})
        xenapi.VDI.add_to_other_config(theirs, "xo:backup:job", "theirs")
        xenapi.VDI.data_destroy(theirs)
        return str(theirs)

    theirs = await shedding.ask("prod", shed_one)
    for seed in (1, 2):
        await shedding.lab.guest_write("web01", 1, random=2, seed=seed)
        await shedding.replicate(**SHED)

    assert await shedding.ask("prod", lambda x: x.VDI.get_type(theirs)) == "cbt_metadata"
    await assert_equal(shedding)


async def test_a_job_that_keeps_the_data_of_bases_destroys_none(two_pools: World) -> None:
    await serve_nbd(two_pools, "prod")

    record = await two_pools.replicate(changed_blocks="enable")

    said = ("kept", 'the job has base_data = "keep"')
    assert (record.base_data, record.base_data_reason) == said
    assert [kind for _, kind, _, _ in await kept(two_pools)] == ["user", "user"]
    assert not any(call.name.endswith("data_destroy") for call in two_pools.lab.calls)


@pytest.mark.parametrize("case", ["no NBD", "no tracking"])
async def test_data_stays_where_nothing_could_be_read_without_it(
    two_pools: World, case: str
) -> None:
    if case == "no tracking":
        await serve_nbd(two_pools, "prod")
    tracking = "use" if case == "no tracking" else "enable"

    with capture_logs() as logs:
        record = await two_pools.replicate(base_data="destroy", changed_blocks=tracking)

    [told] = [entry for entry in logs if entry["event"] == "base.data_kept"]
    text = {"no NBD": "has the purpose nbd", "no tracking": "tracking is off on its disk"}
    assert text[case] in told["reason"]
    assert (record.base_data, record.base_data_reason) == ("kept", told["reason"])
    assert [kind for _, kind, _, _ in await kept(two_pools)] == ["user", "user"]
    await two_pools.newest_equals_its_source()


async def test_without_nbd_what_changed_is_picked_out_of_the_whole_disk(shedding: World) -> None:
    await shedding.lab.guest_write("web01", 1, sequential=(8 * MiB, 8 * MiB), seed=1)
    await shedding.replicate(**SHED)
    await shedding.lab.guest_write("web01", 1, random=5, seed=2)
    await shedding.lab.guest_write("web01", 1, trim=(8 * MiB, 4 * MiB))
    shedding.lab.faults.add(Fault("nbd", "connect", reset=True, times=None))

    record = await shedding.replicate(**SHED)

    assert (data_disk(record).mode, data_disk(record).reader) == ("delta", "export-changes")
    await assert_equal(shedding)
    assert await kept(shedding) == bare("dr-storage")


def lose_tracking(xenapi: Any) -> None:
    for disk in hands.disks_of(xenapi, hands.vm_of(xenapi, "web01")).values():
        xenapi.VDI.disable_cbt(disk)


@pytest.mark.parametrize(("resync", "mode"), [(True, "resync"), (False, "full")])
async def test_lost_tracking_costs_a_comparison_or_a_full_that_says_so(
    shedding: World, resync: bool, mode: str
) -> None:
    await shedding.lab.guest_write("web01", 1, random=5, seed=2)
    await shedding.ask("prod", lose_tracking)

    record = await shedding.replicate(**SHED, resync=resync)

    assert {(disk.mode, disk.reason) for disk in record.disks} == {(mode, "changes-unknown")}
    await assert_equal(shedding)
    assert await kept(shedding) == bare("dr-storage")
    following = await shedding.replicate(**SHED, resync=resync)
    assert {(disk.mode, disk.reason) for disk in following.disks} == {("delta", "")}


async def test_a_full_for_lost_tracking_waits_for_consent(shedding: World) -> None:
    await shedding.ask("prod", lose_tracking)

    async with shedding.daemon() as context:
        record = await shedding.run(context, **SHED, resync=False, full="ask")

    assert record.outcome is Outcome.FAILED
    assert "changes-unknown" in (record.error or "")
    assert await kept(shedding) == bare("dr-storage")


async def test_a_job_may_go_back_to_keeping_data(shedding: World) -> None:
    await shedding.lab.guest_write("web01", 1, random=2, seed=1)

    record = await shedding.replicate(changed_blocks="use")

    assert (data_disk(record).mode, data_disk(record).reader) == ("delta", "nbd-changes")
    assert [(kind, has_vm) for _, kind, has_vm, _ in await kept(shedding)] == [("user", True)] * 2
    await shedding.newest_equals_its_source()


async def test_a_stream_that_is_given_up_takes_its_metadata_along(shedding: World) -> None:
    await forget(shedding)

    assert await kept(shedding) == []
    await assert_nothing_else_left(shedding)


# -- several targets -----------------------------------------------------------------------------


async def replicate_to_both(three_pools: World, **changes: Any) -> list[RunRecord]:
    async with three_pools.daemon() as context:
        return await run_job(three_pools.job(**BOTH | changes), new_run(), context)


async def test_data_goes_when_the_last_target_has_it(three_pools: World) -> None:
    records = await replicate_to_both(three_pools)

    assert [record.outcome for record in records] == [Outcome.FULL] * 2
    assert await kept(three_pools) == bare("dr-storage", "far-storage")
    first, last = sorted(records, key=lambda record: record.base_data == "destroyed")
    assert (last.base_data, last.base_data_reason) == ("destroyed", "")
    assert first.base_data == "kept"
    assert first.base_data_reason == f"SR {last.sr_uuid} needs it as well"


async def test_data_stays_until_a_target_that_broke_off_has_confirmed_it(
    three_pools: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 4 * MiB)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
    await three_pools.lab.guest_write("web01", 1, sequential=(0, 24 * MiB), seed=1)
    three_pools.lab.faults.add(
        Fault("import", pool="far", times=None, object=STAGING, skip=2, cut_at=MiB)
    )
    broken = await replicate_to_both(three_pools, resume="1d")
    assert [record.outcome for record in broken] == [Outcome.FULL, Outcome.FAILED]
    assert [kind for _, kind, _, _ in await kept(three_pools)] == ["user", "user"]
    [base] = await three_pools.bases()
    three_pools.lab.faults.clear()

    records = await replicate_to_both(three_pools, resume="1d")

    assert [record.outcome for record in records] == [Outcome.DELTA, Outcome.FULL]
    await assert_equal(three_pools)
    await assert_equal(three_pools, "far")
    assert [kind for _, kind, _, _ in await kept(three_pools)] == ["cbt_metadata"] * 4
    assert base["self"] not in [each["self"] for each in await three_pools.bases()]


async def test_a_target_that_was_off_gets_one_delta_from_metadata(three_pools: World) -> None:
    await replicate_to_both(three_pools)
    off = three_pools.lab.faults.add(Fault("any", pool="far", times=None, reset=True))
    for seed in range(3):
        await three_pools.lab.guest_write("web01", 1, random=2, seed=seed)
        await replicate_to_both(three_pools)
    assert off.fired
    # Those in between are of no use, and wait for the oldest: their logs lead to it.
    used = [each for each in await kept(three_pools) if each[3]]
    assert used == bare("far-storage") + bare("dr-storage")
    three_pools.lab.faults.clear()

    records = await replicate_to_both(three_pools)

    assert [record.outcome for record in records] == [Outcome.DELTA] * 2
    assert data_disk(records[1]).reader == "nbd-changes"
    await assert_equal(three_pools)
    await assert_equal(three_pools, "far")
    assert await kept(three_pools) == bare("dr-storage", "far-storage")
    await assert_nothing_else_left(three_pools)


async def test_metadata_goes_with_the_last_target_that_had_a_use_for_it(
    three_pools: World,
) -> None:
    await replicate_to_both(three_pools)
    three_pools.lab.faults.add(Fault("any", pool="far", times=None, reset=True))
    await replicate_to_both(three_pools)
    assert await kept(three_pools) == bare("far-storage") + bare("dr-storage")
    await three_pools.ask("prod", make_older(timedelta(seconds=60)))

    await replicate_to_both(three_pools, hold_bases="30s")

    assert await kept(three_pools) == bare("dr-storage")
    three_pools.lab.faults.clear()
    await assert_nothing_else_left(three_pools)


def make_older(by: timedelta) -> hands.Deed:
    """Return a deed that dates all marks on disks back, as if that much time had passed."""

    def deed(xenapi: Any) -> None:
        for ref, vdi in xenapi.VDI.get_all_records().items():
            mark = json.loads(vdi["other_config"].get("xorepd:mark", "null"))
            if mark:
                mark["moment"] = str(datetime.fromisoformat(mark["moment"]) - by)
                other = vdi["other_config"] | {"xorepd:mark": json.dumps(mark)}
                xenapi.VDI.set_other_config(ref, other)

    return deed


# -- bases of others -----------------------------------------------------------------------------


def take_base(xenapi: Any) -> str:
    """Take a base without data of the second disk, as another program does."""
    disk = hands.disks_of(xenapi, hands.vm_of(xenapi, "web01"))["1"]
    base: str = xenapi.VDI.snapshot(disk)
    xenapi.VDI.data_destroy(base)
    return base


async def test_a_base_waits_for_an_older_one_of_another_program(shedding: World) -> None:
    """Drivers of file SRs cut the line of logs at metadata that is destroyed in its middle."""
    theirs = await shedding.ask("prod", take_base)
    for seed in (1, 2):
        await shedding.lab.happen(Incident("clock-jump", pool="prod", seconds=60))
        await shedding.lab.guest_write("web01", 1, random=3, seed=seed)
        record = await shedding.replicate(**SHED)
        assert (record.outcome, data_disk(record).reader) == (Outcome.DELTA, "nbd-changes")

    def look(xenapi: Any) -> str:
        disk = hands.disks_of(xenapi, hands.vm_of(xenapi, "web01"))["1"]
        head = xenapi.VDI.snapshot(disk)
        changed: str = xenapi.VDI.list_changed_blocks(theirs, head)
        xenapi.VDI.destroy(theirs)
        xenapi.VDI.destroy(head)
        return changed

    assert any(b64decode(await shedding.ask("prod", look)))
    await shedding.lab.guest_write("web01", 1, random=3, seed=3)
    record = await shedding.replicate(**SHED)
    assert record.outcome is Outcome.DELTA
    await assert_equal(shedding)
    assert await kept(shedding) == bare("dr-storage")
    await assert_nothing_else_left(shedding)


async def test_a_base_whose_logs_another_program_cut_is_compared_with(shedding: World) -> None:
    theirs = await shedding.ask("prod", take_base)
    await shedding.lab.guest_write("web01", 1, random=3, seed=1)
    await shedding.ask("prod", lambda xenapi: xenapi.VDI.destroy(theirs))

    record = await shedding.replicate(**SHED)

    assert (data_disk(record).mode, data_disk(record).reason) == ("resync", "changes-unknown")
    await assert_equal(shedding)
    following = await shedding.replicate(**SHED)
    assert {(disk.mode, disk.reason) for disk in following.disks} == {("delta", "")}


# -- half done -----------------------------------------------------------------------------------


async def test_a_disk_that_is_still_held_is_waited_for(shedding: World) -> None:
    busy = shedding.lab.faults.add(Fault("rpc", "VDI.data_destroy", "prod", times=2, error=BUSY))

    await shedding.replicate(**SHED)

    assert busy.fired == 2
    assert await kept(shedding) == bare("dr-storage")


async def test_data_that_cannot_be_destroyed_now_goes_with_the_next_run(
    shedding: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xorepd.xapi.vdis.BUSY_PAUSE_S", 0.1)
    busy = shedding.lab.faults.add(
        Fault("rpc", "VDI.data_destroy", "prod", times=None, object="web01-root", error=BUSY)
    )
    record = await shedding.replicate(**SHED)
    assert record.outcome is Outcome.DELTA
    assert record.base_data == "kept"
    assert "is in use (data_destroy)" in record.base_data_reason
    assert [kind for _, kind, _, _ in await kept(shedding)] == ["cbt_metadata", "user"]
    assert busy.fired
    shedding.lab.faults.clear()
    await shedding.lab.guest_write("web01", 0, random=1, seed=3)

    await shedding.replicate(**SHED)

    assert await kept(shedding) == bare("dr-storage")
    await assert_equal(shedding)
    await assert_nothing_else_left(shedding)


@pytest.mark.leaves("session")
async def test_a_base_that_something_holds_is_asked_for_once_and_then_left_for_a_while(
    shedding: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool waits for 4 s each time, and a hung drive stays for days."""
    monkeypatch.setattr("xorepd.xapi.vdis.BUSY_PAUSE_S", 0.1)
    shedding.lab.faults.add(
        Fault("rpc", "VDI.data_destroy", "prod", times=None, object="web01-root", error=BUSY)
    )
    await shedding.replicate(**SHED)
    shedding.lab.faults.clear()

    def hold(xenapi: Any) -> str:
        dom0 = xenapi.host.get_control_domain(xenapi.host.get_all()[0])
        [disk] = [
            ref
            for ref, vdi in xenapi.VDI.get_all_records().items()
            if vdi["is_a_snapshot"] and vdi["type"] == "user" and vdi["name_label"] == "web01-root"
        ]
        xenapi.VBD.plug(hands.attach(xenapi, dom0, disk, "autodetect", mode="RO"))
        return str(disk)

    held = await shedding.ask("prod", hold)
    hangs = ("DEVICE_DETACH_REJECTED", "", "")
    shedding.lab.faults.add(Fault("rpc", "VBD.unplug", "prod", times=None, error=hangs))

    def asked() -> int:
        names = [call.name for call in shedding.lab.recorder.calls]
        return sum(name.endswith(("data_destroy", "VBD.unplug")) for name in names)

    async with shedding.daemon() as context:
        prod = context.pools[PoolName("prod")]
        await prod.refresh()
        shedding.lab.recorder.calls.clear()
        disk = prod.cache.vdis[Ref(held)]
        with pytest.raises(ObjectBusy):
            await destroy_data(prod, disk)
        first = asked()
        for _ in range(3):
            with pytest.raises(ObjectBusy):
                await destroy_data(prod, disk)
        assert asked() == first > 0
        shedding.lab.faults.clear()
        await shedding.ask("prod", hands.free_the_control_domains)
        await shedding.run(context, **SHED)

    assert await kept(shedding) == bare("dr-storage")


@pytest.mark.parametrize("method", ["VM.destroy", "VDI.data_destroy"])
async def test_a_pool_that_refuses_costs_room_and_no_run(shedding: World, method: str) -> None:
    refusal = ("RBAC_PERMISSION_DENIED", method, "no")
    refused = shedding.lab.faults.add(Fault("rpc", method, "prod", times=None, error=refusal))

    record = await shedding.replicate(**SHED)

    assert refused.fired
    assert record.outcome is Outcome.DELTA
    assert record.base_data == "kept"
    assert "RBAC_PERMISSION_DENIED" in record.base_data_reason
    assert [kind for _, kind, _, _ in await kept(shedding)] == ["user"] * 2
    shedding.lab.faults.clear()
    await shedding.lab.guest_write("web01", 1, random=2, seed=1)
    await shedding.replicate(**SHED)
    assert await kept(shedding) == bare("dr-storage")
    await assert_equal(shedding)
    await assert_nothing_else_left(shedding)


MOMENTS = [("VM.destroy", 0), ("VDI.data_destroy", 0), ("VDI.data_destroy", 1)]


@pytest.mark.leaves("session")
@pytest.mark.parametrize(("method", "before"), MOMENTS)
async def test_killed_while_data_is_destroyed_leaves_a_base_and_no_disk_too_many(
    shedding: World, method: str, before: int
) -> None:
    await shedding.lab.guest_write("web01", 1, random=2, seed=1)

    assert await killed_at(shedding, ("prod", method, before), **SHED)

    await shedding.lab.guest_write("web01", 1, random=2, seed=2)
    record = await shedding.replicate(**SHED)
    assert (record.outcome, data_disk(record).mode) == (Outcome.DELTA, "delta")
    await assert_equal(shedding)
    assert await kept(shedding) == bare("dr-storage")
    await assert_nothing_else_left(shedding)


@pytest.mark.leaves("session")
@pytest.mark.parametrize(("method", "before"), MOMENTS[1:])
async def test_what_was_left_half_done_is_finished_for_a_target_that_is_away(
    three_pools: World, method: str, before: int
) -> None:
    await killed_at(three_pools, ("prod", method, before), **BOTH)
    three_pools.lab.faults.add(Fault("any", pool="far", times=None, reset=True))
    await three_pools.lab.guest_write("web01", 1, random=2, seed=1)

    await replicate_to_both(three_pools)

    assert await kept(three_pools) == bare("far-storage") + bare("dr-storage")
    three_pools.lab.faults.clear()
    records = await replicate_to_both(three_pools)
    assert [record.outcome for record in records] == [Outcome.DELTA] * 2
    await assert_equal(three_pools)
    await assert_equal(three_pools, "far")
    assert await kept(three_pools) == bare("dr-storage", "far-storage")
    await assert_nothing_else_left(three_pools)
