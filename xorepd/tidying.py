"""Cleanup that a task must complete, even when it is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def settled(work: asyncio.Future[Any], timeout: float) -> None:
    """Wait up to `timeout` seconds until a future is done, in whatever way.

    A cancellation does not interrupt the wait: for cleanup after a cancellation.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not work.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([work], timeout=left)
        except asyncio.CancelledError:
            continue
        break


async def to_the_end(work: Coroutine[Any, Any, T], timeout: float) -> T:
    """Run a short cleanup to its end and return its result.

    A cancellation, even a repeated one, is raised after that end.

    Args:
        timeout: Seconds after which the cleanup itself is cancelled.

    Raises:
        TimeoutError: the cleanup took longer.
    """

    async def bounded() -> T:
        async with asyncio.timeout(timeout):
            return await work

    task = asyncio.get_running_loop().create_task(bounded(), name="tidying")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # retrieve the error; the cancellation takes precedence
        raise cancelled
    return task.result()
