"""What a toolstack leaves attached, forgets, or brings back from before: found, said, mended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.lab import hands
from tests.lab.test_ownership import doubts, everything
from tests.lab.test_resume import has_its_content
from tests.lab.world import World, world
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault, Where
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.topology import SMALL, SrSpec

pytestmark = pytest.mark.lab

MiB = 1 << 20


async def attached_to_dom0(world: World, pool: str) -> int:
    def look(xenapi: Any) -> int:
        return sum(
            xenapi.VM.get_is_control_domain(vbd["VM"])
            for vbd in xenapi.VBD.get_all_records().values()
        )

    found: int = await world.ask(pool, look)
    return found


async def run(world: World, **changes: Any) -> RunRecord:
    async with world.daemon() as context:
        return await world.run(context, **changes)


@pytest.mark.leaves("session")
@pytest.mark.parametrize("pool", ["dr", "prod"])
async def test_a_disk_that_a_dead_toolstack_left_attached_is_freed_and_goes(
    replicated: World, pool: str
) -> None:
    await replicated.lab.guest_write("web01", 1, sequential=(0, 12 * MiB), seed=1)
    where: Where = "import" if pool == "dr" else "export"
    fault = Fault(where, pool=pool, object="web01-data", stall=True, stall_at=3 * MiB)
    if pool == "dr":
        fault.object = "[Importing] web01-data"
    replicated.lab.faults.add(fault)
    async with replicated.daemon() as context, asyncio.TaskGroup() as group:
        running = group.create_task(replicated.run(context))
        await fault.stalled.wait()
        if pool == "dr":
            await has_its_content(replicated)
        await replicated.lab.happen(Incident("toolstack-restart", pool=pool))
        fault.release()
        assert (await running).outcome is Outcome.FAILED
    replicated.lab.faults.clear()

    for seed in (2, 3):
        await replicated.lab.guest_write("web01", 1, random=2, seed=seed)
        record = await run(replicated)
        assert record.outcome is Outcome.DELTA, record.error

    assert await attached_to_dom0(replicated, pool) == 0
    assert await replicated.left_over() == []


async def test_a_target_whose_database_is_older_than_its_disks_gets_a_comparison(
    replicated: World,
) -> None:
    await replicated.lab.happen(Incident("database-saved", pool="dr"))
    await replicated.lab.guest_write("web01", 1, sequential=(MiB, MiB), seed=1)
    assert (await run(replicated, keep=1)).outcome is Outcome.DELTA
    await replicated.lab.happen(Incident("database-rollback", pool="dr"))
    await replicated.ask("dr", scan)
    await replicated.lab.guest_write("web01", 1, sequential=(4 * MiB, MiB), seed=2)

    record = await run(replicated, keep=1)
    if record.outcome is Outcome.FAILED:  # its sessions and tasks are those of before
        record = await run(replicated, keep=1)

    assert record.error is None, record.error
    assert {disk.reason for disk in record.disks} <= {"", "base-gone-on-source", "marks-lost"}
    assert sum(disk.sent_bytes for disk in record.disks) < 8 * MiB
    await replicated.newest_equals_its_source()


def scan(xenapi: Any) -> None:
    for sr in xenapi.SR.get_by_name_label("dr-storage"):
        xenapi.SR.scan(sr)


async def test_an_sr_that_was_introduced_again_gets_a_comparison_and_its_disks_are_listed(
    replicated: World,
) -> None:
    def forget_and_introduce(xenapi: Any) -> list[str]:
        [sr] = xenapi.SR.get_by_name_label("dr-storage")
        record = xenapi.SR.get_record(sr)
        pbds = [xenapi.PBD.get_record(pbd) for pbd in record["PBDs"]]
        disks = [xenapi.VDI.get_uuid(vdi) for vdi in record["VDIs"]]
        for pbd in record["PBDs"]:
            xenapi.PBD.unplug(pbd)
        xenapi.SR.forget(sr)
        sr = xenapi.SR.introduce(
            record["uuid"],
            record["name_label"],
            "",
            record["type"],
            record["content_type"],
            record["shared"],
            record["sm_config"],
        )
        for pbd in pbds:
            made = xenapi.PBD.create(
                {"host": pbd["host"], "SR": sr, "device_config": pbd["device_config"]}
            )
            xenapi.PBD.plug(made)
        xenapi.SR.scan(sr)
        return disks

    await replicated.ask("dr", forget_and_introduce)

    record = await run(replicated)

    assert record.error is None, record.error
    assert {(disk.mode, disk.reason) for disk in record.disks} == {("resync", "marks-lost")}
    await replicated.newest_equals_its_source()
    listed = {doubt.uuid for doubt in await doubts(replicated, "dr")}
    assert listed
    assert listed <= (await replicated.ask("dr", everything)).keys()


@pytest.mark.parametrize("used", [False, True], ids=["moved", "moved and used"])
async def test_a_replica_whose_disks_were_moved_is_refused_and_kept(
    tmp_path: Path, used: bool
) -> None:
    prod, dr = SMALL.pools
    two_srs = replace(dr, srs=(*dr.srs, SrSpec("dr-other", "ext", dr.hosts[:1])))

    def move(xenapi: Any) -> list[str]:
        replica = hands.replica_of(xenapi)
        [other] = xenapi.SR.get_by_name_label("dr-other")
        for vdi in hands.disks_of(xenapi, replica).values():
            xenapi.VDI.pool_migrate(vdi, other, {})
        disks = hands.disks_of(xenapi, replica).values()
        return [str(xenapi.VDI.get_uuid(vdi)) for vdi in disks]

    topology = replace(SMALL, pools=(prod, two_srs))
    async with world(tmp_path / "lab", topology) as moved:
        await moved.replicate(verify="off")
        await moved.ask("dr", start_replica)
        theirs = await moved.ask("dr", move)
        if used:
            await moved.lab.guest_write("[XO Backup web] web01", 1, sequential=(0, MiB), seed=9)
        await moved.ask("dr", lambda x: x.VM.hard_shutdown(hands.replica_of(x)))

        record = await run(moved)

        assert record.outcome is Outcome.FAILED
        assert "replica [XO Backup web] web01 has changed since its last run" in str(record.error)
        assert (await moved.ask("dr", everything)).keys() >= set(theirs)

        record = await run(moved, diverged="replace")

        assert record.error is None  # its restore points have moved as well
        assert {disk.reason for disk in record.disks} == {"marks-lost"}
        assert (await moved.ask("dr", everything)).keys() >= set(theirs)
        await moved.newest_equals_its_source()
        await moved.ask("dr", hands.destroy_disks(theirs))


def start_replica(xenapi: Any) -> None:
    """Start the replica, and wait until its guest can do what XAPI may ask of it."""
    replica = hands.replica_of(xenapi)
    xenapi.VM.set_blocked_operations(replica, {})
    xenapi.VM.start(replica, False, False)
    while "suspend" not in xenapi.VM.get_allowed_operations(replica):
        pass


async def test_a_base_that_something_holds_costs_a_run_no_waiting_for_it(
    replicated: World,
) -> None:
    base = (await replicated.bases())[0]["self"]

    def hold(xenapi: Any) -> None:
        dom0 = xenapi.host.get_control_domain(xenapi.host.get_all()[0])
        disks = hands.disks_of(xenapi, xenapi.VM.get_by_uuid(base))
        vbd = hands.attach(xenapi, dom0, disks["1"], "autodetect", mode="RO")
        xenapi.VBD.plug(vbd)

    await replicated.ask("prod", hold)
    stuck = Fault("rpc", "VBD.unplug", "prod", times=None, error=("DEVICE_DETACH_REJECTED", "", ""))
    replicated.lab.faults.add(stuck)
    tried = []
    with capture_logs() as logs:
        async with replicated.daemon() as context:
            for seed in range(3):
                await replicated.lab.guest_write("web01", 1, random=2, seed=seed)
                assert (await replicated.run(context, verify="off")).error is None
                tried.append(stuck.fired)

    said = [entry for entry in logs if entry["event"] == "disk.not_destroyed"]
    assert len([entry for entry in said if entry["log_level"] == "warning"]) == 1
    assert tried == [tried[0]] * 3
    assert stuck.fired
    replicated.lab.faults.clear()
    await replicated.ask("prod", hands.free_the_control_domains)
