"""One sequence, from an empty lab to its end or to the first violation."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.lab.hands import vm_of
from tests.lab.whole import find_problems
from tests.lab.world import World, clock, new_run, serve_nbd, world
from tests.mischief.deeds import Done, act, seed_like_xen_orchestra
from tests.mischief.judges import Ran, judge_forgotten, judge_run, judge_theirs, serving
from tests.mischief.plan import Deed, End, Forget, Options, Plan, Run, shorter
from tests.mischief.scene import POOLS, VM_NAME, Scene, Violation
from tests.patience import patience
from xorepd.config.models import Diverged, JobSettings
from xorepd.errors import XorepdError
from xorepd.replication.deciding.forgetting import Terms
from xorepd.replication.run.jobs import Context, run_job
from xorepd.state.maps import open_maps
from xorepd.state.records import RunRecord
from xorepd_lab.faults.faults import Fault
from xorepd_lab.topology import DiskSpec, NoiseSpec, PoolSpec, SrSpec, Topology, VmSpec

MiB = 1 << 20
MAPS = 1 << 26
"""Bytes for maps of what the restore points hold."""

PATIENCE_S = patience(60.0)
"""A run that takes longer hangs: at rest it takes one."""

LEFT = ("session", "result")
"""XAPI forgets the sessions of the dead after a day; completed tasks of people are theirs."""

LIGHT = ("sentence", "unlisted")
"""Violations after which a sequence goes on."""

MOST_TRIES = 60
"""Plays that are spent on making a sequence shorter, at most."""


@dataclass
class Played:
    """What came of a sequence."""

    plan: Plan
    steps: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)
    """What was done, and to what."""
    violations: list[Violation] = field(default_factory=list)
    was_refused: bool = False
    """The last run came to its end without a restore point."""

    def note(self, what: Done | Ran, violations: Collection[Violation] = ()) -> None:
        """Enter a step that was taken."""
        match what:
            case Done():
                self.counts["deeds"] += not what.refused
                self.counts["refused deeds"] += bool(what.refused)
                self.story.append(str(what))
                self.enter(what.violations)
            case Ran():
                for done in what.done:
                    self.note(done)
                self.counts["runs"] += 1
                self.counts["successes"] += what.has_succeeded
                self.counts["moments"] += what.reached
                self.story.append(str(what))
                self.was_refused = what.record is not None and not what.has_succeeded
                self.enter(violations)

    def enter(self, violations: Collection[Violation]) -> None:
        """Enter what was seen, once."""
        self.violations += [each for each in violations if each not in self.violations]

    def tell(self) -> str:
        """Return what happened, for people."""
        lines = [str(self.plan), "what happened:", *(f"  - {line}" for line in self.story)]
        return "\n".join([*lines, *(f"  VIOLATION {each}" for each in self.violations)])

    @property
    def kind(self) -> str:
        """The kind of the gravest violation; empty where there is none."""
        kinds = [each.kind for each in self.violations]
        return next((kind for kind in kinds if kind not in LIGHT), next(iter(kinds), ""))

    @property
    def is_over(self) -> bool:
        """Return whether what follows would tell nothing any more."""
        return self.kind not in ("", *LIGHT)


async def play(plan: Plan) -> Played:
    """Do what a plan says; stop at the first violation."""
    played = Played(plan)
    async with open_scene(plan.options) as scene:
        for step in plan.steps:
            played.steps += 1
            match step:
                case Deed():
                    played.note(await act(scene, step))
                case Run():
                    ran = await do_run(scene, step)
                    played.note(ran, await judge_run(scene, ran))
                case Forget():
                    refused = await do_forget(scene, step)
                    played.story.append(f"{step}: {refused or 'done'}")
                    played.enter(
                        await judge_forgotten(
                            scene, refused=bool(refused), keeps_replica=step.keeps_replica
                        )
                    )
            if played.is_over:
                return played
        if played.was_refused and plan.options.job.get("diverged") != "replace":
            played.story.append("the operator gives the replica up")
            ran = await do_run(scene, Run(), replaces=True)
            played.note(ran, await judge_run(scene, ran))
        problems = [] if played.is_over else await find_problems(scene.world.lab, LEFT)
        played.violations += [Violation(f"lab {each.kind}", str(each)) for each in problems]
    return played


async def shrink(played: Played) -> Played:
    """Return the shortest sequence that is found to end in the same violation."""
    best, tries = played, 0
    plans = shorter(replace(played.plan, steps=played.plan.steps[: played.steps]))
    while tries < MOST_TRIES and (plan := next(plans, None)) is not None:
        tries += 1
        tried = await play(plan)
        if tried.kind == played.kind:
            best, plans = tried, shorter(plan)
    return best


# -- the place ------------------------------------------------------------------------------------


def topology(options: Options) -> Topology:
    """Return two pools of one host and two SRs, and a VM with disks of a few blocks."""
    disks = tuple(
        DiskSpec(f"{VM_NAME}-{number}", "prod-storage", (4 - 2 * number) * MiB, NoiseSpec(MiB))
        for number in range(options.disks)
    )
    vm = VmSpec(VM_NAME, disks, "lan", "02:16:3e:5e:6c:01", running_on="prod-h1", cd_drive=False)
    pools = tuple(
        PoolSpec(
            name,
            (f"{name}-h1",),
            tuple(SrSpec(f"{name}-{sr}", "ext", (f"{name}-h1",)) for sr in ("storage", "other")),
            ("lan",),
            vms,
        )
        for name, vms in zip(POOLS, ((vm,), ()), strict=True)
    )
    return Topology("mischief", pools)


@asynccontextmanager
async def open_scene(options: Options) -> AsyncIterator[Scene]:
    """Provide a new lab in which nothing has happened yet."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="xorepd-mischief-"))
        made = world(Path(directory) / "lab", topology(options), checked=False)
        lab = await stack.enter_async_context(made)
        source = "prod", await lab.ask("prod", lambda x: vm_of(x, VM_NAME))
        scene = Scene(lab, options, source, {source})
        look = await scene.look()
        scene.theirs = dict.fromkeys((source, *look.parts(source)))
        scene.powers = {source: look.vms[source]["power_state"]}
        scene.note(look)
        if options.nbd:
            for name in POOLS:
                await serve_nbd(lab, name)
        if options.seeded:
            await seed_like_xen_orchestra(scene, "6.2")
        yield scene


# -- deeds and runs -------------------------------------------------------------------------------


async def do_run(scene: Scene, run: Run, *, replaces: bool = False) -> Ran:
    """Run the job once; at its moment let people do what they are meant to do then."""
    scene.remember(await scene.look())
    had, was_harmless = len(scene.states), scene.is_harmless
    job = scene.world.job(**scene.job(**({"diverged": "replace"} if replaces else {})))
    may_replace = job.diverged is Diverged.REPLACE
    done: list[Done] = []
    seen: list[Violation] = []

    async def meanwhile() -> None:
        if run.during:
            look = await scene.look()
            scene.remember(look)
            seen.extend(judge_theirs(scene, look, replaces=may_replace))
        for deed in run.during:
            done.append(await act(scene, deed))
            seen.extend(done[-1].violations)

    record, reached, hangs = await execute(scene, run, job, meanwhile)
    await idle(scene.world)
    return Ran(
        run=run,
        record=record,
        reached=reached,
        hangs=hangs,
        done=tuple(done),
        seen=tuple(seen),
        replaces=may_replace,
        had=had,
        was_harmless=was_harmless,
    )


async def do_forget(scene: Scene, step: Forget) -> str:
    """Give the stream up as an operator does whose job is gone; return why that is refused."""
    terms = Terms(keep_replica=step.keeps_replica, even_if_unknown=True)
    async with serving(scene, jobs=False) as engine:
        reply = await engine.orphans.find_orphans()
        try:
            for orphan in reply.orphans:
                await engine.orphans.forget(orphan.stream, terms, (), lambda told: None)
        except XorepdError as error:
            return str(error)
    return "" if reply.orphans else "there is none"


async def execute(
    scene: Scene, run: Run, job: JobSettings, meanwhile: Callable[[], Awaitable[None]]
) -> tuple[RunRecord | None, bool, bool]:
    """Run a job once; do something at its moment.

    Returns:
        Its record, where the daemon lived to write one; whether it came to its moment; whether it
        hung.
    """
    faults, loop = scene.world.lab.faults, asyncio.get_running_loop()
    fault = Fault("rpc", "no method has this name", stall=True)
    if run.moment is not None:
        fault = Fault(**run.moment.rule(), stall=True, **_ends(run.end, run.moment.after))
    faults.add(fault)
    dies = run.end is End.KILLED
    async with _daemon(scene) as context:
        task = loop.create_task(run_job(job, new_run(), context))
        held = loop.create_task(fault.stalled.wait())
        await asyncio.wait({task, held}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
        reached = held.done()
        held.cancel()
        if reached:
            await meanwhile()
            if dies:
                for where in ("rpc", "export", "import", "nbd"):
                    faults.add(Fault(where, times=None, reset=True))
            if run.end in (End.KILLED, End.CANCELLED):
                task.cancel()
            fault.release()
        _, late = await asyncio.wait({task}, timeout=PATIENCE_S)
        if late:
            task.cancel()
            await asyncio.wait({task}, timeout=PATIENCE_S)
    reached |= fault.fired > 0  # where it strikes without holding the request back
    faults.clear()
    record = None
    if not task.cancelled() and not (reached and dies):
        [record] = task.result()
    return record, reached, bool(late)


def _ends(end: End, after: bool) -> dict[str, Any]:
    match end:
        case End.FAILED:
            return {"error": ("INTERNAL_ERROR", "struck")}
        case End.CUT:
            return {"drop_response": True}
        case End.KILLED if not after:
            # Held back, and never executed: the error is what the lab does when it lets go.
            return {"error": ("INTERNAL_ERROR", "killed")}
        case _:
            return {}


@asynccontextmanager
async def _daemon(scene: Scene) -> AsyncIterator[Context]:
    """Provide a daemon that has just started, with or without the maps of the one before."""
    lab = scene.world
    async with AsyncExitStack() as stack:
        context = await stack.enter_async_context(lab.daemon())
        if scene.options.maps:
            file = lab.lab.directory.with_suffix(".maps")
            maps = await stack.enter_async_context(open_maps(file, MAPS, clock))
            context = replace(context, maps=maps)
        yield context


async def idle(lab: World) -> None:
    """Wait until the pools have ended what they were asked for, or for a while."""

    def is_busy() -> bool:
        return any(
            pool.db.get("task", task, "status") == "pending"
            for pool in lab.lab.pools.values()
            for task in pool.db.refs("task")
        )

    for _ in range(500):
        if not is_busy():
            return
        await asyncio.sleep(0.004)
