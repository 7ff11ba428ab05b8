"""Anything may happen to a job in any order: what is promised holds after each of it.

Hypothesis makes up a life: guests write, runs come to their end or not, people change things on
both pools, a second daemon starts. The truth is what libvhdi reads from the files of both pools.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.lab import hands
from tests.lab.whole import find_problems
from tests.lab.world import World, new_run, serve_nbd, world
from tests.patience import patience
from tests.sweep.sweep import CHUNK, LEFT_BY_THE_DEAD
from xorepd.replication.format.claims import Owner
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

LIVES = int(os.environ.get("XOREPD_LIVES", "3"))
LENGTH = 8
SOMEBODY_ELSE = Owner("0c7a8c58-6f5c-4a6e-8a0b-0b6f0c7d1e22", "elsewhere")


@dataclass
class Life:
    """A lab, and what is known of it."""

    lab: World
    points: dict[str, dict[str, str]] = field(default_factory=dict)
    """UUID of each restore point → hashes of its disks by device, as they were when it was new."""
    theirs: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    """The same of what people made: (pool, UUID)."""
    has_base: bool = False
    """Whether nobody has touched what the next delta needs."""
    seed: int = 0
    base_data: str = "keep"
    """As the operator's file has it now."""

    def job(self) -> Any:
        return self.lab.job(
            keep=2,
            diverged="replace",
            changed_blocks="enable",
            resume="1d",
            base_data=self.base_data,
        )

    async def run(self, owner: Owner | None = None) -> RunRecord:
        async with self.lab.daemon(owner=owner) as context:
            [record] = await run_job(self.job(), new_run(), context)
        return record


# -- what may happen ------------------------------------------------------------------------------


async def write(life: Life, number: int) -> None:
    life.seed += 1
    state = await life.lab.ask("prod", lambda x: x.VM.get_power_state(hands.vm_of(x, "web01")))
    if state == "Running":
        await life.lab.lab.guest_write("web01", number % 2, random=1 + number, seed=life.seed)


async def replicate(life: Life, number: int) -> None:
    """A run of a daemon that remembers nothing succeeds: with a delta where one is possible."""
    had_base = life.has_base
    before = {
        base["self"]: await life.lab.hashes("prod", base["self"]) for base in await sent(life)
    }
    record = await life.run()
    assert record.error is None, record.error
    if had_base:
        assert record.outcome is Outcome.DELTA, [disk.reason for disk in record.disks]
    newest = await newest_equals_its_source(life, before)
    life.points[newest] = await life.lab.hashes("dr", newest)
    life.has_base = True
    bare = await life.lab.ask("prod", bare_bases)
    held = await life.lab.ask("dr", lambda xenapi: contents_of(xenapi, newest))
    assert bare <= held, "metadata that no restore point needs"
    assert await life.lab.left_over(but=[*(uuid for _, uuid in life.theirs), *bare]) == []


async def sent(life: Life) -> list[dict[str, Any]]:
    """Return the snapshots that a run may go on with and have no data any more after it."""
    return await life.lab.bases() if life.base_data == "destroy" else []


async def newest_equals_its_source(life: Life, before: dict[str, dict[str, str]]) -> str:
    """Check the newest restore point byte for byte; return its UUID.

    Args:
        before: UUID of each source snapshot that stood before the run → hashes of its disks. One
            that the run has taken since has the content of the VM itself, which nobody wrote to.
    """
    point, *_ = await life.lab.points()
    source = point["snapshot"]
    if source in {base["self"] for base in await life.lab.bases()}:
        return await life.lab.newest_equals_its_source()
    vm = await life.lab.ask("prod", lambda x: x.VM.get_uuid(hands.vm_of(x, "web01")))
    expected = before.get(source) or await life.lab.hashes("prod", vm)
    newest = str(point["self"])
    assert await life.lab.hashes("dr", newest) == expected
    return newest


def bare_bases(xenapi: Any) -> set[str]:
    """Return the UUIDs of our disks on the source that have no data."""
    return {
        vdi["uuid"]
        for vdi in xenapi.VDI.get_all_records().values()
        if vdi["type"] == "cbt_metadata" and "xorepd:mark" in vdi["other_config"]
    }


def contents_of(xenapi: Any, point: str) -> set[str]:
    """Return the UUIDs of the source disks whose content a restore point holds."""
    disks = hands.disks_of(xenapi, xenapi.VM.get_by_uuid(point)).values()
    marks = [json.loads(xenapi.VDI.get_other_config(vdi)["xorepd:mark"]) for vdi in disks]
    return {mark["snapshot"] for mark in marks}


async def break_a_run(life: Life, number: int) -> None:
    """One request of a run goes wrong, early or late, in one of four ways."""
    ways: list[dict[str, Any]] = [
        {"error": ("INTERNAL_ERROR", "struck")},
        {"drop_response": True},
        {"stall": True},
        {"stall": True, "error": ("INTERNAL_ERROR", "killed")},
    ]
    how = ways[number % 4]
    faults, loop = life.lab.lab.faults, asyncio.get_running_loop()
    fault = faults.fail_nth(1 + number * 7 % 230, chunk=CHUNK, **how)
    async with life.lab.daemon() as context:
        run = loop.create_task(run_job(life.job(), new_run(), context))
        held = loop.create_task(fault.stalled.wait())
        await asyncio.wait({run, held}, return_when=asyncio.FIRST_COMPLETED, timeout=patience())
        if held.done() and "error" in how:
            for where in ("rpc", "export", "import", "nbd"):
                faults.add(Fault(where, times=None, reset=True))
        held.cancel()
        run.cancel()
        fault.release()
        await asyncio.wait({run}, timeout=patience(120))
    faults.clear()


async def two_daemons(life: Life, number: int) -> None:
    """Two daemons with one configuration begin together; at most one of them does it."""
    first, second = await asyncio.gather(life.run(), life.run(SOMEBODY_ELSE))
    outcomes = {first.outcome, second.outcome}
    assert outcomes & {Outcome.DELTA, Outcome.FULL}, (first.error, second.error)
    assert Outcome.FAILED not in outcomes, (first.error, second.error)


async def snapshot_by_hand(life: Life, number: int) -> None:
    pool = ("prod", "dr")[number % 2]

    def deed(xenapi: Any) -> str | None:
        vms = [hands.vm_of(xenapi, "web01")] if pool == "prod" else hands.replicas_of(xenapi)
        return xenapi.VM.get_uuid(xenapi.VM.snapshot(vms[0], "by hand")) if vms else None

    uuid = await life.lab.ask(pool, deed)
    if uuid is not None:
        life.theirs[pool, uuid] = await life.lab.hashes(pool, uuid)


async def clone_a_point(life: Life, number: int) -> None:
    marks = await life.lab.points()
    if not marks:
        return
    chosen = marks[number % len(marks)]["self"]

    def deed(xenapi: Any) -> str:
        return str(
            xenapi.VM.get_uuid(xenapi.VM.clone(xenapi.VM.get_by_uuid(chosen), "for a drill"))
        )

    uuid = await life.lab.ask("dr", deed)
    life.theirs["dr", uuid] = await life.lab.hashes("dr", uuid)


async def delete_a_point(life: Life, number: int) -> None:
    marks = await life.lab.points()
    if not marks:
        return
    chosen = number % len(marks)
    uuid = marks[chosen]["self"]
    await life.lab.ask("dr", lambda x: hands.destroy_with_disks(x, x.VM.get_by_uuid(uuid)))
    life.points.pop(uuid, None)
    if chosen == 0:
        life.has_base = False


async def delete_the_bases(life: Life, number: int) -> None:
    for mark in await life.lab.bases():
        await life.lab.ask(
            "prod", lambda x, m=mark: hands.destroy_with_disks(x, x.VM.get_by_uuid(m["self"]))
        )

    def destroy_bare(xenapi: Any) -> None:
        for uuid in bare_bases(xenapi):
            xenapi.VDI.destroy(xenapi.VDI.get_by_uuid(uuid))

    await life.lab.ask("prod", destroy_bare)
    life.has_base = False


async def reload(life: Life, number: int) -> None:
    """The operator has the data of bases kept, or destroyed, from the next run on."""
    life.base_data = ("destroy", "keep")[number % 2]


async def serve_or_not(life: Life, number: int) -> None:
    """The source serves its disks over NBD, or not any more."""
    if number % 2:
        await serve_nbd(life.lab, "prod")
    else:

        def stop(xenapi: Any) -> None:
            for network, record in xenapi.network.get_all_records().items():
                if "nbd" in record["purpose"]:
                    xenapi.network.remove_purpose(network, "nbd")

        await life.lab.ask("prod", stop)


async def use_the_replica(life: Life, number: int) -> None:
    """Somebody forces the replica to start, and shuts it down."""

    def deed(xenapi: Any) -> None:
        for replica in hands.replicas_of(xenapi):
            if not hands.disks_of(xenapi, replica):
                continue
            xenapi.VM.set_blocked_operations(replica, {})
            xenapi.VM.start(replica, False, False)
            xenapi.VM.hard_shutdown(replica)

    await life.lab.ask("dr", deed)


async def destroy_the_replica(life: Life, number: int) -> None:
    def deed(xenapi: Any) -> None:
        for replica in hands.replicas_of(xenapi):
            hands.destroy_with_disks(xenapi, replica)

    await life.lab.ask("dr", deed)


async def strip_keys(life: Life, number: int) -> None:
    """Another program takes its own keys away, here and there."""
    await life.lab.ask(("prod", "dr")[number % 2], hands.strip_keys_of_xen_orchestra)


async def restart_a_toolstack(life: Life, number: int) -> None:
    pool = life.lab.lab.pools[("prod", "dr")[number % 2]]
    pool.restart_toolstack()


Deed = Callable[[Life, int], Awaitable[None]]
DEEDS: tuple[Deed, ...] = (
    write,
    replicate,
    break_a_run,
    two_daemons,
    snapshot_by_hand,
    clone_a_point,
    delete_a_point,
    delete_the_bases,
    reload,
    serve_or_not,
    use_the_replica,
    destroy_the_replica,
    strip_keys,
    restart_a_toolstack,
)
OFTEN = (write, replicate, break_a_run)


# -- what holds at any time -----------------------------------------------------------------------


async def check(life: Life) -> None:
    standing = {mark["self"] for mark in await life.lab.points()}
    for uuid in standing & life.points.keys():
        assert await life.lab.hashes("dr", uuid) == life.points[uuid], "a restore point changed"
    for (pool, uuid), hashes in life.theirs.items():
        assert await life.lab.hashes(pool, uuid) == hashes, "what somebody made changed"
    replicas = await life.lab.ask("dr", hands.replicas_of)
    assert len(replicas) <= 1


async def live(deeds: list[tuple[Deed, int]]) -> None:
    asyncio.get_running_loop().set_debug(False)
    with tempfile.TemporaryDirectory(prefix="xorepd-life-") as directory:
        async with world(Path(directory) / "lab", checked=False) as lab:
            await serve_nbd(lab, "prod")
            life = Life(lab)
            await replicate(life, 0)
            for deed, number in deeds:
                await deed(life, number)
                await check(life)
            await write(life, 1)
            await replicate(life, 0)
            await check(life)
            problems = await find_problems(lab.lab, LEFT_BY_THE_DEAD)
            assert not problems, problems


@settings(
    max_examples=LIVES,
    deadline=None,
    derandomize="XOREPD_LIVES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    print_blob=True,
)
@given(
    st.lists(
        st.tuples(st.one_of(st.sampled_from(OFTEN), st.sampled_from(DEEDS)), st.integers(0, 99)),
        min_size=LENGTH // 2,
        max_size=LENGTH,
    )
)
@example([(reload, 0), (write, 1), (break_a_run, 23), (write, 0), (replicate, 0), (reload, 1)])
def test_promises_hold_through_any_life(deeds: list[tuple[Deed, int]]) -> None:
    asyncio.run(live(deeds))
