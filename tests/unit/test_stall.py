from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple

import pytest

from tests.steered import steered
from xorepd.stall import Stalled, StallTimer

Ts = TypeVarTuple("Ts")


class Counting(asyncio.SelectorEventLoop):
    """A loop that counts the timers that are asked of it."""

    timers = 0

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_later(delay, callback, *args, context=context)


def test_waits_that_follow_each_other_share_one_timer() -> None:
    async def body() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        patience = StallTimer(loop, 60, lambda: 0)
        for _ in range(10):
            loop.call_soon(patience.end)
            await patience.wait()
        patience.close()
        return loop.timers

    with asyncio.Runner(loop_factory=Counting) as runner:
        assert runner.run(body()) == 1


def test_nothing_that_moves_ends_the_wait() -> None:
    async def body() -> None:
        patience = StallTimer(asyncio.get_running_loop(), 20, lambda: 0)

        with pytest.raises(Stalled, match="no byte moved for 20 s"):
            await patience.wait()

    steered(body())


async def test_a_wait_outlasts_the_limit_for_as_long_as_bytes_move() -> None:
    looks = iter(range(5))
    patience = StallTimer(asyncio.get_running_loop(), 0.01, lambda: next(looks, 5))

    with pytest.raises(Stalled):
        await patience.wait()

    assert next(looks, None) is None


async def test_a_byte_now_and_then_is_nothing_that_moves() -> None:
    looks = iter(range(100))
    patience = StallTimer(asyncio.get_running_loop(), 0.01, lambda: next(looks), slowest=500)

    with pytest.raises(Stalled):
        await patience.wait()

    assert next(looks) == 2


def test_a_wait_is_not_charged_with_the_time_before_it() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        patience = StallTimer(loop, 50, lambda: 0)
        loop.call_soon(patience.end)
        await patience.wait()
        await asyncio.sleep(40)  # nobody waits: the timer goes on
        loop.call_later(30, patience.end)

        await patience.wait()

        patience.close()

    steered(body())


async def test_closing_ends_the_wait_and_the_timer() -> None:
    loop = asyncio.get_running_loop()
    patience = StallTimer(loop, 60, lambda: 0)
    loop.call_soon(patience.close)

    await patience.wait()

    patience.end()
