"""What a task must end properly, even when it is cancelled in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def settled(work: asyncio.Future[Any], timeout: float) -> None:
    """Wait until something that cannot be stopped has ended, however it does, or `timeout` seconds.

    Being cancelled meanwhile changes nothing: for those who clean up after a cancellation.
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
    """Run a short piece of tidying to its end and return what it gives.

    Being cancelled meanwhile, however often, waits for that end and is raised after it.

    Args:
        timeout: seconds after which the work itself is cancelled.

    Raises:
        TimeoutError: it took longer.
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
            task.exception()  # it had its chance; the cancellation is what counts now
        raise cancelled
    return task.result()
