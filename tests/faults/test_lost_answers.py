"""Answers that get lost where a call can be repeated: nothing is left behind for it."""

from __future__ import annotations

import pytest

from tests.lab.world import World
from xorepd.state.records import Outcome
from xorepd_lab.faults.faults import Fault


async def delta(on: World, seed: int) -> int:
    """Make a delta; return how many tasks were destroyed on the target for it."""
    await on.lab.guest_write("web01", 1, random=2, seed=seed)
    before = len(on.lab.calls)
    assert (await on.replicate(verify="off", keep=1)).outcome is Outcome.DELTA
    calls = on.lab.calls[before:]
    return sum((call.pool, call.name) == ("dr", "task.destroy") for call in calls)


@pytest.mark.parametrize("executed", [False, True])
async def test_the_last_task_of_a_run_is_destroyed_though_the_answer_got_lost(
    replicated: World, executed: bool
) -> None:
    await delta(replicated, 1)
    usual = await delta(replicated, 2)
    lost = Fault(
        "rpc", "task.destroy", "dr", skip=usual - 1, reset=not executed, drop_response=executed
    )
    replicated.lab.faults.add(lost)

    assert await delta(replicated, 3) == usual + 1

    assert lost.fired == 1
    assert await replicated.left_over() == []
