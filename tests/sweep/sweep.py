"""The Nth request that a run makes goes wrong, for every N: what is promised holds afterwards.

Two VMs with three disks are replicated to two targets, one of them in the source pool and on the SR
of one of the disks. The bases of one VM keep their data, those of the other lose it. A *strike*
lets one request of a run go wrong: any call, stream, NBD connection or read, and any piece of a
stream. Then comes a daemon that remembers nothing, and has to succeed. Beside all that stand
objects of people's that came of ours, and stay as they are.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from tests.lab.hands import vm_of
from tests.lab.whole import find_problems
from tests.lab.world import World, clock, new_run, serve_nbd, world
from tests.patience import patience
from tests.sweep.beside import Beside, give_up, stand_beside
from tests.sweep.evidence import Evidence, look
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.maps import open_maps
from xorepd.state.records import Outcome, RunRecord
from xorepd_lab.faults.faults import Fault
from xorepd_lab.topology import SMALL, NoiseSpec, PoolSpec, VmSpec

JOBS = (("web", "web01", "keep"), ("db", "db01", "destroy"))
"""Each job's name, its VM, and what becomes of the data in bases on the source."""
TARGETS = ({"pool": "dr", "sr": "dr-storage"}, {"pool": "prod", "sr": "prod-local"})

MIB = 1 << 20


def _shrunk(vm: VmSpec) -> VmSpec:
    disks = (replace(d, size=d.size // 4, content=NoiseSpec(2 * MIB)) for d in vm.disks)
    return replace(vm, disks=tuple(disks))


def _with_small_disks(pool: PoolSpec) -> PoolSpec:
    return replace(pool, vms=tuple(_shrunk(vm) for vm in pool.vms))


TOPOLOGY = replace(SMALL, pools=tuple(_with_small_disks(pool) for pool in SMALL.pools))
"""Disks of a few blocks: the same happens to them, and they are looked at thousands of times."""

LEFT_BY_THE_DEAD = ("session",)
"""XAPI forgets a session that nobody uses after a day."""

CHUNK = MIB
"""Bytes of a stream that count as one request more."""

MAPS = 1 << 30
"""Bytes for maps of what the restore points hold."""

PATIENCE_S = patience(120.0)
"""A run that takes longer hangs."""


class Phase(StrEnum):
    FULL = "full"
    """The first run of each job."""
    DELTA = "delta"
    """A later one, which also prunes."""


class Strike(StrEnum):
    FAIL = "fail"
    """The request is answered with an error; nothing was done."""
    CUT = "cut"
    """It is done, and the answer is lost. Only requests that change something count: for who only
    asked, an answer that is lost is an error like any other."""
    HANG = "hang"
    """It is not answered, until somebody cancels the run."""
    KILL = "kill"
    """The daemon dies with it. Only requests that change something count: whoever dies between two
    of them leaves what they leave who die at the second."""


@dataclass(frozen=True, slots=True)
class Case:
    phase: Phase
    strike: Strike
    number: int

    def __str__(self) -> str:
        return f"{self.phase} run, request {self.number}: {self.strike}"


@dataclass
class Result:
    """What a sweep found."""

    cases: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    """Requests of a run, by phase."""
    violations: list[str] = field(default_factory=list)


async def sweep(
    phase: Phase, strikes: Collection[Strike], first: int, step: int, seed: int
) -> Result:
    """Strike at requests `first`, `first + step`, … of a run until one is not reached."""
    result = Result()
    for strike in strikes:
        async for case, found in _sweep(phase, strike, first, step, seed):
            result.cases += 1
            result.requests[phase] = max(result.requests.get(phase, 0), case.number)
            result.violations += [f"{case}: {what}" for what in found]
    return result


async def _sweep(
    phase: Phase, strike: Strike, first: int, step: int, seed: int
) -> AsyncIterator[tuple[Case, list[str]]]:
    number, reached = first, True
    while reached:
        # A world is good for many deltas, but for one first run only, and for no further violation.
        async with _prepared(phase) as (lab, beside):
            found: list[str] = []
            before = await look(lab, beside.uuids)
            while reached and not found:
                case = Case(phase, strike, number)
                reached, found, before = await _try(lab, beside, case, seed + number, before)
                if reached or found:
                    yield case, found
                number += step
                if phase is Phase.FULL:
                    break


@asynccontextmanager
async def _prepared(phase: Phase) -> AsyncIterator[tuple[World, Beside]]:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="xorepd-sweep-"))
        lab = await stack.enter_async_context(
            world(Path(directory) / "lab", TOPOLOGY, checked=False)
        )
        await lab.ask("prod", lambda x: x.VM.start(vm_of(x, "db01"), False, False))
        await serve_nbd(lab, "prod")
        await _run(lab)
        beside = await stand_beside(lab, "web01")
        if phase is Phase.FULL:
            for name in lab.lab.pools:
                await lab.ask(name, give_up)
        yield lab, beside


async def _try(
    lab: World, beside: Beside, case: Case, seed: int, before: Evidence
) -> tuple[bool, list[str], Evidence]:
    """Strike once; return whether the run came that far, what does not hold, and what is there."""
    for vm, disk in (("web01", 1), ("db01", 0)):
        await lab.lab.guest_write(vm, disk, random=3, seed=seed)
    reached = await _strike(lab, case)
    struck = await look(lab, beside.uuids)
    lost = await beside.touched()
    found = [f"after the strike: {what}" for what in (*struck.broken_since(before), *lost)]
    try:
        records = await asyncio.wait_for(_run(lab), PATIENCE_S)
    except TimeoutError:
        return reached, [*found, "the next run hangs"], struck
    now = await look(lab, beside.uuids, with_sources=True)
    lost = await beside.touched()
    found += [f"next run: {what}" for what in _disappointments(records, struck)]
    found += [f"after the next run: {what}" for what in (*now.unequal(), *now.leftovers, *lost)]
    problems = await find_problems(lab.lab, LEFT_BY_THE_DEAD)
    found += [f"fsck: {problem}" for problem in problems]
    return reached, found, now


async def _strike(lab: World, case: Case) -> bool:
    faults, loop = lab.lab.faults, asyncio.get_running_loop()
    match case.strike:
        case Strike.FAIL:
            fault = faults.fail_nth(case.number, error=("INTERNAL_ERROR", "struck"), chunk=CHUNK)
        case Strike.CUT:
            fault = faults.fail_nth(case.number, drop_response=True, changing=True, chunk=CHUNK)
        case Strike.HANG:
            fault = faults.fail_nth(case.number, stall=True, chunk=CHUNK)
        case Strike.KILL:
            # Held back, and never executed: the error is what the lab does when it lets go.
            error = ("INTERNAL_ERROR", "killed")
            fault = faults.fail_nth(
                case.number, stall=True, error=error, changing=True, chunk=CHUNK
            )
    async with _daemon(lab) as context:
        run = loop.create_task(_run_jobs(lab, context))
        held = loop.create_task(fault.stalled.wait())
        await asyncio.wait({run, held}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
        if held.done() and case.strike is Strike.KILL:
            for where in ("rpc", "export", "import", "nbd"):
                faults.add(Fault(where, times=None, reset=True))
        reached = fault.fired > 0
        held.cancel()
        run.cancel()
        fault.release()
        await asyncio.wait({run}, timeout=PATIENCE_S)
    faults.clear()
    return reached


@asynccontextmanager
async def _daemon(lab: World) -> AsyncIterator[Context]:
    """Provide a daemon that has just started, with the state directory of the one before."""
    file = lab.lab.directory.with_suffix(".maps")
    async with open_maps(file, MAPS, clock) as maps, lab.daemon() as context:
        yield replace(context, maps=maps)


async def _run(lab: World) -> list[RunRecord]:
    async with _daemon(lab) as context:
        return await _run_jobs(lab, context)


async def _run_jobs(lab: World, context: Context) -> list[RunRecord]:
    """Run all jobs at the same time."""
    how = {"keep": 1, "verify": "sample", "changed_blocks": "enable", "resume": "1d"}
    jobs = [
        lab.job(name=name, vms=(vm,), targets=TARGETS, base_data=data, **how)
        for name, vm, data in JOBS
    ]
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(run_job(job, new_run(), context)) for job in jobs]
    return [record for run in runs for record in run.result()]


def _disappointments(records: list[RunRecord], standing: Evidence) -> list[str]:
    """Return what a run after a strike should have done better."""
    found = []
    known = {(place[0], point.pool) for place, point in standing.points.items()}
    for record in records:
        what = f"{record.vm_name} to {record.target}"
        if record.error is not None:
            found.append(f"{what} failed ({record.error})")
        elif record.outcome is Outcome.FULL and (record.vm_uuid, record.target) in known:
            reasons = {disk.reason for disk in record.disks if disk.mode == "full"}
            found.append(f"{what} was sent in full ({', '.join(sorted(reasons))})")
    if len(records) != len(JOBS) * len(TARGETS):
        found.append(f"{len(records)} records instead of {len(JOBS) * len(TARGETS)}")
    return found
