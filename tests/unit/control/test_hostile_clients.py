"""Clients of the control socket that hang, flood or garble: they cost themselves only."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.hostile import take_no_more
from tests.unit.control.stage import Stage, stage
from tests.unit.parts import record
from xorepd.control import commands, server
from xorepd.control.protocol import Event, Finished
from xorepd.errors import ControlError

PIPE = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(on: Stage) -> PIPE:
    while True:
        with suppress(FileNotFoundError, ConnectionRefusedError):  # it is being made
            return await asyncio.open_unix_connection(str(on.socket))
        await asyncio.sleep(0.01)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 -- nobody tells
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 1.0)
    monkeypatch.setattr(server, "WRITE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(commands, "WRITE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(server, "LOOK_S", 0.1)


HALF = [
    b"",
    b"G",
    b"GET /status HTTP/1.1\r\nHost: x\r\n",
    b"GET /status HTTP/1.1\r\nX-Long: " + b"x" * 4000,
    b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n",
]


@pytest.mark.parametrize("half", HALF)
async def test_half_a_request_is_given_up(tmp_path: Path, half: bytes) -> None:
    async with stage(tmp_path) as on:
        before = descriptors()
        pipes = [await connect(on) for _ in range(20)]
        for _, writer in pipes:
            writer.write(half)

        for reader, writer in pipes:
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

        await until(lambda: descriptors() <= before)
        assert (await on.client.status()).pid


async def test_a_request_that_drips_is_given_up(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        reader, writer = await connect(on)
        ended = asyncio.get_running_loop().create_task(reader.read())
        while not ended.done():
            writer.write(b"G")
            await asyncio.sleep(0.1)
        writer.close()


async def test_a_request_after_another_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        reader, writer = await connect(on)
        writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET /version HTTP/1.1\r\nHost:")

        assert (await reader.read()).count(b"200 OK") == 1
        writer.close()


@pytest.mark.parametrize(
    "request_of",
    [
        b"\x00" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /status\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /status HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET /status HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET /status HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /jobs/%00%ff/run HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /status HTTP/1.1\r\n" + b"X-A: b\r\n" * 100_000 + b"\r\n",
        b"POST /reload?stream=%ff HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 5\r\n\r\nhello",
    ],
)
async def test_what_is_no_request_costs_its_connection_only(
    tmp_path: Path, request_of: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as logs:
        async with stage(tmp_path) as on:
            reader, writer = await connect(on)
            writer.write(request_of)
            with suppress(ConnectionError):
                await reader.read()
            writer.close()

            assert (await on.client.status()).pid
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []
    assert [line.message for line in caplog.records if line.levelname == "ERROR"] == []


async def test_a_client_that_takes_no_reply_is_cut_off(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        for number in range(300):
            on.history.add(record(run_id=f"r{number}", error="x" * 1900))
        assert await on.history.flush()
        before = descriptors()
        async with AsyncExitStack() as stack:
            for _ in range(5):
                _, writer = await connect(on)
                stack.callback(writer.close)
                take_no_more(writer)
                writer.write(b"GET /history?limit=300 HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: descriptors() >= before + 10)  # both ends are in this process
            await until(lambda: descriptors() <= before + 5)
            assert (await on.client.status()).pid


async def test_only_so_many_connections_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 600.0)
    async with stage(tmp_path) as on:
        kept = [await connect(on) for _ in range(5)]
        reader, writer = await connect(on)

        assert await reader.read() == b""

        for _, each in [*kept, (reader, writer)]:
            each.close()
        while True:
            with suppress(ControlError):
                await on.client.version()
                break
            await asyncio.sleep(0.01)


async def test_a_socket_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        for _ in range(2):
            on.socket.unlink()
            await until(on.socket.exists)
            reader, writer = await connect(on)
            writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"200 OK" in await reader.read()
            writer.close()
            assert on.socket.stat().st_mode & 0o777 == 0o660
    assert not on.socket.exists()


async def test_a_socket_whose_directory_was_deleted_is_made_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        on.socket.unlink()
        on.socket.parent.rmdir()
        await until(on.socket.exists)
        reader, writer = await connect(on)
        writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in await reader.read()
        writer.close()


async def test_what_has_taken_the_place_of_the_socket_is_left_there_and_said(
    tmp_path: Path,
) -> None:
    with capture_logs() as logs:
        async with stage(tmp_path) as on:
            on.socket.unlink()
            on.socket.write_text("somebody's")
            await until(lambda: any(line["event"] == "control.socket_lost" for line in logs))
            assert on.socket.read_text() == "somebody's"

            on.socket.unlink()
            await until(on.socket.exists)

    assert len([line for line in logs if line["event"] == "control.socket_lost"]) == 1
    assert not on.socket.exists()


async def test_a_watcher_keeps_watching_when_the_socket_is_made_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run_id = (await on.client.start_run("web")).run_id
        begun = await on.begun()
        async with aclosing(on.client.watch_run(run_id)) as events, asyncio.TaskGroup() as group:
            last = group.create_task(last_of(events))
            on.socket.unlink()
            await until(on.socket.exists)
            begun.succeed()

    assert isinstance(last.result(), Finished)


async def last_of(events: AsyncIterator[Event]) -> Event:
    seen = [event async for event in events]
    return seen[-1]
