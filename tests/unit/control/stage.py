"""A whole service behind a real socket, with a runner and a clock that obey the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.unit.parts import JOB, POOLS, Begun, Clock, OpenBoard, Runner, write
from xorepd.config.diff import Changes
from xorepd.config.load import load
from xorepd.config.models import Settings
from xorepd.control.client import Client
from xorepd.control.protocol import ForgetPlanReply, OrphanReply, OrphansReply, PoolStatus
from xorepd.control.server import serve
from xorepd.daemon.runs import Runs
from xorepd.daemon.service import Service
from xorepd.data.memory_budget import MemoryBudget
from xorepd.process.systemd import Notifier
from xorepd.replication.deciding.forgetting import Terms
from xorepd.replication.deciding.orphans import Known
from xorepd.state.history import History
from xorepd.state.store import open_store
from xorepd.transports.links import Links


@dataclass
class Stage:
    directory: Path
    client: Client
    service: Service
    runner: Runner
    board: OpenBoard
    history: History
    clock: Clock
    applied: list[Changes]
    links: Links
    orphans: Orphans
    pools: list[PoolStatus]

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "control.sock"

    async def begun(self) -> Begun:
        """Wait until a run is in the hands of the runner."""
        return await self.runner.begun.get()

    async def finish(self, job: str = "web") -> str:
        """Run a job to its end; return the run's id."""
        run_id = (await self.client.start_run(job)).run_id
        (await self.begun()).succeed()
        async for _ in self.client.watch_run(run_id):
            pass
        return run_id


class Orphans:
    """What a test says that jobs have left; forgetting it ends when the test says so."""

    def __init__(self) -> None:
        self.orphans: tuple[OrphanReply, ...] = ()
        self.objections: tuple[str, ...] = ()
        self.known: Known = ()
        self.forgotten: list[tuple[str, Terms]] = []
        self.goes_on = asyncio.Event()
        self.stopped = asyncio.Event()
        self.error: Exception | None = None

    async def find_orphans(self, known: Known = ()) -> OrphansReply:
        self.known = known
        return OrphansReply(orphans=self.orphans, not_asked={"dr": "it does not answer"})

    async def forget_plan(self, stream: str, terms: Terms, known: Known) -> ForgetPlanReply:
        [orphan] = [orphan for orphan in self.orphans if orphan.stream == stream]
        actions = ("set it free" if terms.keep_replica else "destroy it",)
        return ForgetPlanReply(orphan=orphan, actions=actions, objections=self.objections)

    async def forget(
        self, stream: str, terms: Terms, known: Known, report: Callable[[str], None]
    ) -> None:
        report("restore point 1 of 2")
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        if self.error is not None:
            raise self.error
        self.forgotten.append((stream, terms))


@asynccontextmanager
async def stage(directory: Path, text: str = POOLS + JOB) -> AsyncIterator[Stage]:
    file = write(directory, text)
    links, pools = Links(), list[PoolStatus]()
    orphans = Orphans()
    runner, board, clock, applied = Runner(), OpenBoard(), Clock(), list[Changes]()

    def apply(settings: Settings, changes: Changes) -> None:
        applied.append(changes)

    async with open_store(directory / "history.db") as store:
        history = await History.open(store)
        async with Runs(runner, board, history, clock) as runs:
            service = Service(
                load(file),
                runs=runs,
                board=board,
                history=history,
                notifier=Notifier({}),
                clock=clock,
                load=lambda: load(file),
                apply=apply,
                links=links,
                budget=MemoryBudget(),
                orphans=orphans,
                pool_states=lambda: tuple(pools),
            )
            socket = directory / "run" / "control.sock"
            async with serve(service, socket), Client(socket) as client:
                await service.begin()
                yield Stage(
                    directory,
                    client,
                    service,
                    runner,
                    board,
                    history,
                    clock,
                    applied,
                    links,
                    orphans,
                    pools,
                )
