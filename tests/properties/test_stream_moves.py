"""A connection moves bytes both ways, whatever sizes they are asked for and come in.

The model is the bytes themselves and a position in them.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pytest
import trustme
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xorepd.stream import SPILL, ByteStream, Ended

CA = trustme.CA()
SERVER_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("localhost").configure_cert(SERVER_TLS)
CLIENT_TLS = ssl.create_default_context()
CA.configure_trust(CLIENT_TLS)

DATA = random.Random(1).randbytes(1_500_000)
"""Holds a line feed every 256 bytes, two in a row every 64 KiB, three hardly ever."""
END = b"end"
"""The last that a client writes; the server closes when it has it."""

SIZES = st.sampled_from([1, 2, 28, 511, 4096, 65_536, SPILL - 1, SPILL, SPILL + 1, 700_000])
PAUSES = st.sampled_from([None, None, None, 0.0, 0.002])
READS = st.one_of(
    st.tuples(st.just("into"), SIZES),
    st.tuples(st.just("some"), SIZES),
    st.tuples(
        st.just("until"),
        st.sampled_from([b"\n", b"\n\n", b"\n\n\n"]),
        st.sampled_from([1, 16, 1000, 60_000, SPILL]),
    ),
)


T = TypeVar("T")
Timed = tuple[T, float | None]
"""Something, and how long to wait after it; None: not at all."""


class Reading:
    """What a client does, and what the model says about it."""

    def __init__(self, stream: ByteStream, data: bytes) -> None:
        self._stream, self._data, self._position = stream, data, 0

    async def into(self, size: int) -> None:
        buffer = memoryview(bytearray(size))
        left = len(self._data) - self._position
        if left >= size:
            await self._stream.read_into(buffer)
            self._advance(bytes(buffer))
        else:
            with pytest.raises(Ended) as ended:
                await self._stream.read_into(buffer)
            assert ended.value.received == left
            self._advance(bytes(buffer[:left]))

    async def some(self, size: int) -> None:
        buffer = memoryview(bytearray(size))
        got = await self._stream.read_some(buffer)
        assert (got == 0) == (self._position == len(self._data))
        self._advance(bytes(buffer[:got]))

    async def until(self, mark: bytes, limit: int) -> None:
        rest = self._data[self._position : self._position + limit]
        found = rest.find(mark)
        if found >= 0:
            self._advance(await self._stream.read_until(mark, limit))
            assert self._data[: self._position].endswith(mark)
        else:
            with pytest.raises(ValueError if len(rest) == limit else Ended):
                await self._stream.read_until(mark, limit)

    async def rest(self) -> None:
        await self.into(len(self._data) - self._position)
        await self.some(1)

    def _advance(self, got: bytes) -> None:
        assert got == self._data[self._position : self._position + len(got)]
        self._position += len(got)


async def moves(
    tls: bool,
    sent: Sequence[Timed[int]],
    reads: Sequence[Timed[tuple[Any, ...]]],
    writes: Sequence[Timed[list[int]]],
) -> None:
    incoming = DATA[: sum(size for size, _ in sent)]
    outgoing = bytearray()
    finished = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send() -> None:
            start = 0
            for size, pause in sent:
                writer.write(incoming[start : start + size])
                start += size
                await writer.drain()
                if pause is not None:
                    await asyncio.sleep(pause)

        async def receive() -> bytes:
            return await reader.readexactly(sum(sum(sizes) for sizes, _ in writes) + len(END))

        _, received = await asyncio.gather(send(), receive())
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        finished.set_result(received)

    async def read(stream: ByteStream) -> None:
        reading = Reading(stream, incoming)
        for (what, *how), pause in reads:
            await getattr(reading, what)(*how)
            if pause is not None:
                await asyncio.sleep(pause)
        await reading.rest()

    async def write(stream: ByteStream) -> None:
        start = 0
        for sizes, pause in writes:
            parts = []
            for size in sizes:
                parts.append(bytearray(DATA[start : start + size]))
                start += size
                outgoing.extend(parts[-1])
            await stream.write(*(memoryview(part) for part in parts))
            for part in parts:  # it has gone: whoever sends it again would send zeroes
                part[:] = bytes(len(part))
            if pause is not None:
                await asyncio.sleep(pause)
        await stream.write(END)

    context = SERVER_TLS if tls else None
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        async with await ByteStream.connect(
            "127.0.0.1",
            port,
            stall=10,
            tls=CLIENT_TLS if tls else None,
            server_name="localhost",
        ) as stream:
            await asyncio.gather(read(stream), write(stream))
            assert await finished == outgoing + END
    finally:
        server.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sent=st.lists(st.tuples(SIZES, PAUSES), max_size=6).filter(
        lambda those: sum(size for size, _ in those) <= len(DATA)
    ),
    reads=st.lists(st.tuples(READS, PAUSES), max_size=12),
    writes=st.lists(st.tuples(st.lists(SIZES, max_size=3), PAUSES), max_size=4).filter(
        lambda those: sum(sum(sizes) for sizes, _ in those) <= len(DATA)
    ),
)
def test_every_byte_arrives_in_order(
    loop: Callable[[], asyncio.AbstractEventLoop],
    tls: bool,
    sent: list[Timed[int]],
    reads: list[Timed[tuple[Any, ...]]],
    writes: list[Timed[list[int]]],
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(moves(tls, sent, reads, writes), 30))
