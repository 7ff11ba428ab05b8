"""A daemon that dies at one of its calls.

The lab holds a call back before it is executed; the pools then go silent, so that nothing the dying
engine still tries reaches them; and a new daemon, which remembers nothing, takes over.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.lab.world import World, new_run
from tests.patience import patience
from xorepd.replication.run.jobs import run_job
from xorepd_lab.faults.faults import Fault

DEAD = ("session",)
"""What the dead leave behind: XAPI forgets a session that nobody uses after a day."""

Moment = tuple[str, str, int]
"""(pool, method, how many calls of it come before)."""


async def killed_at(two_pools: World, moment: Moment, **changes: Any) -> bool:
    """Start a run of a job with these changes and kill it; return whether it came that far."""
    pool, method, before = moment
    lab, loop = two_pools.lab, asyncio.get_running_loop()
    # Held back, and never executed: the error is what the lab does when it lets go.
    held = lab.faults.add(
        Fault("rpc", method, pool, skip=before, stall=True, error=("INTERNAL_ERROR", "killed"))
    )
    async with two_pools.daemon() as context:
        run = loop.create_task(run_job(two_pools.job(**changes), new_run(), context))
        reached = loop.create_task(held.stalled.wait())
        await asyncio.wait({run, reached}, return_when=asyncio.FIRST_COMPLETED, timeout=patience())
        came_so_far = reached.done()
        if came_so_far:
            lab.faults.add(Fault("rpc", times=None, reset=True))
            lab.faults.add(Fault("export", times=None, reset=True))
            lab.faults.add(Fault("import", times=None, reset=True))
        reached.cancel()
        run.cancel()
        held.release()
        await asyncio.wait({run})
    lab.faults.clear()
    return came_so_far
