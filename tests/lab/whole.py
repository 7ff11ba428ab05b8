"""After a test nothing may be left behind in its lab, and its files must agree with its records."""

import asyncio
from collections.abc import Collection

import pytest

from tests.patience import patience
from xorepd_lab import fsck
from xorepd_lab.fsck import Problem
from xorepd_lab.lab import Lab

WAIT_S = 10.0
"""For work that the test did not wait for, such as letting go of a disk after a disconnect."""
MOST_TOLD = 20
OF_CLIENTS = ("result",)
"""Completed tasks are the client's to destroy; a test of the lab need not."""


async def assert_whole(lab: Lab, leaves: Collection[str] = ()) -> None:
    """Fail for every problem of other kinds than the test leaves on purpose."""
    problems = await find_problems(lab, leaves)
    if problems:
        told = "\n".join(f"[{problem.kind}] {problem}" for problem in problems[:MOST_TOLD])
        pytest.fail(f"the lab is not whole after the test:\n{told}", pytrace=False)


async def find_problems(lab: Lab, leaves: Collection[str] = ()) -> list[Problem]:
    """Return what is still wrong when all that goes on in the lab has had time to end."""
    lab.faults.clear()
    problems: list[Problem] = []
    try:
        async with asyncio.timeout(patience(WAIT_S)):
            while True:
                problems = await _problems(lab, leaves)
                if not problems:
                    break
                await asyncio.sleep(0.02)
    except TimeoutError:
        pass
    return problems


async def _problems(lab: Lab, leaves: Collection[str]) -> list[Problem]:
    found = await fsck.check(lab, idle=True)
    return [problem for problem in found if problem.kind not in leaves]


def left_by(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the kinds of problems that a test says it leaves: `@pytest.mark.leaves("session")`."""
    return tuple(kind for marker in request.node.iter_markers("leaves") for kind in marker.args)
