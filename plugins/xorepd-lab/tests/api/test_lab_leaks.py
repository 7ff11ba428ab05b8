"""A lab begins and ends in order, whatever is in its way; nothing of it is left."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.labclient import Api, get, small_lab, until, wire
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.lab import Lab
from xorepd_lab.model.persistence import StateError
from xorepd_lab.topology import SMALL

pytestmark = pytest.mark.lab


def descriptors() -> set[str]:
    """Return what this process has open, sockets and files."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


def belongings() -> tuple[set[str], set[str], set[str]]:
    """Return the threads, tasks and descriptors of this process."""
    gc.collect()
    threads = {each.name for each in threading.enumerate() if each.name.startswith("lab")}
    tasks = {each.get_name() for each in asyncio.all_tasks()}
    return threads, tasks, descriptors()


async def test_nothing_is_left_of_a_lab_that_ends_in_the_middle(tmp_path: Path) -> None:
    await asyncio.to_thread(int)  # the default executor's thread is not the lab's
    before = belongings()

    async with Lab.start(tmp_path, SMALL, seed=1, time_scale=0.01) as lab:
        pool = lab.pools["prod"]
        api = Api(pool)
        await api.login()
        snapshot = await api("VDI.snapshot", await api.disk("web01-data"))
        stalled = [
            lab.faults.add(Fault("export", stall=True, stall_at=4096)),
            lab.faults.add(Fault("rpc", "VM.snapshot", stall=True)),
        ]
        async with wire(pool.plain_url) as connection:
            await connection.send(get(f"/export_raw_vdi?session_id={api.ref}&vdi={snapshot}"))
            await api("Async.VM.snapshot", await api.vm("db01"), "s")
            for fault in stalled:
                await fault.stalled.wait()
            await lab.happen(Incident("host-crash", host="prod-h2"))
        api.close()

    await until(lambda: belongings() == before)


async def test_nothing_is_left_of_a_lab_that_could_not_start(tmp_path: Path) -> None:
    async with small_lab(tmp_path) as lab:
        pool = lab.pools["dr"]
        place = (pool.address(pool.master), pool.https_port)
    before = belongings()

    with socket.create_server(place), pytest.raises(StateError) as refused:
        async with small_lab(tmp_path):
            pass

    assert "pool dr cannot have its ports" in str(refused.value)
    assert "\n" not in str(refused.value)
    await until(lambda: belongings() == before)
    async with small_lab(tmp_path) as lab:
        assert set(lab.pools) == {"prod", "dr"}


@pytest.mark.parametrize("obstacle", ["file", "kernel", "disks"])
async def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path, obstacle: str) -> None:
    directory = tmp_path / "state"
    match obstacle:
        case "file":
            directory.write_text("not a directory")
        case "kernel":
            directory = Path("/proc/self/nothing")
        case "disks":
            (directory / "srs").mkdir(parents=True)
            (directory / "srs" / "kept").write_text("not ours")
        case other:
            raise AssertionError(other)

    code, told = await command("up", "--json", "--state", str(directory))

    assert code == 1
    assert told.startswith("xorepd-lab: ")
    assert str(directory) in told
    assert told.count("\n") == 1
    if obstacle == "disks":
        assert (directory / "srs" / "kept").read_text() == "not ours"


async def command(*arguments: str) -> tuple[int | None, str]:
    """Run the lab's command line: exit code, and what it wrote to stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "xorepd_lab", *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    return process.returncode, told.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
async def test_a_start_that_is_interrupted_can_be_repeated(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "xorepd_lab", "up", "--json", "--state", str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await until(lambda: any(tmp_path.glob("srs/*/*.vhd")))

    process.send_signal(number)
    written, told = await process.communicate()

    assert written == b""
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert told.decode() == "xorepd-lab: a signal came before the lab had started\n"
    async with small_lab(tmp_path) as lab:
        assert await lab.guest_read("web01", 0, "etc/hostname") == b"web01\n"


async def test_what_is_opened_while_its_request_is_cancelled_is_closed(tmp_path: Path) -> None:
    begun, may_go_on, closed = threading.Event(), threading.Event(), threading.Event()

    @contextlib.contextmanager
    def slow_disk() -> Iterator[None]:
        begun.set()
        assert may_go_on.wait(30)
        try:
            yield
        finally:
            closed.set()

    async def request(lab: Lab) -> None:
        async with lab.opened_in_thread(slow_disk):
            raise AssertionError("it was cancelled before")

    async with (
        Lab.start(tmp_path, SMALL, seed=1, time_scale=0.01) as lab,
        asyncio.TaskGroup() as group,
    ):
        asking = group.create_task(request(lab))
        await asyncio.to_thread(begun.wait, 30)
        asking.cancel()
        await asyncio.sleep(0)
        may_go_on.set()

    assert asking.cancelled()
    assert closed.is_set()
