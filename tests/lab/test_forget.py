"""Giving up what no job means any more: both pools afterwards, and being stopped in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab import hands
from tests.lab.world import DAEMON, World, clock, new_run
from xorepd.config.models import Settings
from xorepd.control.protocol import OrphanReply
from xorepd.daemon.engine import open_engine
from xorepd.daemon.orphans import Orphans
from xorepd.errors import ControlError, LeaseHeld, Refused, XorepdError
from xorepd.replication.deciding.forgetting import Terms
from xorepd.replication.format.claims import Owner
from xorepd.replication.run.jobs import run_job
from xorepd.state.maps import Maps, open_maps
from xorepd.state.records import Outcome
from xorepd_lab.faults.faults import Fault

pytestmark = pytest.mark.lab

AGREED = Terms(even_if_unknown=True)
"""These daemons have no history."""

LOCAL = {"pool": "prod", "sr": "prod-local"}
REMOTE = {"pool": "dr", "sr": "dr-storage"}


@dataclass
class Daemon:
    orphans: Orphans
    told: list[str] = field(default_factory=list)

    async def listed(self) -> tuple[OrphanReply, ...]:
        return (await self.orphans.find_orphans()).orphans

    async def forget(self, terms: Terms = AGREED) -> None:
        """Give up the streams that are there without a job."""
        for orphan in await self.listed():
            await self.orphans.forget(orphan.stream, terms, (), self.told.append)


@asynccontextmanager
async def daemon(
    world: World, *jobs: Any, but: str = "", maps: Maps | None = None
) -> AsyncIterator[Daemon]:
    """Provide a daemon with these jobs and both pools, `but` one."""
    plain = {
        "pools": {name: world.settings(name) for name in ("prod", "dr") if name != but},
        "jobs": {job.name: job for job in jobs},
        "file": Path("/xorepd.toml"),
    }
    async with open_engine(Settings.model_validate(plain), clock, DAEMON.id, maps) as engine:
        yield Daemon(engine.orphans)


def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


async def forget(world: World, terms: Terms = AGREED, *jobs: Any, but: str = "") -> None:
    async with daemon(world, *jobs, but=but) as on:
        await on.forget(terms)


async def ours_on(world: World, pool: str) -> list[str]:
    """Return what on a pool has a key or text of ours, the leases of dead daemons left out."""

    def look(xenapi: Any) -> list[str]:
        records = [
            *xenapi.VM.get_all_records().values(),
            *xenapi.VDI.get_all_records().values(),
            *xenapi.VIF.get_all_records().values(),
            *xenapi.SR.get_all_records().values(),
        ]
        return [
            f"{record.get('name_label', 'interface')}: {key}"
            for record in records
            for key in (*record["other_config"], *record.get("blocked_operations", {}).values())
            if ("xorepd" in key and "xorepd-lease" not in key)
            or key.startswith(("xo:", "Start operation"))
        ]

    found: list[str] = await world.ask(pool, look)
    return found


async def vdis_of_bases(world: World) -> list[dict[str, Any]]:
    """Return the marks of the disks of our snapshots on the source."""

    def look(xenapi: Any) -> list[dict[str, Any]]:
        keys = [vdi["other_config"] for vdi in xenapi.VDI.get_all_records().values()]
        marks = [json.loads(other["xorepd:mark"]) for other in keys if "xorepd:mark" in other]
        return [mark for mark in marks if mark["role"] == "source"]

    found: list[dict[str, Any]] = await world.ask("prod", look)
    return found


async def vms_on(world: World, pool: str) -> set[str]:
    """Return the names of the VMs and snapshots on a pool."""

    def look(xenapi: Any) -> set[str]:
        return {
            vm["name_label"]
            for vm in xenapi.VM.get_all_records().values()
            if not vm["is_control_domain"] and (vm["is_a_snapshot"] or not vm["is_a_template"])
        }

    found: set[str] = await world.ask(pool, look)
    return found


async def nothing_is_left(world: World, but: str = "nothing") -> None:
    assert await ours_on(world, "prod") == []
    assert await ours_on(world, "dr") == []
    assert await vms_on(world, "dr") == set()
    assert await vms_on(world, "prod") == {"web01", "db01"}
    assert [line for line in await world.left_over() if but not in line] == []


async def test_everything_of_the_stream_goes_from_both_pools_and_the_vm_stays(
    replicated: World,
) -> None:
    await replicated.lab.guest_write("web01", 0, sequential=(1 << 20, 1 << 20), seed=1)
    await replicated.replicate(verify="off")

    async with daemon(replicated) as on:
        await on.forget()
        assert await on.listed() == ()

    assert "restore point 2 of 2" in on.told
    await nothing_is_left(replicated)


async def test_maps_of_the_stream_go_as_well(replicated: World, tmp_path: Path) -> None:
    async with open_maps(tmp_path / "maps.db", 1 << 30, clock) as maps:
        assert maps is not None
        async with replicated.daemon() as context:
            record = await replicated.run(replace(context, maps=maps))
        contents = [base["self"] for base in await vdis_of_bases(replicated)]
        assert record.error is None
        stream = (await replicated.points())[0]["stream"]
        name = "/".join((stream["pool"], stream["vm"], stream["sr"]))
        assert [content for content in contents if await maps.find(name, content)] != []

        async with daemon(replicated, maps=maps) as on:
            await on.forget()

        assert [content for content in contents if await maps.find(name, content)] == []


async def test_stream_that_a_job_means_is_refused_and_goes_on(replicated: World) -> None:
    async with daemon(replicated) as on:
        [orphan] = await on.listed()
    async with daemon(replicated, replicated.job(name="other")) as on:
        with pytest.raises(ControlError, match="remove the VM from the job first"):
            await on.orphans.forget(orphan.stream, AGREED, (), on.told.append)

    assert (await replicated.replicate(verify="off")).outcome is Outcome.DELTA


async def test_other_target_of_the_vm_keeps_its_base(two_pools: World) -> None:
    async with two_pools.daemon() as context:
        job = two_pools.job(verify="off", targets=[REMOTE, LOCAL])
        assert len(await run_job(job, new_run(), context)) == 2

    await forget(two_pools, AGREED, two_pools.job(targets=[LOCAL]))

    assert await two_pools.points("dr") == []
    assert len(await two_pools.bases()) == 1
    again = await two_pools.replicate(verify="off", targets=[LOCAL])
    assert again.outcome is Outcome.DELTA


async def test_replica_that_is_kept_is_an_ordinary_vm_that_starts(replicated: World) -> None:
    [point] = await replicated.points()
    before = await replicated.hashes("dr", point["self"])

    await forget(replicated, Terms(keep_replica=True, even_if_unknown=True))

    assert await vms_on(replicated, "dr") == {"web01"}
    assert await ours_on(replicated, "dr") == []
    assert await ours_on(replicated, "prod") == []

    def start(xenapi: Any) -> tuple[str, list[str]]:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.start(vm, False, False)
        xenapi.VM.hard_shutdown(vm)
        return xenapi.VM.get_uuid(vm), xenapi.VM.get_tags(vm)

    uuid, tags = await replicated.ask("dr", start)
    assert "Continuous Replication" not in tags
    assert await replicated.hashes("dr", uuid) == before


async def dies_after(world: World, changes: int, terms: Terms) -> bool:
    """Forget, and kill the daemon when it has sent so many changes; say whether it came to that."""
    fault = world.lab.faults.add(Fault("rpc", match="V*.[!g]*", skip=changes, stall=True))
    async with daemon(world) as on:
        work = start(on.forget(terms))
        dying = start(fault.stalled.wait())
        await asyncio.wait({work, dying}, return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        if not fault.stalled.is_set():
            work.result()
            return False
        world.lab.faults.add(Fault("any", times=None, reset=True))  # nothing is tidied up
        fault.release()
        work.cancel()
        await asyncio.wait({work})
    world.lab.faults.clear()
    return True


@pytest.mark.leaves("session", "result")
@pytest.mark.parametrize("keep", [False, True])
async def test_killed_at_any_change_it_is_finished_by_doing_it_again(
    replicated: World, keep: bool
) -> None:
    await replicated.lab.guest_write("web01", 0, sequential=(1 << 20, 1 << 20), seed=1)
    await replicated.replicate(verify="off")
    terms = Terms(keep_replica=keep, even_if_unknown=True)
    deaths = 0
    while await dies_after(replicated, 1, terms):  # each comes two changes further
        deaths += 1

    assert deaths > 5
    if keep:
        assert await vms_on(replicated, "dr") == {"web01"}
        assert await ours_on(replicated, "dr") + await ours_on(replicated, "prod") == []
    else:
        await nothing_is_left(replicated, but="a task")  # XAPI forgets what has ended in a day


def destroy_source(xenapi: Any) -> None:
    vm = hands.vm_of(xenapi, "web01")
    disks = hands.disks_of(xenapi, vm).values()
    if xenapi.VM.get_power_state(vm) != "Halted":
        xenapi.VM.hard_shutdown(vm)
    xenapi.VM.destroy(vm)
    for disk in disks:
        xenapi.VDI.destroy(disk)


async def test_vm_that_is_gone_from_the_source_leaves_nothing_either(replicated: World) -> None:
    await replicated.ask("prod", destroy_source)
    async with daemon(replicated) as on:
        [orphan] = await on.listed()
        assert (orphan.source_vm_exists, orphan.source, orphan.snapshots) == (False, "prod", 1)
        await on.forget()

    assert await ours_on(replicated, "prod") + await ours_on(replicated, "dr") == []
    assert await vms_on(replicated, "dr") == set()
    assert await vms_on(replicated, "prod") == {"db01"}
    assert await replicated.left_over() == []


def rebuild(xenapi: Any) -> None:
    """Have another VM in place of web01, under its name."""
    vm = hands.vm_of(xenapi, "web01")
    xenapi.VM.hard_shutdown(vm)
    hands.destroy_with_disks(xenapi, vm)
    xenapi.VM.set_name_label(hands.vm_of(xenapi, "db01"), "web01")


async def test_vm_that_was_rebuilt_under_its_name_is_kept_and_the_former_one_is_forgotten(
    replicated: World,
) -> None:
    await replicated.ask("prod", rebuild)
    job = replicated.job(verify="off")
    async with daemon(replicated, job) as on:
        [former] = await on.listed()
        assert (former.source_vm_exists, former.name) == (False, "[XO Backup web] web01")
        assert (await replicated.replicate(verify="off")).outcome is Outcome.FULL
        assert await on.listed() == (former,)

        await on.orphans.forget(former.stream, AGREED, (), on.told.append)
        assert await on.listed() == ()

    assert len(await replicated.points()) == len(await replicated.bases()) == 1
    assert (await replicated.replicate(verify="off")).outcome is Outcome.DELTA


async def test_run_that_misses_a_vm_says_that_another_one_has_its_name(replicated: World) -> None:
    await replicated.ask("prod", rebuild)
    [point] = await replicated.points()

    async with replicated.daemon() as context:
        records = await run_job(replicated.job(vms=("web*",), verify="off"), new_run(), context)

    by_vm = {record.vm_uuid: record for record in records}
    gone = by_vm.pop(point["stream"]["vm"])
    assert [record.outcome for record in by_vm.values()] == [Outcome.FULL]
    assert "is gone, and another one has its name" in (gone.error or "")
    assert f"`xorepctl forget {gone.vm_uuid}` removes that" in (gone.error or "")


async def test_used_replica_is_kept_until_it_is_said_that_it_may_go(replicated: World) -> None:
    def use(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        xenapi.VM.set_blocked_operations(replica, {})
        xenapi.VM.start(replica, False, False)

    await replicated.ask("dr", use)
    brutal = Terms(even_if_unknown=True, even_if_used=True)
    with pytest.raises(Refused, match="its replica is running; shut it down first"):
        await forget(replicated, brutal)

    await replicated.ask("dr", lambda x: x.VM.hard_shutdown(hands.replica_of(x)))
    with pytest.raises(
        Refused,
        match=r"has changed \(disk web01-root was written to; .*\); say --keep-replica",
    ):
        await forget(replicated)
    assert len(await replicated.points()) == 1

    await forget(replicated, brutal)
    await nothing_is_left(replicated)


async def test_snapshot_that_somebody_took_of_the_replica_is_a_use_and_stays(
    replicated: World,
) -> None:
    await replicated.ask("dr", lambda x: x.VM.snapshot(hands.replica_of(x), "by hand"))
    with pytest.raises(Refused, match=r"has snapshots of others \(by hand\)"):
        await forget(replicated)

    await forget(replicated, Terms(even_if_unknown=True, even_if_used=True))

    assert await vms_on(replicated, "dr") == {"by hand"}


async def test_stream_that_another_daemon_works_on_is_refused_with_its_name(
    replicated: World,
) -> None:
    """Its lease is what tells: this daemon has no job for it."""
    fault = replicated.lab.faults.add(Fault("rpc", pool="prod", match="VM.snapshot", stall=True))
    async with replicated.daemon(owner=Owner("other", "standby")) as context:
        job = replicated.job(verify="off")
        run = start(run_job(job, new_run(), context))
        await fault.stalled.wait()
        with pytest.raises(LeaseHeld, match="xorepd on standby"):
            await forget(replicated)
        fault.release()
        replicated.lab.faults.clear()
        [record] = await run

    assert record.outcome is Outcome.DELTA, record.error


async def test_source_that_is_not_configured_is_left_only_on_request(replicated: World) -> None:
    with pytest.raises(Refused, match="its source pool is not configured"):
        await forget(replicated, but="prod")

    await forget(replicated, Terms(even_if_unknown=True, leave_source=True), but="prod")

    assert await vms_on(replicated, "dr") == set()
    assert len(await replicated.bases()) == 1
    await forget(replicated)  # the base is found by the target that it stands for
    await nothing_is_left(replicated)


async def test_daemon_that_remembers_no_run_of_it_wants_to_be_told_so(replicated: World) -> None:
    with pytest.raises(Refused, match="say --even-if-unknown"):
        await forget(replicated, Terms())

    async with daemon(replicated) as on:
        [orphan] = await on.listed()
        _, vm, sr = orphan.stream.split("/")
        await on.orphans.forget(orphan.stream, Terms(), {(vm, sr)}, on.told.append)
    await nothing_is_left(replicated)


@pytest.mark.leaves("session")
@pytest.mark.parametrize("keep", [False, True])
async def test_commit_that_was_cut_off_is_brought_to_an_end_first(
    replicated: World, keep: bool
) -> None:
    [before] = await replicated.points()
    hashes = await replicated.hashes("dr", before["self"])
    await replicated.lab.guest_write("web01", 0, sequential=(1 << 20, 1 << 20), seed=1)
    fault = replicated.lab.faults.add(Fault("rpc", pool="dr", match="VM.snapshot", stall=True))
    async with replicated.daemon() as context:
        run = start(run_job(replicated.job(verify="off"), new_run(), context))
        await fault.stalled.wait()
        replicated.lab.faults.add(Fault("any", times=None, reset=True))
        run.cancel()
        fault.stall = False
        fault.error = ("SR_BACKEND_FAILURE_44", "", "there is no room")
        fault.release()
        await asyncio.gather(run, return_exceptions=True)
    replicated.lab.faults.clear()

    await forget(replicated, Terms(keep_replica=keep, even_if_unknown=True))

    if not keep:
        await nothing_is_left(replicated)
        return
    assert await vms_on(replicated, "dr") == {"web01"}
    uuid = await replicated.ask("dr", lambda x: x.VM.get_uuid(hands.vm_of(x, "web01")))
    found = await replicated.hashes("dr", uuid)
    assert found.keys() == hashes.keys()


@pytest.mark.leaves("session", "result")
async def test_point_of_a_commit_that_was_cut_off_goes_as_well_where_the_vm_is_gone(
    replicated: World,
) -> None:
    await replicated.lab.guest_write("web01", 0, sequential=(1 << 20, 1 << 20), seed=1)
    taken = Fault("rpc", pool="dr", match="VM.snapshot", stall=True, moment="after")
    replicated.lab.faults.add(taken)
    async with replicated.daemon() as context:
        run = start(run_job(replicated.job(verify="off"), new_run(), context))
        await taken.stalled.wait()
        replicated.lab.faults.add(Fault("any", times=None, reset=True))
        run.cancel()
        taken.release()
        await asyncio.gather(run, return_exceptions=True)
    replicated.lab.faults.clear()
    await replicated.ask("prod", destroy_source)
    deaths = 0
    while await dies_after(replicated, 1, AGREED):
        deaths += 1

    assert deaths > 5
    assert await ours_on(replicated, "prod") + await ours_on(replicated, "dr") == []
    assert await vms_on(replicated, "dr") == set()
    assert [line for line in await replicated.left_over() if "a task" not in line] == []


async def test_disk_that_is_held_is_told_of_and_goes_the_next_time(replicated: World) -> None:
    fault = Fault("rpc", pool="dr", match="VDI.destroy", times=None, error=("VDI_IN_USE", "x", "y"))
    replicated.lab.faults.add(fault)
    with pytest.raises(XorepdError, match="could not be removed yet"):
        await forget(replicated)

    replicated.lab.faults.clear()
    await forget(replicated)
    await nothing_is_left(replicated)


async def test_replica_that_runs_after_a_failover_is_set_free_as_it_runs(replicated: World) -> None:
    def fail_over(xenapi: Any) -> None:
        replica = hands.replica_of(xenapi)
        xenapi.VM.set_blocked_operations(replica, {})
        xenapi.VM.start(replica, False, False)

    await replicated.ask("dr", fail_over)
    async with daemon(replicated) as on:
        [orphan] = await on.listed()
        assert orphan.signs_of_use[0] == "is running"
        await on.forget(Terms(keep_replica=True, even_if_unknown=True))

    assert await vms_on(replicated, "dr") == {"web01"}
    assert await ours_on(replicated, "dr") + await ours_on(replicated, "prod") == []
    state = await replicated.ask("dr", lambda x: x.VM.get_power_state(hands.vm_of(x, "web01")))
    assert state == "Running"
