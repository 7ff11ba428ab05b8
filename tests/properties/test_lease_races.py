"""Daemons that reach for one lease: in whatever order their calls arrive, one at most holds it.

Sockets decide by themselves which call comes first. Here that is decided call by call, over a map
that does what XAPI promises of `other_config`: a call is executed at once and alone, and adding a
key that is there fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xorepd.errors import LeaseHeld, XapiFailure
from xorepd.ids import RunId
from xorepd.replication.context import lease
from xorepd.replication.context.lease import Leases
from xorepd.replication.format.claims import Owner, encode, key_of
from xorepd.replication.format.marks import ReplicaKey
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr

STREAM = ReplicaKey(pool="p", vm="v", sr="s")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SR = cast(Sr, SimpleNamespace(ref="OpaqueRef:sr"))


class Steered:
    """A pool whose calls wait until it is decided that they come next."""

    cache = SimpleNamespace(pool=SimpleNamespace(ref="OpaqueRef:pool"))

    def __init__(self, other_config: dict[str, str]) -> None:
        self.other_config = other_config
        self.now = NOW
        self._waiting: list[asyncio.Future[None]] = []

    async def call(self, method: str, *params: str) -> Any:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn
        match method, params:
            case "SR.get_other_config", _:
                return dict(self.other_config)
            case "SR.add_to_other_config", (_, key, value):
                if key in self.other_config:
                    raise XapiFailure("dr", "MAP_DUPLICATE_KEY", ["SR", "other_config", "", key])
                self.other_config[key] = value
            case "SR.remove_from_other_config", (_, key):
                self.other_config.pop(key, None)
            case "host.get_servertime", _:
                return self.now.strftime("%Y%m%dT%H:%M:%SZ")
            case _:  # of no weight here: who is master, and what the test itself writes
                pass
        return ""

    async def steer(self, order: Iterator[int], daemons: list[asyncio.Task[None]]) -> None:
        """Execute the calls in this order until every daemon has ended."""
        while active := sum(not daemon.done() for daemon in daemons):
            for _ in range(10):  # all who are about to call
                await asyncio.sleep(0)
            if len(self._waiting) < min(active, 1):
                continue
            pick = next(order)
            if pick % 7 == 6:  # the pool's clock goes on, too
                self.now += timedelta(seconds=1)
            self._waiting.pop(pick % len(self._waiting)).set_result(None)


async def contend(other_config: dict[str, str], order: Iterator[int], count: int) -> list[int]:
    """Let daemons reach for the lease; return who got it, one after the other."""
    pool, holding, held = Steered(other_config), set[int](), list[int]()

    async def daemon(number: int) -> None:
        leases = Leases(Owner(f"daemon-{number}", f"host-{number}"), 60.0)
        try:
            async with leases.hold(cast(Pool, pool), SR, STREAM, RunId("run"), "the VM"):
                holding.add(number)
                held.append(number)
                assert len(holding) == 1, f"{holding} hold it"
                await pool.call("VM.write")
                assert len(holding) == 1, f"{holding} hold it"
                holding.discard(number)
        except LeaseHeld:
            pass

    async with asyncio.TaskGroup() as group:
        daemons = [group.create_task(daemon(number)) for number in range(count)]
        await pool.steer(order, daemons)
    return held


@pytest.fixture(autouse=True, scope="module")
def no_pauses() -> Iterator[None]:
    """Let whoever gave way begin anew at once: the order of the calls is what is tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "PAUSE_S", 0.0)
        yield


ENDED = {key_of(STREAM, 7, 2): encode(Owner("dead", "grave"), "run", NOW, 0.0)}
"""What a daemon left that died: ended, and watched for long enough."""


@settings(max_examples=50, deadline=None)
@given(
    # Too short for the pool's clock to reach the end of a claim that was made on the way.
    order=st.lists(st.integers(0, 41), max_size=50),
    count=st.integers(2, 4),
    left=st.sampled_from([{}, ENDED]),
)
def test_one_daemon_at_most_holds_a_lease(
    order: list[int], count: int, left: dict[str, str]
) -> None:
    other_config = dict(left)

    asyncio.run(contend(other_config, chain(order, repeat(0)), count))

    assert set(other_config) <= set(left)


@pytest.mark.parametrize("left", [{}, ENDED])
def test_one_daemon_gets_the_lease_when_calls_come_one_after_the_other(
    left: dict[str, str],
) -> None:
    other_config = dict(left)

    assert asyncio.run(contend(other_config, repeat(0), 3))

    assert other_config == {}
