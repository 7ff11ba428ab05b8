"""The check of a lab: what it finds, and that nothing is wrong after whatever happened."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import XenAPI
from test_lab_xva import exported

from tests.lab.labclient import NULL, Api, logged_in, small_lab
from tests.patience import patience
from xorepd_lab import fsck
from xorepd_lab.admin import ask
from xorepd_lab.lab import Lab
from xorepd_lab.model.persistence import StateError

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

ROUNDS = 3
SEED = 20
PATIENCE_S = patience()


async def found(lab: Lab, idle: bool = True) -> list[tuple[str, str]]:
    """Return kind and text of every problem."""
    await lab.settled()
    return [(problem.kind, problem.text) for problem in await fsck.check(lab, idle=idle)]


async def snapshotted(lab: Lab, api: Api) -> tuple[Path, str, str]:
    """Take a snapshot; return the directory of the SR and the files of the disk and its parent."""
    await api("VM.snapshot", await api.vm("db01"), "frozen")
    await lab.settled()
    sr = lab.pools["prod"].srs["prod-local"]
    vdi = await api.disk("db01-data")
    parent = (await api("VDI.get_sm_config", vdi))["vhd-parent"]
    return sr.directory, await api("VDI.get_uuid", vdi), parent


def spoil(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        opened.write(data)


@pytest.mark.leaves("session")
async def test_a_new_lab_is_whole_and_who_is_logged_in_is_no_problem_while_it_works(
    lab: Lab, api: Api
) -> None:
    assert await found(lab, idle=False) == []
    assert await found(lab) == [("session", "left behind by 'tests'")]


@pytest.mark.leaves("file", "disk", "session")
@pytest.mark.parametrize(
    ("damage", "kind", "text"),
    [
        (lambda d, u, p: (d / f"{u}.vhd").unlink(), "disk", "has no file"),
        (lambda d, u, p: (d / f"{p}.vhd").unlink(), "file", "its parent {p} is not there"),
        (
            lambda d, u, p: (d / "11111111-0000-4000-8000-000000000000.vhd").write_bytes(
                (d / f"{u}.vhd").read_bytes()
            ),
            "file",
            "there is no VDI of it",
        ),
        (lambda d, u, p: (d / "x.vhd.new").touch(), "file", "is no file of an SR"),
        (lambda d, u, p: (d / f"{p}.relink").touch(), "file", "is no file of an SR"),
        (
            lambda d, u, p: spoil(d / f"{u}.vhd", -512, bytes(512)),
            "file",
            "the footer differs from its copy",
        ),
        (
            lambda d, u, p: spoil(d / f"{p}.vhd", 3072, b"\0\0\0\1"),
            "file",
            "block 0 lies over what is before it",
        ),
        (
            lambda d, u, p: spoil(d / f"{p}.vhd", 3072, b"\0\x40\0\0"),
            "file",
            "block 0 ends behind the end of the file",
        ),
    ],
)
async def test_damaged_files_are_found(
    lab: Lab,
    api: Api,
    damage: Callable[[Path, str, str], object],
    kind: str,
    text: str,
) -> None:
    directory, uuid, parent = await snapshotted(lab, api)
    assert [problem for problem in await found(lab) if problem[0] != "session"] == []

    damage(directory, uuid, parent)

    assert (kind, text.format(p=parent)) in await found(lab)


@pytest.mark.leaves("file", "disk", "session")
async def test_a_parent_that_is_another_file_now_is_found(lab: Lab, api: Api) -> None:
    directory, _, parent = await snapshotted(lab, api)
    other = lab.pools["prod"].storage.of(lab.pools["prod"].srs["prod-local"].ref).store
    other.create("22222222-0000-4000-8000-000000000000", 2 << 20)
    (directory / "22222222-0000-4000-8000-000000000000.vhd").rename(directory / f"{parent}.vhd")

    assert ("file", f"its parent {parent} is another file now") in await found(lab)


@pytest.mark.leaves(
    "session", "disk", "inverse", "reference", "attachment", "operation", "task", "space"
)
async def test_damaged_records_are_found(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    db = pool.db
    _, uuid, parent = await snapshotted(lab, api)
    vdi, base = db.by_uuid("VDI", uuid), db.by_uuid("VDI", parent)
    vm = await api.vm("db01")
    sr = pool.srs["prod-local"].ref

    def expect(kind: str, text: str) -> None:
        assert (kind, text) in told, told

    db.set("VDI", vdi, virtual_size=4096)
    db.set("VDI", vdi, sm_config={})
    db.set("VDI", base, managed=True)
    db.set("VM", vm, VBDs=[])
    db.set("VM", vm, affinity="OpaqueRef:nobody")
    db.put("VM", vm, "current_operations", "OpaqueRef:some", "export")
    db.set("SR", sr, physical_size=10)
    dom0 = db.get("host", pool.master, "control_domain")
    db.create("VBD", VM=dom0, VDI=vdi, currently_attached=True)
    pool.tasks.create("left")
    told = [(p.kind, p.text) for p in await fsck.check(lab, idle=True)]

    expect("disk", f"has 4096 bytes, its file {16 << 20}")
    expect("disk", f"has the parent None, its file {parent}")
    expect("disk", "is managed, its file hidden")
    expect("inverse", "VBDs is not who names it in VBD.VM")
    expect("reference", "affinity names OpaqueRef:nobody, not there")
    expect("operation", "still in export")
    expect("attachment", "still attached to dom0")
    expect("task", "left behind, pending")
    assert any(kind == "space" for kind, _ in told)
    quiet = [problem.kind for problem in await fsck.check(lab)]
    assert not {"operation", "attachment", "task", "session"} & set(quiet)


@pytest.mark.leaves("session")
async def test_what_a_snapshot_was_of_may_be_gone(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    snapshot = await api("VM.snapshot", vm, "frozen")
    await api("VM.destroy", vm)

    assert not lab.pools["prod"].db.exists("VM", await api("VM.get_snapshot_of", snapshot))
    assert await found(lab, idle=False) == []


async def test_a_lab_that_works_is_whole_all_the_time(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")

    async def work() -> None:
        for number in range(6):
            snapshot = await api("VM.snapshot", vm, f"s{number}")
            vbds = [await api("VBD.get_record", vbd) for vbd in await api("VM.get_VBDs", snapshot)]
            await api("VM.destroy", snapshot)
            for vbd in vbds:
                if vbd["VDI"] != NULL:
                    await api("VDI.destroy", vbd["VDI"])

    async def write() -> None:
        for seed in range(40):
            await lab.guest_write("web01", 1, random=20, seed=seed)

    checks = 0
    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()), group.create_task(write())]
        while not all(worker.done() for worker in workers):
            assert await fsck.check(lab) == []
            checks += 1

    assert checks > 3


# -- the command ----------------------------------------------------------------------------------


@asynccontextmanager
async def running(state: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """Run a lab as a process; give it and what it tells."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "xorepd_lab", "up", "--json", "--state", str(state)),
        *("--topology", "small", "--time-scale", "0.01"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def command(state: Path, *options: str) -> tuple[int, str]:
    """Run `xorepd-lab fsck`; return its exit status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "xorepd_lab", "fsck", "--state", str(state), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_the_command_asks_a_lab_that_runs_and_recovers_one_that_does_not(
    tmp_path: Path,
) -> None:
    state = tmp_path / "lab"
    async with running(state) as (_, told):
        assert await command(state) == (0, "")
        directory = Path(told["pools"][0]["srs"][0]["directory"])
        (directory / "junk").touch()
        status, out = await command(state)
        assert status == 1
        assert "prod: SR" in out
        assert "junk: is no file of an SR" in out
        (directory / "junk").unlink()

    # As a kill would leave it, between two steps of a snapshot.
    (directory / "11111111-0000-4000-8000-000000000000.vhd.new").touch()
    status, out = await command(state, "-n", "--json")
    assert status == 1
    assert [problem["kind"] for problem in json.loads(out)] == ["file"]
    assert await command(state) == (0, "")
    assert await command(state, "-n") == (0, "")


async def test_a_directory_without_a_lab_is_no_lab(tmp_path: Path) -> None:
    status, out = await command(tmp_path)

    assert (status, out) == (1, "")
    assert os.listdir(tmp_path) == []


async def test_a_lab_of_somebody_else_is_left_alone(lab: Lab) -> None:
    # It has no socket to be asked through, and its directory is taken.
    with pytest.raises(StateError, match="another lab"):
        fsck.look(lab.directory)
    with pytest.raises(StateError, match="another lab"):
        await fsck.check_directory(lab.directory)


# -- killed ---------------------------------------------------------------------------------------


class Busy:
    """Threads that keep a lab at work until it dies."""

    def __init__(self, state: Path, told: dict[str, Any], xva: bytes) -> None:
        self._state = state
        self._prod, self._dr = told["pools"]
        self._xva = xva
        self._over = False
        self.at_work = threading.Barrier(4)

    def stop(self) -> None:
        self._over = True

    def _repeat(self, work: Callable[[int], None]) -> None:
        work(0)
        self.at_work.wait(PATIENCE_S)
        number = 1
        # Whatever a lab says that is being killed, and that it says nothing at all.
        while not self._over:
            with suppress(Exception):
                work(number)
            number += 1

    def writes(self) -> None:
        def write(number: int) -> None:
            ask(self._state, "write", vm="web01", disk=number % 2, random=30, seed=number)

        self._repeat(write)

    def snapshots(self) -> None:
        with self._session(self._prod) as session:
            api = session.xenapi

            def turn(number: int) -> None:
                names = api.VM.get_by_name_label("web01")
                (vm,) = [vm for vm in names if not api.VM.get_is_a_template(vm)]
                api.VM.snapshot(vm, f"s{number}")
                for victim in api.VM.get_snapshots(vm)[2:]:
                    destroy_with_disks(api, victim)

            self._repeat(turn)

    def imports(self) -> None:
        with self._session(self._dr) as session:
            api = session.xenapi

            def turn(number: int) -> None:
                url = f"{self._dr['plain_url']}/import?session_id={session.handle}"
                request = urllib.request.Request(url, self._xva, method="PUT")
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                    answer.read()
                for victim in api.VM.get_by_name_label("db01")[2:]:
                    destroy_with_disks(api, victim)

            self._repeat(turn)

    @contextmanager
    def _session(self, pool: dict[str, Any]) -> Iterator[Any]:
        session = XenAPI.Session(pool["plain_url"])
        try:
            session.login_with_password(pool["username"], pool["password"], "1.0", "busy")
            yield session
        finally:
            session("close")()


def destroy_with_disks(api: Any, vm: str) -> None:
    disks = [api.VBD.get_VDI(vbd) for vbd in api.VM.get_VBDs(vm)]
    api.VM.destroy(vm)
    for disk in disks:
        if disk != NULL:
            api.VDI.destroy(disk)


async def test_a_lab_killed_at_work_is_whole_after_its_recovery(tmp_path: Path) -> None:
    async with small_lab(tmp_path / "other") as lab, logged_in(lab) as api:
        xva = await exported(api, await api.vm("db01"))
    state = tmp_path / "lab"
    rng = random.Random(SEED)
    for _ in range(ROUNDS):
        async with running(state) as (process, told):
            busy = Busy(state, told, xva)
            work = [asyncio.to_thread(each) for each in (busy.writes, busy.snapshots, busy.imports)]
            pending = asyncio.gather(*work, return_exceptions=True)
            await asyncio.to_thread(busy.at_work.wait, PATIENCE_S)
            await asyncio.sleep(rng.uniform(0.0, 0.8))
            process.kill()
            await process.wait()
            busy.stop()
            await pending
        assert [str(problem) for problem in await fsck.check_directory(state)] == []

    async with running(state) as (_, told):
        assert ask(state, "write", vm="web01", disk=1, random=1)["written"]
        assert ask(state, "fsck")["problems"] == []
