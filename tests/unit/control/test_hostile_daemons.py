"""What answers on the control socket may be anything: a client says so in one sentence."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from tests.hostile import serving_at, silent
from xorepd.control import client
from xorepd.control.client import Client
from xorepd.errors import LONGEST_REPLY, ControlError


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


OPEN = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def saying(path: Path, answer: bytes, more: bytes = b"") -> AsyncIterator[Path]:
    """Answer every connection with these bytes, and then with more as long as they are taken."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        while more:
            writer.write(more)
            await writer.drain()

    async with serving_at(path, talk):
        yield path


async def refused(path: Path) -> str:
    async with Client(path) as asked:
        with pytest.raises(ControlError) as caught:
            await asked.status()
    return checked(str(caught.value))


def checked(sentence: str) -> str:
    assert len(sentence) < LONGEST_REPLY + 100
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    "answer",
    [
        http(b""),
        http(b"not json"),
        http(b"[]"),
        http(b"7"),
        http(b"{}"),
        http(b'{"version": 7}'),
        http(b"\xff\xfe\x00"),
        http(b"[" * 1_000_000),
        http(b'{"jobs": ' * 100_000),
        http(b"{}", "Content-Type: text/html; charset=martian"),
        http(gzip.compress(bytes(20_000_000)), "Content-Encoding: gzip"),
        http(b"{}", "Xorepd-Api: 99"),
        http(b"<html>", status="500 Internal Server Error"),
        http(b"[" * 100_000, status="500 Internal Server Error"),
        http(b"\xff", status="404 Not Found"),
        http(b"", "Location: /status", status="302 Found"),
        http(b"", "Location: http://example.com/", status="301 Moved"),
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"\x00" * 1000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"",
    ],
)
async def test_what_is_no_reply_is_one_sentence(tmp_path: Path, answer: bytes) -> None:
    async with saying(tmp_path / "socket", answer) as path:
        await refused(path)


@pytest.mark.parametrize(
    "record",
    [
        "7",
        "[]",
        "{}",
        '{"run_id": 7, "job": [], "vm_uuid": {}, "outcome": "full"}',
        '{"outcome": "of tomorrow"}',
        '"text"',
    ],
)
async def test_records_of_any_kind_are_one_sentence(tmp_path: Path, record: str) -> None:
    body = f'{{"records": [{record}]}}'.encode()
    async with saying(tmp_path / "socket", http(body)) as path, Client(path) as asked:
        with pytest.raises(ControlError, match="cannot be parsed") as caught:
            await asked.history()
    checked(str(caught.value))


async def test_a_reply_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_REPLY_BYTES", 1024**2)
    async with saying(tmp_path / "socket", OPEN, b" " * 65536) as path:
        assert "longer than 1 MiB" in await refused(path)


async def test_twenty_megabytes_of_an_error_are_one_sentence(tmp_path: Path) -> None:
    answer = http(b'{"error": "' + b"x" * 20_000_000 + b'"}', status="500 Internal Server Error")
    async with saying(tmp_path / "socket", answer) as path:
        await refused(path)


async def test_a_daemon_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REPLY_TIMEOUT_S", 0.5)

    async with serving_at(tmp_path / "socket", silent):
        assert "no reply within" in await refused(tmp_path / "socket")
        async with Client(tmp_path / "socket") as asked:
            with pytest.raises(ControlError, match="no reply within"):
                await read_out(asked.watch_run("run"))


@pytest.mark.parametrize(
    "line",
    [
        b"7\n",
        b"[]\n",
        b'"finished"\n',
        b'{"finished": 7}\n',
        b'{"finished": [7]}\n',
        b"{}\n",
        b"not json\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b"x" * 4 * 1024**2 + b"\n",
    ],
)
async def test_what_is_no_event_is_one_sentence(
    tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_LINE_BYTES", 1024**2)
    async with (
        saying(tmp_path / "socket", OPEN + line) as path,
        Client(path) as asked,
    ):
        for stream in (asked.watch_run("run"), asked.forget("a/b/c")):
            with pytest.raises(ControlError) as caught:
                await read_out(stream)
            checked(str(caught.value))


async def read_out(stream: AsyncGenerator[object, None]) -> None:
    async with aclosing(stream) as events:
        async for _ in events:
            pass


@pytest.mark.parametrize("command", [["status"], ["history"], ["run", "web", "--wait"], ["show"]])
async def test_the_program_ends_with_one_sentence(tmp_path: Path, command: list[str]) -> None:
    async with saying(tmp_path / "socket", http(b'{"records": [{}], "run_id": 7}')) as path:
        arguments = [sys.executable, "-c", "from xorepd.ctl import main; main()", *command]
        ended = await asyncio.to_thread(
            subprocess.run,
            [*arguments, "--socket", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )

    assert ended.returncode == 1
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith("xorepctl: ")
