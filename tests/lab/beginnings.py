"""Labs that many tests begin with: made once in each process, and copied from then on.

A lab that starts on a copy of another one's directory resumes that: same addresses, objects and
disks, and nobody logged in.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.lab.world import World, world

Beginning = Callable[[World], Awaitable[object]]
"""What has been done in a new lab before a test begins."""


async def begin(directory: Path, beginning: Beginning, shelf: Path) -> None:
    """Put a lab into a directory in which that was done.

    Args:
        directory: where to put it; not there yet.
        shelf: a directory that the tests of a process share.
    """
    made = shelf / f"{beginning.__module__}.{beginning.__qualname__}"
    if not made.exists():
        await _make(made.with_suffix(".new"), beginning)
        made.with_suffix(".new").rename(made)
    await asyncio.to_thread(shutil.copytree, made, directory)


async def _make(directory: Path, beginning: Beginning) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # of one that failed
    async with world(directory) as new:
        await beginning(new)
