"""Small shapes of structured concurrency that the standard library lacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any


async def first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Run coroutines together until one returns; then cancel the others and wait for them.

    Raises:
        BaseExceptionGroup: one failed, as a `TaskGroup` reports it.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def background(*works: tuple[str, Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run named coroutines while a block lasts, and cancel them at its end.

    If one of them fails, the block is cancelled and the error raised.
    """
    with lone_error():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work, name=name) for name, work in works]
            yield
            for task in tasks:
                task.cancel()


@contextmanager
def lone_error() -> Iterator[None]:
    """Unwrap the error of a task group if it is the only one.

    One error is the common case, and handlers match its type.
    """
    try:
        yield
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) > 1:
            raise
        (error,) = errors.exceptions
        raise error from error.__cause__
