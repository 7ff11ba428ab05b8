"""One execution of a job: its VMs, a few at a time, each with a fate of its own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from xorepd.config.models import JobSettings
from xorepd.data.nbd_reader import NbdBudget
from xorepd.errors import Broken, Refused, XorepdError
from xorepd.ids import PoolName, RunId
from xorepd.replication.assignment import Assignment
from xorepd.replication.board import Board, Clock, Progress
from xorepd.replication.markers import Stream
from xorepd.replication.preflight import find_sr, find_vm
from xorepd.replication.room import Room
from xorepd.replication.run import replicate
from xorepd.state.records import Outcome, RunRecord
from xorepd.transports.base import Surroundings
from xorepd.transports.links import Links
from xorepd.transports.registry import open_inner, open_transport
from xorepd.units import format_duration
from xorepd.xapi.pool import Pool

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """What all runs of a daemon share."""

    pools: Mapping[PoolName, Pool]
    board: Board
    slots: asyncio.Semaphore
    """VMs in transfer at once, over all jobs."""
    clock: Clock
    room: Room = field(default_factory=Room)
    nbd: NbdBudget = field(default_factory=NbdBudget)
    links: Links = field(default_factory=Links)
    turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """By UUID of the source VM: two jobs take their turns on one VM."""


async def run_job(job: JobSettings, run_id: RunId, context: Context) -> list[RunRecord]:
    """Replicate each VM of a job once.

    Returns:
        One record per VM, in the job's order. A VM that fails does not stop the others.

    Raises:
        asyncio.CancelledError: on cancellation, after every VM has cleaned up.
    """
    turns = asyncio.Semaphore(job.max_vms)
    with context.board.run(run_id) as finished:

        async def one(wanted: str) -> RunRecord:
            async with turns, context.slots:
                record = await _run_vm(job, run_id, wanted, context)
                finished.append(record)
                return record

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(vm), name=f"{job.name} {vm}") for vm in job.vms]
        return [task.result() for task in tasks]


async def _run_vm(job: JobSettings, run_id: RunId, wanted: str, context: Context) -> RunRecord:
    progress = Progress(
        context.board,
        run_id=run_id,
        job=job.name,
        vm_uuid="",
        vm_name=wanted,
        source=job.source,
        target=job.target.pool,
        sr=job.target.sr,
        now=context.clock(),
    )
    structlog.contextvars.bind_contextvars(job=job.name, run_id=run_id, vm=wanted)
    with context.board.show(progress):
        try:
            async with asyncio.timeout(job.deadline) as deadline:
                outcome = await _replicate(job, run_id, wanted, context, progress)
        except asyncio.CancelledError:
            log.info("run.cancelled", step=progress.step)
            raise
        except Exception as error:
            if deadline.expired():  # whatever came of the cancellation
                late = Refused(
                    f"VM {wanted}: not done after {format_duration(job.deadline)}, the deadline of "
                    f"job {job.name} (in step {progress.step}); raise it if that is too short"
                )
                return progress.finished(Outcome.FAILED, late, context.clock())
            if isinstance(error, XorepdError):
                return progress.finished(Outcome.FAILED, error, context.clock())
            # A fault of ours in one VM must not stop the others, nor pass unseen.
            log.exception("run.broken", step=progress.step)
            return progress.finished(Outcome.FAILED, Broken(error), context.clock())
        return progress.finished(outcome, None, context.clock())


async def _replicate(
    job: JobSettings, run_id: RunId, wanted: str, context: Context, progress: Progress
) -> Outcome:
    source, target = context.pools[job.source], context.pools[job.target.pool]
    surroundings = Surroundings(
        job=job.name,
        source=job.source,
        target=job.target.pool,
        links=context.links,
        clock=context.clock,
        opener=open_inner,
    )
    # In a thread, because it is the code of others and may take its time.
    transport = await asyncio.to_thread(
        open_transport, job.transport.name, job.transport.options, surroundings
    )
    progress.enter("connect")
    await source.refresh()
    await target.refresh()
    vm = find_vm(source.cache, source.name, wanted)
    sr = find_sr(target.cache, target.name, job.target.sr)
    progress.vm_uuid, progress.vm_name, progress.sr = vm.uuid, vm.name_label, sr.name_label
    async with context.turns[vm.uuid]:
        return await replicate(
            Assignment(
                job=job,
                run_id=run_id,
                source=source,
                target=target,
                vm=vm,
                sr=sr,
                stream=Stream(pool=source.cache.pool.uuid, vm=vm.uuid, sr=sr.uuid),
                transport=transport,
                room=context.room,
                nbd=context.nbd,
                progress=progress,
            )
        )
