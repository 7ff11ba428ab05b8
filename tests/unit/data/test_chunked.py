"""The writer of chunks against a server that takes them down."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.hostile import take_no_more
from tests.unit.data.endpoints import ScriptedDoor
from tests.unit.data.scripted import scripted
from xorepd.data.http import chunked, endpoint, imports
from xorepd.data.http.chunked import BATCH, ChunkedWriter, open_chunked
from xorepd.data.zeroes import UNIT
from xorepd.errors import NotServed, OutcomeUnknown, ProtocolViolation, TransferFailed
from xorepd.ids import VdiUuid
from xorepd.units import TiB

CHUNK = struct.Struct("<QI")
OK = b"HTTP/1.1 200 OK\r\n\r\n"
FULL = ("VDI_IO_ERROR", "no space")


@dataclass
class Import:
    """A host that takes segments: what it was sent, and how it behaves."""

    answers: dict[int, bytes] = field(default_factory=dict)
    """What is answered to the request of a number instead of 200."""
    cut_at: dict[int, int] = field(default_factory=dict)
    """After how many bytes of the body of a request the connection is cut."""
    silent: bool = False
    heads: list[str] = field(default_factory=list)
    segments: list[list[tuple[int, bytes]]] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.heads)
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self.answers.get(number, OK))
        if number in self.answers:
            return
        if number in self.cut_at:
            await reader.readexactly(self.cut_at[number])
            writer.transport.abort()
            return
        if self.silent:
            take_no_more(writer)
            await asyncio.sleep(2)
            return
        self.segments.append([])
        while True:
            offset, length = CHUNK.unpack(await reader.readexactly(CHUNK.size))
            if not length:
                return
            self.segments[-1].append((offset, await reader.readexactly(length)))


@asynccontextmanager
async def importing(
    host: Import, outcomes: list[tuple[str, ...] | None] | None = None
) -> AsyncIterator[ScriptedDoor]:
    async with scripted(host) as port:
        made = ScriptedDoor(port, outcomes or [])
        yield made
        assert made.discarded == made.begun, "each request's task is removed"


def opened(
    made: ScriptedDoor, *, fresh: bool = False, told: Callable[[int], None] = lambda offset: None
) -> AbstractAsyncContextManager[ChunkedWriter]:
    vdi = VdiUuid("the-vdi")
    return open_chunked(made, vdi, fresh=fresh, what="disk", confirmed_to=told)


def data(letter: str, size: int = UNIT) -> memoryview:
    return memoryview(letter.encode() * size)


def letters(segment: list[tuple[int, bytes]]) -> list[tuple[int, str, int]]:
    return [(offset, chr(each[0]), len(each)) for offset, each in segment]


async def test_extents_go_out_as_they_come() -> None:
    host = Import()
    async with importing(host) as made, opened(made) as writer:
        await writer.write(5 * UNIT, data("a", 512))
        await writer.write(4 * TiB, data("b"))
        await writer.write(0, data("c", 1024))
        assert (writer.sent, writer.confirmed) == (UNIT + 1536, 0)
        await writer.finish()
        assert (writer.sent, writer.confirmed) == (UNIT + 1536, UNIT + 1536)

    [segment] = host.segments
    assert letters(segment) == [(5 * UNIT, "a", 512), (4 * TiB, "b", UNIT), (0, "c", 1024)]
    assert host.heads[0].startswith("PUT /import_raw_vdi?")
    for part in ("format=raw", "chunked=true", "vdi=the-vdi", "task_id=task0"):
        assert part in host.heads[0]
    assert "Content-Length" not in host.heads[0]


async def test_small_and_large_chunks_keep_their_order_and_leave_their_buffer_free() -> None:
    host = Import()
    sizes = [512, BATCH // 2, UNIT, UNIT, BATCH, 512, 2 * BATCH, *[UNIT] * 9, 1024]
    sent = []
    async with importing(host) as made, opened(made) as writer:
        buffer = memoryview(bytearray(max(sizes)))
        for number, size in enumerate(sizes, 1):
            buffer[:size] = bytes([number]) * size
            await writer.write(number * 4 * BATCH, buffer[:size])
            sent.append((number * 4 * BATCH, bytes(buffer[:size])))
            buffer[:size] = bytes(size)
        await writer.finish()

    assert host.segments == [sent]


@pytest.mark.parametrize("fresh", [False, True])
async def test_an_empty_disk_is_one_segment_without_chunks(fresh: bool) -> None:
    host = Import()
    async with importing(host) as made, opened(made, fresh=fresh) as writer:
        await writer.finish()
        await writer.finish()

    assert host.segments == [[]]


async def test_zeroes_are_left_out_of_a_fresh_disk_and_sent_over_old_data() -> None:
    piece = memoryview(b"a" * UNIT + bytes(2 * UNIT) + b"b" * UNIT + bytes(512))
    fresh, old = Import(), Import()
    for host in (fresh, old):
        async with importing(host) as made, opened(made, fresh=host is fresh) as writer:
            await writer.write(0, piece)
            await writer.finish()

    assert letters(fresh.segments[0]) == [(0, "a", UNIT), (3 * UNIT, "b", UNIT)]
    assert old.segments[0] == [(0, bytes(piece))]


async def test_each_segment_tells_up_to_where_the_disk_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 2 * UNIT)
    host = Import()
    told: list[int] = []
    async with importing(host) as made, opened(made, fresh=True, told=told.append) as writer:
        await writer.write(0, data("a", 2 * UNIT))
        await writer.write(2 * UNIT, memoryview(bytes(UNIT)))
        assert told == []
        await writer.write(8 * UNIT, data("b", 2 * UNIT))
        assert told == [8 * UNIT]
        await writer.write(10 * UNIT, memoryview(bytes(4 * UNIT)))
        await writer.finish()

    assert told == [8 * UNIT, 14 * UNIT]


async def test_a_segment_ends_after_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", 2 * UNIT)
    host, confirmed = Import(), []
    async with importing(host) as made, opened(made) as writer:
        for number, letter in enumerate("abcde"):
            await writer.write(number * UNIT, data(letter))
            confirmed.append(writer.confirmed // UNIT)
        await writer.finish()
        confirmed.append(writer.confirmed // UNIT)

    taken = ["".join(letter for _, letter, _ in letters(each)) for each in host.segments]
    assert taken == ["ab", "cd", "e"]
    assert confirmed == [0, 0, 2, 2, 4, 5]
    assert len(set(made.begun)) == 3


async def test_no_segment_is_opened_behind_the_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", UNIT)
    host = Import()
    async with importing(host) as made, opened(made) as writer:
        await writer.write(0, data("a"))
        await writer.finish()

    assert len(host.segments) == 1


async def test_a_segment_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_S", 0.02)
    host = Import()
    async with importing(host) as made, opened(made) as writer:
        await writer.write(0, data("a"))
        await asyncio.sleep(0.05)
        await writer.write(UNIT, data("b"))
        await writer.finish()

    assert [letters(each) for each in host.segments] == [[(0, "a", UNIT)], [(UNIT, "b", UNIT)]]


@pytest.mark.parametrize(("longest", "segments"), [(0.02, 2), (5.0, 1)])
async def test_a_segment_lasts_longer_where_it_costs_more(
    monkeypatch: pytest.MonkeyPatch, longest: float, segments: int
) -> None:
    monkeypatch.setattr(chunked, "SHORTEST_S", 0.0)
    monkeypatch.setattr(chunked, "COSTS", 1e6)
    monkeypatch.setattr(chunked, "SEGMENT_S", longest)
    host = Import()
    async with importing(host) as made, opened(made) as writer:
        await writer.write(0, data("a"))
        await asyncio.sleep(0.05)
        await writer.write(UNIT, data("b"))
        await writer.finish()

    assert len(host.segments) == segments


async def test_what_was_sent_before_a_source_failed_can_be_confirmed() -> None:
    host = Import()
    told: list[int] = []
    async with importing(host) as made, opened(made, told=told.append) as writer:
        await writer.write(0, data("a"))
        await writer.write(3 * UNIT, data("b"))
        await writer.salvage()
        await writer.salvage()

    assert told == [4 * UNIT]
    assert letters(host.segments[0]) == [(0, "a", UNIT), (3 * UNIT, "b", UNIT)]


async def test_a_segment_that_was_cut_is_not_salvaged() -> None:
    told: list[int] = []
    async with (
        importing(Import(cut_at={0: 100}), [()]) as made,
        opened(made, told=told.append) as writer,
    ):
        with pytest.raises(ProtocolViolation):
            await write_on(writer)
        await writer.salvage()

    assert told == []


async def test_an_empty_segment_does_not_end_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_S", 0.0)
    host = Import()
    async with importing(host) as made, opened(made) as writer:
        await asyncio.sleep(0.01)
        await writer.write(0, data("a"))
        await writer.finish()

    assert [letters(each) for each in host.segments] == [[(0, "a", UNIT)]]


async def test_a_segment_that_its_task_denies_is_not_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunked, "SEGMENT_BYTES", UNIT)
    async with importing(Import(), [(), FULL]) as made, opened(made) as writer:
        await writer.write(0, data("a"))
        await writer.write(UNIT, data("b"))
        with pytest.raises(TransferFailed, match="no space"):
            await writer.finish()
        assert (writer.sent, writer.confirmed) == (2 * UNIT, UNIT)


async def test_a_task_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "OUTCOME_S", 0.05)
    async with importing(Import(), [None]) as made, opened(made) as writer:
        await writer.write(0, data("a"))
        with pytest.raises(OutcomeUnknown):
            await writer.finish()
        assert writer.confirmed == 0


async def test_a_cut_is_explained_by_the_task() -> None:
    async with importing(Import(cut_at={0: 100}), [FULL]) as made, opened(made) as writer:
        with pytest.raises(TransferFailed, match="no space"):
            await write_on(writer)


async def test_a_cut_that_nobody_explains_is_one_all_the_same() -> None:
    async with importing(Import(cut_at={0: 100}), [()]) as made, opened(made) as writer:
        with pytest.raises(ProtocolViolation, match="disk: the connection broke"):
            await write_on(writer)


async def write_on(writer: ChunkedWriter) -> None:
    for number in range(1000):
        await writer.write(number * UNIT, data("a"))


async def test_a_host_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "STALL_S", 0.1)
    monkeypatch.setattr(endpoint, "BROKEN_S", 0.1)
    async with importing(Import(silent=True), [None]) as made, opened(made) as writer:
        with pytest.raises(ProtocolViolation, match="no byte moved"):
            await write_on(writer)


async def test_a_refusal_of_the_first_segment_comes_before_any_data() -> None:
    host = Import(answers={0: b"HTTP/1.1 404 Not Found\r\n\r\n"})
    async with importing(host) as made:
        with pytest.raises(NotServed):
            async with opened(made):
                pytest.fail("it was opened")


async def test_a_redirect_and_a_dead_session_are_followed() -> None:
    elsewhere = b"HTTP/1.1 302 Found\r\nLocation: https://10.0.0.2/x\r\n\r\n"
    host = Import(answers={0: b"HTTP/1.1 401 Unauthorised\r\n\r\n", 1: elsewhere})
    async with importing(host) as made, opened(made) as writer:
        await writer.write(0, data("a"))
        await writer.finish()

    assert made.renewed == 1
    assert "Host: 10.0.0.2" in host.heads[2]
    assert letters(host.segments[0]) == [(0, "a", UNIT)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: https://[10.0/x\r\n\r\n", "redirects to nowhere"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://h/x\r\n\r\n", "redirected 4 times"),
        (b"HTTP/1.1 401 Unauthorised\r\n\r\n", "status 401"),
        (
            b"HTTP/1.1 500 Internal Error\r\n\r\n<p>SR_FULL: [ 1; 2 ]</p>",
            "1 B are needed where 2 B",
        ),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "status 503"),
        (b"garbage\r\n\r\n", "does not begin as HTTP"),
        (b"", "ended before the answer"),
    ],
)
async def test_what_is_no_acceptance_is_refused_by_name(answer: bytes, message: str) -> None:
    host = Import(answers=dict.fromkeys(range(9), answer))
    async with importing(host) as made:
        with pytest.raises((TransferFailed, ProtocolViolation), match=f"^disk: .*{message}"):
            async with opened(made):
                pytest.fail("it was opened")


async def test_a_writer_that_is_given_up_cuts_its_segment() -> None:
    host = Import()
    async with importing(host) as made, opened(made) as writer:
        await writer.write(0, data("a", BATCH))

    assert host.segments == [[(0, b"a" * BATCH)]]
