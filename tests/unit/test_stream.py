from __future__ import annotations

import asyncio
import gc
import random
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trustme
import uvloop

from tests.hostile import take_no_more
from tests.patience import patience
from xorepd.stream import SPILL, ByteStream, Ended, Stalled

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Run = Callable[[Awaitable[None]], None]

CA = trustme.CA()
SERVER_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("localhost").configure_cert(SERVER_TLS)
CLIENT_TLS = ssl.create_default_context()
CA.configure_trust(CLIENT_TLS)
DATA = random.Random(1).randbytes(3 * SPILL + 12345)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine on either of the two event loops that the daemon may have."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda body: runner.run(asyncio.wait_for(body, 20))


@asynccontextmanager
async def peer(
    serve: Serve, *, tls: bool = False, stall: float = 10.0, kind: type[ByteStream] = ByteStream
) -> AsyncIterator[ByteStream]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    context = SERVER_TLS if tls else None
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        async with await kind.connect(
            "127.0.0.1",
            port,
            stall=stall,
            tls=CLIENT_TLS if tls else None,
            server_name="localhost",
        ) as stream:
            yield stream
    finally:
        server.close()
        await asyncio.sleep(0)


async def write_on(stream: ByteStream) -> None:
    for _ in range(1000):
        await stream.write(DATA)


def sends(*parts: bytes) -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return serve


@pytest.mark.parametrize("tls", [False, True])
def test_large_reads_give_every_byte_in_order(run: Run, tls: bool) -> None:
    async def body() -> None:
        async with peer(sends(DATA), tls=tls) as stream:
            buffer = bytearray(len(DATA))
            view = memoryview(buffer)
            position, rng = 0, random.Random(2)
            while position < len(DATA):
                size = min(rng.choice([1, 511, 65536, SPILL + 1]), len(DATA) - position)
                await stream.read_into(view[position : position + size])
                position += size
            assert buffer == DATA
            assert await stream.read_some(view[:1]) == 0

    run(body())


@pytest.mark.parametrize("tls", [False, True])
def test_a_written_buffer_may_be_used_again_at_once(run: Run, tls: bool) -> None:
    async def body() -> None:
        got = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            received = bytearray()
            while len(received) < 4 * len(DATA):
                await asyncio.sleep(0.001)  # a slow peer, so that buffers run full
                received += await reader.read(1 << 20)
            got.set_result(bytes(received))

        async with peer(serve, tls=tls) as stream:
            for _ in range(4):
                buffer = bytearray(DATA)
                await stream.write(memoryview(buffer))
                buffer[:] = bytes(len(buffer))
            assert await got == DATA * 4

    run(body())


def test_a_line_is_read_up_to_its_mark_and_the_rest_stays(run: Run) -> None:
    async def body() -> None:
        async with peer(sends(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n\r\nbody")) as stream:
            assert await stream.read_until(b"\r\n\r\n", 1024) == b"HTTP/1.1 200 OK\r\na: b\r\n\r\n"
            rest = bytearray(4)
            await stream.read_into(memoryview(rest))
            assert rest == b"body"

    run(body())


def test_a_mark_that_does_not_come_is_bounded(run: Run) -> None:
    async def body() -> None:
        async with peer(sends(bytes(5000))) as stream:
            with pytest.raises(ValueError, match="within 1024 bytes"):
                await stream.read_until(b"\r\n\r\n", 1024)

    run(body())


@pytest.mark.parametrize("tls", [False, True])
def test_an_early_end_says_how_much_came(run: Run, tls: bool) -> None:
    async def body() -> None:
        async with peer(sends(b"abc"), tls=tls) as stream:
            with pytest.raises(Ended) as caught:
                await stream.read_into(memoryview(bytearray(10)))
            assert caught.value.received == 3

    run(body())


def test_a_silent_peer_is_given_up(run: Run) -> None:
    async def body() -> None:
        async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read()

        async with peer(serve, stall=0.05) as stream:
            with pytest.raises(Stalled):
                await stream.read_into(memoryview(bytearray(10)))

    run(body())


def test_a_slow_peer_is_not_given_up(run: Run) -> None:
    async def body() -> None:
        stall = patience(0.5)

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _piece in range(10):
                writer.write(b"x" * 1000)  # more than what counts as nothing
                await asyncio.sleep(stall / 5)

        async with peer(serve, stall=stall) as stream:
            buffer = bytearray(10_000)
            await stream.read_into(memoryview(buffer))
            assert buffer == b"x" * 10_000

    run(body())


def test_a_peer_that_sends_a_byte_now_and_then_is_given_up(run: Run) -> None:
    async def body() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.8)

        async with peer(serve, stall=2) as stream:
            with pytest.raises(Stalled):
                await stream.read_into(memoryview(bytearray(1000)))

    run(body())


@pytest.mark.parametrize("tls", [False, True])
def test_a_peer_that_takes_nothing_is_given_up(run: Run, tls: bool) -> None:
    async def body() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            take_no_more(writer)
            await asyncio.sleep(5)

        async with peer(serve, tls=tls, stall=0.2) as stream:
            with pytest.raises(Stalled):
                await write_on(stream)

    run(body())


def test_a_cut_connection_fails_who_writes(run: Run) -> None:
    async def body() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        async with peer(serve) as stream:
            with pytest.raises(ConnectionError):
                await write_on(stream)

    run(body())


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_cut_between_the_parts_of_a_write_fails_it(run: Run, tls: bool) -> None:
    async def body() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            take_no_more(writer)
            await asyncio.sleep(0.2)
            writer.transport.abort()

        async with peer(serve, tls=tls) as stream:
            with pytest.raises(ConnectionError):
                await stream.write(*[DATA * 10] * 8)

    run(body())


def test_a_handshake_that_stands_still_is_given_up(run: Run) -> None:
    async def body() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with peer(serve, stall=0.1) as stream:
            with pytest.raises(OSError, match=r"handshake|lost"):
                await stream.start_tls(CLIENT_TLS, "localhost")

    run(body())


def test_a_certificate_that_is_not_trusted_is_refused(run: Run) -> None:
    async def body() -> None:
        server = await asyncio.start_server(sends(b""), "127.0.0.1", 0, ssl=SERVER_TLS)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ssl.SSLError):
            await ByteStream.connect(
                "127.0.0.1",
                port,
                stall=1,
                tls=ssl.create_default_context(),
                server_name="localhost",
            )
        server.close()

    run(body())


def test_a_pinned_certificate_is_looked_at(run: Run) -> None:
    async def body() -> None:
        seen: list[bytes | None] = []

        def refuse(der: bytes | None) -> None:
            seen.append(der)
            raise ssl.SSLError("not the one")

        server = await asyncio.start_server(sends(b"hello"), "127.0.0.1", 0, ssl=SERVER_TLS)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ssl.SSLError, match="not the one"):
            await ByteStream.connect(
                "127.0.0.1",
                port,
                stall=1,
                tls=CLIENT_TLS,
                server_name="localhost",
                check_peer=refuse,
            )
        assert seen[0]
        server.close()

    run(body())


def test_a_cancelled_read_leaves_the_connection_closable(run: Run) -> None:
    async def body() -> None:
        async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read()

        async with peer(serve) as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.read_into(memoryview(bytearray(10)))

    run(body())


@pytest.mark.parametrize("tls", [False, True])
def test_buffers_are_filled_one_after_the_other(run: Run, tls: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(DATA)
        await writer.drain()

    async def body() -> None:
        async with peer(serve, tls=tls) as stream:
            first, second, rest = bytearray(SPILL + 1), bytearray(16), bytearray(len(DATA))
            await stream.read_into(memoryview(first), memoryview(second))
            with pytest.raises(Ended) as ended:
                await stream.read_into(memoryview(rest))
        left = len(DATA) - SPILL - 17
        assert (bytes(first + second + rest[:left]), ended.value.received) == (DATA, left)

    run(body())


def test_what_nobody_asked_for_stays_in_the_kernel(run: Run) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"1" * 4096)
        await reader.readexactly(1)
        writer.write(b"2" * 4096)
        await reader.read()

    async def body() -> None:
        async with peer(serve) as stream:
            buffer = memoryview(bytearray(4096))
            await stream.read_into(buffer)
            await stream.write(b".")
            while stream.waiting < 4096:  # noqa: ASYNC110 -- the kernel tells nobody
                await asyncio.sleep(0.01)
            assert bytes(buffer) == b"1" * 4096
            await stream.read_into(buffer)
            assert (bytes(buffer), stream.waiting) == (b"2" * 4096, 0)

    run(body())


class Remembering(ByteStream):
    """One that tells what became of its TLS, and holds it no longer than it would otherwise."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        secured = transport.get_extra_info("ssl_object")
        if secured is not None:
            self.tls = weakref.ref(secured)


def test_a_closed_connection_leaves_no_tls_for_the_garbage_collector(run: Run) -> None:
    async def body() -> None:
        async with peer(sends(DATA), tls=True, kind=Remembering) as stream:
            assert isinstance(stream, Remembering)
            tls = stream.tls
            await stream.read_into(memoryview(bytearray(len(DATA))))
        for _ in range(10):
            await asyncio.sleep(0)
        assert tls() is None

    gc.disable()
    try:
        run(body())
    finally:
        gc.enable()
