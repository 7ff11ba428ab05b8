"""Rates as they come out, in a loop whose clock jumps to the next timer: seconds take no time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.steered import steered
from xorepd.data.reader import Piece
from xorepd.extents import Extent
from xorepd.plugin.conformance import surroundings
from xorepd.transports.base import Surroundings, TargetDisk
from xorepd.transports.links import Links
from xorepd.units import KiB, MiB
from xorepd_throttled.link import ThrottledLink
from xorepd_throttled.transport import Throttled, ThrottledFactory

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
RATE = 12_500_000
"""100 Mbit/s."""


def now() -> float:
    return asyncio.get_running_loop().time()


class Endless:
    """A reader that never ends and a writer that counts, in one; a share of the data is zeroes."""

    virtual_size = 1 << 60
    extents = (Extent(0, 1 << 60),)
    disk = TargetDisk("", "", "", "", "", "a disk without end")

    def __init__(self, *, zeroes: float = 0.0, write_s: float = 0.0, piece: int = MiB) -> None:
        self.sent = self.taken = self.largest = 0
        self.first_after = 0.0
        self._zeroes, self._write_s, self._piece = zeroes, write_s, piece

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        offset, piece = 0, memoryview(bytearray(self._piece))
        while True:
            yield offset, piece
            offset += self._piece

    @asynccontextmanager
    async def open(self, virtual_size: int, extents: Iterable[Extent]) -> AsyncIterator[Endless]:
        yield self

    async def write(self, offset: int, data: memoryview) -> None:
        await asyncio.sleep(self._write_s)
        self.taken += len(data)
        self.largest = max(self.largest, len(data))
        self.sent += round(len(data) * (1 - self._zeroes))

    async def finish(self) -> None:
        raise AssertionError("it never ends")

    async def pay(self, size: int) -> None:
        """Nothing is left to wait for behind the throttle."""

    def left(self, size: int) -> None:
        self.sent += size

    def confirmed(self, offset: int) -> None:
        """Nobody asks how far it came."""


class Bare:
    """The transport inside, without what the daemon wraps around it: that would cost real time."""

    async def carry(self, reader: Any, target: Any) -> None:
        async with (
            target.open(reader.virtual_size, reader.extents) as writer,
            aclosing(reader.pieces()) as pieces,
        ):
            async for offset, data in pieces:
                await writer.write(offset, data)


class Elsewhere:
    """A transport inside that sends a third of the data past the target's writer."""

    async def carry(self, reader: Any, target: Any) -> None:
        async with aclosing(reader.pieces()) as pieces:
            async for _, data in pieces:
                await target.pay(len(data) // 3)
                target.left(len(data) // 3)


class Site:
    """A daemon's transports, at noon."""

    def __init__(self, inner: Any = None) -> None:
        self.links = Links()
        self._inner = inner or Bare()

    def open(
        self, options: Mapping[str, Any], job: str = "web", source: str = "paris"
    ) -> Throttled:
        def wall() -> datetime:
            return NOON + timedelta(seconds=now())

        where: Surroundings = replace(
            surroundings(),
            job=job,
            source=source,
            links=self.links,
            clock=wall,
            opener=lambda *_: self._inner,
        )
        return ThrottledFactory().open(options, where)


@asynccontextmanager
async def carrying(*pairs: tuple[Throttled, Endless]) -> AsyncIterator[None]:
    """Keep these busy while a block lasts."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(transport.carry(end, end)) for transport, end in pairs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def sent_in(seconds: float, *ends: Endless) -> list[float]:
    """Return the bytes per second of each while that time passes."""
    before = [end.sent for end in ends]
    await asyncio.sleep(seconds)
    return [(end.sent - start) / seconds for end, start in zip(ends, before, strict=True)]


def within(share: float, rate: float) -> Any:
    return pytest.approx(rate, rel=share)


@pytest.mark.parametrize("text", ["64kbit/s", "1Mbit/s", "100Mbit/s", "1Gbit/s", "12MiB/s"])
@pytest.mark.parametrize("write_s", [0.0, 0.0004])
def test_rate_is_kept_to_five_percent_over_ten_seconds(text: str, write_s: float) -> None:
    async def measure() -> None:
        end = Endless(write_s=write_s)
        site = Site()
        transport = site.open({"rate": text, "link": "wan"})
        rate = site.links.states()["wan"].rate_bytes_per_s
        async with carrying((transport, end)):
            # The very first ten seconds as well as any others.
            assert await sent_in(10, end) == [within(0.05, rate)]
            assert await sent_in(10, end) == [within(0.05, rate)]

    steered(measure())


@pytest.mark.parametrize("text", ["64kbit/s", "100Mbit/s"])
def test_what_is_sent_past_the_writer_keeps_to_the_rate_too(text: str) -> None:
    async def measure() -> None:
        ends = [Endless(piece=96 * KiB), Endless(piece=64 * KiB)]
        site = Site(Elsewhere())
        transport = site.open({"rate": text, "link": "wan"})
        rate = site.links.states()["wan"].rate_bytes_per_s
        async with carrying(*((transport, end) for end in ends)):
            assert sum(await sent_in(60, *ends)) == within(0.05, rate)
        under_way = site.links.states()["wan"].sent_bytes - sum(end.sent for end in ends)
        assert 0 <= under_way <= 160 * KiB // 3

    steered(measure())


def test_streams_of_one_link_get_the_same_share() -> None:
    async def measure() -> None:
        site = Site()
        ends = [Endless(piece=size) for size in (MiB, 64 * KiB, 300 * 4096, 2 * MiB)]
        jobs = [site.open({"rate": "100Mbit/s", "link": "wan"}, job) for job in ("a", "b")]
        async with carrying(*((jobs[i % 2], end) for i, end in enumerate(ends))):
            rates = await sent_in(10, *ends)
        assert sum(rates) == within(0.05, RATE)
        assert rates == [within(0.05, RATE / 4)] * 4

    steered(measure())


def test_streams_with_slow_storage_behind_them_keep_their_share() -> None:
    async def measure() -> None:
        site = Site()
        ends = [Endless(piece=64 * KiB, write_s=0.003), Endless(), Endless(piece=2 * MiB)]
        transport = site.open({"rate": "100Mbit/s"})
        async with carrying(*((transport, end) for end in ends)):
            await asyncio.sleep(1)
            assert await sent_in(10, *ends) == [within(0.05, RATE / 3)] * 3

    steered(measure())


def test_stream_that_comes_later_gets_its_share_and_no_more() -> None:
    async def measure() -> None:
        site, early, late = Site(), Endless(), Endless()
        transport = site.open({"rate": "100Mbit/s"})
        async with carrying((transport, early)):
            await asyncio.sleep(60)
            async with carrying((transport, late)):
                assert await sent_in(10, early, late) == [within(0.05, RATE / 2)] * 2

    steered(measure())


def test_link_that_is_not_named_is_that_of_the_two_pools() -> None:
    async def measure() -> None:
        site, ends = Site(), [Endless() for _ in range(3)]
        transports = [
            site.open({"rate": "100Mbit/s"}, "a"),
            site.open({}, "b"),
            site.open({"rate": "10Mbit/s"}, "c", source="oslo"),
        ]
        async with carrying(*zip(transports, ends, strict=True)):
            rates = await sent_in(10, *ends)
        assert rates == [within(0.05, rate) for rate in (RATE / 2, RATE / 2, RATE / 10)]
        assert list(site.links.states()) == [
            "job:a", "job:b", "job:c", "oslo-lyon", "paris-lyon", "pool:lyon",
        ]  # fmt: skip

    steered(measure())


def test_slow_job_leaves_the_rest_of_its_link_to_the_others() -> None:
    async def measure() -> None:
        site, slow, fast = Site(), Endless(), Endless()
        wan = {"rate": "100Mbit/s", "link": "wan"}
        transports = site.open({**wan, "job_rate": "10Mbit/s"}, "slow"), site.open(wan, "fast")
        async with carrying((transports[0], slow), (transports[1], fast)):
            rates = await sent_in(10, slow, fast)
        assert rates == [within(0.05, RATE * 0.1), within(0.05, RATE * 0.9)]

    steered(measure())


def test_pool_is_shared_by_those_who_reach_it_over_other_links() -> None:
    async def measure() -> None:
        site, ends = Site(), [Endless(), Endless()]
        pool = {"pool_rate": "100Mbit/s"}
        transports = site.open(pool, "a"), site.open({**pool, "link": "lan"}, "b", source="oslo")
        async with carrying(*zip(transports, ends, strict=True)):
            rates = await sent_in(10, *ends)
        assert rates == [within(0.05, RATE / 2)] * 2

    steered(measure())


@pytest.mark.parametrize(
    ("before", "after"), [("64kbit/s", 1e9 / 8), ("1Gbit/s", 8000.0), ("1Mbit/s", RATE)]
)
@pytest.mark.parametrize("streams", [1, 16])
def test_rate_that_is_set_rules_within_a_second(before: str, after: float, streams: int) -> None:
    async def measure() -> None:
        site, ends = Site(), [Endless() for _ in range(streams)]
        transport = site.open({"rate": before, "link": "wan"})
        async with carrying(*((transport, end) for end in ends)):
            await asyncio.sleep(5.2)
            site.links.set_rate("wan", after)
            await asyncio.sleep(1)
            assert sum(await sent_in(10, *ends)) == within(0.05, after)
            assert site.links.states()["wan"].reason == "command"
            assert site.links.states()["wan"].active_disks == streams
            site.links.set_rate("wan", None)
            assert site.links.states()["wan"].reason == "configuration"

    steered(measure())


def test_timetable_changes_the_rate_when_its_time_comes() -> None:
    async def measure() -> None:
        end = Endless()
        transport = Site().open({"rate": "100Mbit/s", "timetable": {"12:01-12:02": "8Mbit/s"}})
        async with carrying((transport, end)):
            rates = []
            for _ in range(3):
                await asyncio.sleep(1)
                rates += await sent_in(58, end)
                await asyncio.sleep(1)
        assert rates == [within(0.05, rate) for rate in (RATE, 1_000_000, RATE)]

    steered(measure())


def test_zeroes_that_are_left_out_cost_nothing() -> None:
    async def measure() -> None:
        end = Endless(zeroes=0.75)
        transport = Site().open({"rate": "100Mbit/s"})
        async with carrying((transport, end)):
            assert await sent_in(10, end) == [within(0.05, RATE)]
        assert end.taken == within(0.05, 4 * end.sent)

    steered(measure())


def test_without_a_rate_pieces_pass_uncut() -> None:
    async def measure() -> None:
        end = Endless(write_s=0.001)
        async with carrying((Site().open({}), end)):
            await asyncio.sleep(1)
        assert end.largest == MiB

    steered(measure())


def test_cancelled_while_waiting_it_ends_at_once_and_leaves_the_link_free() -> None:
    async def measure() -> None:
        site, first, second = Site(), Endless(), Endless()
        transport = site.open({"rate": "64kbit/s", "link": "wan"})
        async with carrying((transport, first)):
            await asyncio.sleep(2.1)
            before = now()
        assert now() == before
        assert site.links.states()["wan"].active_disks == 0
        async with carrying((transport, second)):
            assert await sent_in(10, second) == [within(0.1, 8000)]

    steered(measure())


def test_link_cannot_be_set_slower_than_it_could_be_changed() -> None:
    link = ThrottledLink(None, lambda: NOON)

    with pytest.raises(ValueError, match="slowest rate is 64kbit/s"):
        link.set_rate(1.0)
