from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.unit.control.stage import Stage, stage
from xorepd.control.client import Client, NoDaemon
from xorepd.control.peers import Peer, is_allowed, peer_of
from xorepd.control.server import serve
from xorepd.errors import ControlError, StateError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def exists(path: Path) -> bool:
    return os.path.lexists(path)


async def ask(on: Stage, method: str, path: str, **options: Any) -> tuple[int, object]:
    connector = aiohttp.UnixConnector(str(on.socket))
    async with (
        aiohttp.ClientSession("http://localhost", connector=connector) as http,
        http.request(method, path, **options) as response,
    ):
        return response.status, json.loads(await response.text())


async def test_socket_is_for_its_group_only(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        assert (mode(on.socket), mode(on.socket.parent)) == (0o660, 0o750)

    assert not exists(on.socket)


async def test_second_daemon_on_a_socket_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        with pytest.raises(StateError, match="another daemon answers"):
            async with serve(on.service, on.socket):
                pass

        await on.client.version()


async def test_socket_that_a_crash_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "run" / "control.sock"))

    async with stage(tmp_path) as on:
        await on.client.version()


async def test_file_in_the_sockets_place_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "control.sock").write_text("precious")

    with pytest.raises(StateError, match="not a socket"):
        async with stage(tmp_path):
            pass

    assert (tmp_path / "run" / "control.sock").read_text() == "precious"


async def test_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        with pytest.raises(StateError, match="cannot create"):
            async with serve(on.service, tmp_path / ("x" * 120)):
                pass


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("DELETE", "/status", 405),
        ("GET", "/history?limit=x", 400),
        ("GET", "/history?job=web&page=2", 400),
        ("POST", "/jobs/nope/run", 404),
        ("POST", "/jobs/web/run?allow_full=yes", 400),
        ("POST", "/jobs/web/run?full=allow", 400),
    ],
)
async def test_error_is_one_sentence_with_the_right_status(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with stage(tmp_path) as on:
        found, reply = await ask(on, method, path)

    assert found == status
    assert isinstance(reply, dict)
    assert set(reply) == {"error"}


async def test_unforeseen_error_says_nothing_of_itself(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        status, reply = await ask(on, "GET", "/forget?stream=secret")  # the stage knows none

    assert (status, reply) == (500, {"error": "internal error; the daemon's log has the details"})


async def test_curl_can_talk_to_it(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        curl = await asyncio.create_subprocess_exec(
            "curl",
            "-sS",
            "--unix-socket",
            str(on.socket),
            "http://localhost/status",
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await curl.communicate()

    assert json.loads(out)["jobs"][0]["name"] == "web"


# -- who may ---------------------------------------------------------------------------------------


def test_root_the_daemon_itself_and_the_group_are_allowed() -> None:
    def allowed(uid: int, *gids: int) -> bool:
        return is_allowed(Peer(1, uid, frozenset(gids)), own_uid=990, group=980)

    assert allowed(0, 0)
    assert allowed(990, 990)
    assert allowed(1000, 1000, 980)
    assert not allowed(1000, 1000)


def test_kernel_vouches_for_the_peer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours.fileno())

    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert {os.getgid(), *os.getgroups()} == peer.gids


@pytest.mark.skipif(os.getuid() != 0, reason="becoming somebody else takes root")
async def test_stranger_is_refused_even_if_the_socket_is_open_to_all(tmp_path: Path) -> None:
    program = (
        "import os, socket, sys\n"
        "connection = socket.socket(socket.AF_UNIX)\n"
        "os.chdir(sys.argv[1])\n"  # while the directories above still let us
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "connection.connect('control.sock')\n"
        "connection.sendall(b'GET /status HTTP/1.0\\r\\n\\r\\n')\n"
        "print(connection.makefile().read())\n"
    )
    async with stage(tmp_path) as on:
        on.socket.parent.chmod(0o755)
        on.socket.chmod(0o666)
        stranger = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(on.socket.parent), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await stranger.communicate()

    assert out.startswith(b"HTTP/1.0 403")
    assert b"not allowed" in out


# -- the client's side -----------------------------------------------------------------------------


async def test_no_daemon_is_told_apart_from_a_refusal(tmp_path: Path) -> None:
    async with Client(tmp_path / "nope.sock") as client:
        with pytest.raises(NoDaemon, match="No such file"):
            await client.version()


async def test_daemon_that_speaks_another_version_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nXorepd-Api: 2\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(answer, path), Client(path) as client:
        with pytest.raises(ControlError, match="version 2 of the control interface"):
            await client.version()


async def test_daemon_that_dies_in_the_middle_of_a_run_is_said(tmp_path: Path) -> None:
    path = tmp_path / "dying.sock"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{")
        await writer.drain()
        writer.transport.abort()

    async with await asyncio.start_unix_server(answer, path), Client(path) as client:
        with pytest.raises(NoDaemon, match="lost"):
            async for _ in client.watch_run("x"):
                pass
