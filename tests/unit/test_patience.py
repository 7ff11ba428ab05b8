from __future__ import annotations

import asyncio

import pytest

from tests.steered import steered
from xorepd.patience import Patience, Stalled


def pending(loop: asyncio.AbstractEventLoop) -> int:
    """Return how many timers a loop keeps."""
    return len(loop._scheduled)  # type: ignore[attr-defined]


async def test_waits_that_follow_each_other_share_one_timer() -> None:
    loop = asyncio.get_running_loop()
    before = pending(loop)
    patience = Patience(loop, 60, lambda: 0)

    for _ in range(10):
        loop.call_soon(patience.end)
        await patience.wait()

    assert pending(loop) == before + 1
    patience.close()


def test_nothing_that_moves_ends_the_wait() -> None:
    async def body() -> None:
        patience = Patience(asyncio.get_running_loop(), 20, lambda: 0)

        with pytest.raises(Stalled, match="no byte moved for 20 s"):
            await patience.wait()

    steered(body())


async def test_a_wait_outlasts_the_limit_for_as_long_as_bytes_move() -> None:
    looks = iter(range(5))
    patience = Patience(asyncio.get_running_loop(), 0.01, lambda: next(looks, 5))

    with pytest.raises(Stalled):
        await patience.wait()

    assert next(looks, None) is None


async def test_a_byte_now_and_then_is_nothing_that_moves() -> None:
    looks = iter(range(100))
    patience = Patience(asyncio.get_running_loop(), 0.01, lambda: next(looks), slowest=500)

    with pytest.raises(Stalled):
        await patience.wait()

    assert next(looks) == 2


def test_a_wait_is_not_charged_with_the_time_before_it() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        patience = Patience(loop, 50, lambda: 0)
        loop.call_soon(patience.end)
        await patience.wait()
        await asyncio.sleep(40)  # nobody waits: the timer goes on
        loop.call_later(30, patience.end)

        await patience.wait()

        patience.close()

    steered(body())


async def test_closing_ends_the_wait_and_the_timer() -> None:
    loop = asyncio.get_running_loop()
    patience = Patience(loop, 60, lambda: 0)
    loop.call_soon(patience.close)

    await patience.wait()

    patience.end()
