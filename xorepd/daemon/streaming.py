"""Work that a client watches: the client sees each step, and the work ends when it disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from xorepd.control.protocol import ForgetReply
from xorepd.errors import InternalError, XorepdError
from xorepd.tidying import settled

log = structlog.get_logger()

END_S = 30.0
"""Time for the work to stop after its client has disconnected."""

Report = Callable[[str], None]


async def stream_steps(
    work: Callable[[Report], Awaitable[None]], name: str
) -> AsyncGenerator[ForgetReply, None]:
    """Do some work and yield each step that it reports; the last one says how the work ended.

    Closing the generator cancels the work and waits for its end.
    """
    steps = asyncio.Queue[ForgetReply | None]()

    async def do() -> None:
        try:
            await work(lambda step: steps.put_nowait(ForgetReply(step=step)))
        except XorepdError as error:
            log.warning("forget.failed", replica_key=name, error=str(error))
            steps.put_nowait(ForgetReply(error=str(error)))
        except Exception as error:
            log.exception("forget.internal_error", what=name)
            steps.put_nowait(ForgetReply(error=str(InternalError(error))))
        else:
            steps.put_nowait(ForgetReply(done=True))

    task = asyncio.get_running_loop().create_task(do(), name=f"forget {name}")
    task.add_done_callback(lambda _: steps.put_nowait(None))
    try:
        while (step := await steps.get()) is not None:
            yield step
    finally:
        task.cancel()
        await settled(task, END_S)
