"""A lab that stops, is killed, and comes back; its command line."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.lab.labclient import logged_in, small_lab
from xorepd_lab.model.persistence import StateError

pytestmark = pytest.mark.lab


async def test_a_lab_resumes_what_it_was(tmp_path: Path) -> None:
    async with small_lab(tmp_path, leaves=["task"]) as lab, logged_in(lab) as api:
        vm = await api.vm("web01")
        snapshot = await api("VM.snapshot", vm, "kept")
        await api("VM.add_to_other_config", snapshot, "key", "value")
        await lab.guest_write("web01", 0, files={"etc/motd": b"changed\n"})
        await api("task.create", "not kept", "")
        before = await api("VM.get_record", snapshot)
        urls = [(pool.url, pool.plain_url, pool.password) for pool in lab.pools.values()]
        old_session = api.ref

    async with small_lab(tmp_path) as lab:
        assert [(p.url, p.plain_url, p.password) for p in lab.pools.values()] == urls
        assert not lab.pools["prod"].db.exists("session", old_session)
        async with logged_in(lab) as api:
            assert await api("VM.get_record", snapshot) == before
            assert await api("task.get_all") == []
            assert await api("VM.get_power_state", vm) == "Running"
        assert await lab.guest_read("web01", 0, "etc/motd") == b"changed\n"


async def test_the_same_seed_builds_the_same_lab(tmp_path: Path) -> None:
    seen = []
    for name in ("one", "two"):
        async with small_lab(tmp_path / name) as lab, logged_in(lab) as api:
            uuid = await api("VM.get_uuid", await api.vm("web01"))
            seen.append((uuid, await lab.guest_read("web01", 0, "etc/motd")))

    assert seen[0] == seen[1]


async def test_two_labs_do_not_share_a_directory(tmp_path: Path) -> None:
    async with small_lab(tmp_path):
        with pytest.raises(StateError, match="another lab"):
            async with small_lab(tmp_path):
                pass


@asynccontextmanager
async def running(state: Path, kill: bool = False) -> AsyncIterator[dict[str, Any]]:
    """Run the command line and give what it told."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "xorepd_lab", "up", "--json", "--topology", "small", "--time-scale", "0.01"),
        *("--state", str(state)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        rest = await process.stdout.read()
        code = await process.wait()
    assert rest == b""
    assert code == (-signal.SIGKILL if kill else 0)


async def run(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xorepd_lab", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


def connect(pool: dict[str, Any]) -> Any:
    session = XenAPI.Session(pool["url"], ignore_ssl=True)
    session.login_with_password(pool["username"], pool["password"], "1.0", "tests")
    return session


async def test_a_killed_lab_loses_no_disk(tmp_path: Path) -> None:
    async with running(tmp_path, kill=True) as told:

        def work() -> dict[str, str]:
            session = connect(told["pools"][0])
            (vm,) = session.xenapi.VM.get_by_name_label("web01")
            for number in range(3):
                session.xenapi.VM.snapshot(vm, f"s{number}")
            uuids = {
                r["uuid"]: r["name_label"] for r in session.xenapi.VDI.get_all_records().values()
            }
            session("close")()
            return uuids

        before = await asyncio.to_thread(work)

    async with running(tmp_path) as told_again:

        def look() -> set[str]:
            session = connect(told_again["pools"][0])
            found = {r["uuid"] for r in session.xenapi.VDI.get_all_records().values()}
            assert session.xenapi.VM.get_by_name_label("web01")
            session("close")()
            return found

        after = await asyncio.to_thread(look)

    assert after == set(before)
    assert told_again == told


async def test_up_hands_over_what_a_daemon_needs(tmp_path: Path) -> None:
    async with running(tmp_path) as told:
        check_told(told, tmp_path)


def check_told(told: dict[str, Any], state: Path) -> None:
    assert [pool["name"] for pool in told["pools"]] == ["prod", "dr"]
    prod = told["pools"][0]
    assert {sr["name"]: sr["shared"] for sr in prod["srs"]} == {
        "prod-shared": True,
        "prod-local": False,
    }
    assert {vm["name"] for vm in prod["vms"]} == {"web01", "db01"}
    assert all(Path(sr["directory"]).is_dir() for sr in prod["srs"])
    assert prod["url"] in private(Path(told["config"]))
    assert private(state / "prod.password") == prod["password"] + "\n"
    assert Path(told["admin"]).stat().st_mode & 0o777 == 0o600


def private(path: Path) -> str:
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_text()


async def test_the_command_line_reaches_a_running_lab(tmp_path: Path) -> None:
    state = ("--state", str(tmp_path))
    async with running(tmp_path):
        written = await run("write", *state, "--vm", "web01", "--disk", "1", "--random", "5")
        await run("write", *state, "--vm", "web01", "--file", "etc/motd=hello")
        motd = await run("read", *state, "--vm", "web01", "etc/motd")
        await run("fault", "add", *state, "rpc", "--match", "VM.*", "--error", "HOST_OFFLINE")
        faults = await run("fault", "list", *state)
        await run("fault", "clear", *state)
        cleared = await run("fault", "list", *state)

    assert f"{5 * 4096} bytes" in written
    assert motd == "hello"
    assert json.loads(faults)["match"] == "VM.*"
    assert cleared == ""
