"""The relay as a process of its own: started, told, killed and hung in the middle of a disk."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import until
from tests.lab.relayed import SIZE, Relayed, Staging, open_disk, relayed
from tests.lab.world import World
from tests.patience import patience
from xorepd.data.zeroes import UNIT
from xorepd.errors import DataError
from xorepd.relay.certificates import client_context
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.messages import Code
from xorepd.relay.protocol.mux import Connection
from xorepd_lab.faults.faults import Fault

pytestmark = pytest.mark.lab

DATA = random.Random(8).randbytes(SIZE)
CONFIG = """
[relay]
listen = "127.0.0.1:{port}"
certificate = "pki/relay.pem"
key = "pki/relay.key"
ca = "pki/ca.pem"
grace = "{grace}"
silence = "30s"
{more}

[pools.dr]
url = "{url}"
username = "{username}"
password_file = "dr.password"
ca_file = "{ca_file}"
"""


@dataclass
class Process:
    """A place for a relay, and the relay that runs there."""

    world: World
    directory: Path
    notify: socket.socket
    port: int
    process: subprocess.Popen[bytes] | None = None

    def configure(self, *, grace: str = "0s", more: str = "") -> None:
        known = self.world.lab.pools["dr"]
        password = self.directory / "dr.password"
        password.touch(mode=0o600)
        password.write_text(known.password)
        (self.directory / "relay.toml").write_text(
            CONFIG.format(
                port=self.port,
                grace=grace,
                more=more,
                url=known.url,
                username=known.username,
                ca_file=known.ca_file,
            )
        )

    async def start(self) -> None:
        command = (
            sys.executable,
            "-W",
            "error",
            "-m",
            "xorepd",
            "relay",
            "run",
            "-c",
            "relay.toml",
        )
        with (self.directory / "log").open("ab") as out:
            self.process = await asyncio.to_thread(
                subprocess.Popen,
                command,
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": str(self.directory / "notify")},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        await self.told("READY=1")

    async def told(self, word: str) -> str:
        """Wait until the relay tells its supervisor something that begins so."""

        def wait() -> str:
            try:
                while not (text := self.notify.recv(4096).decode()).startswith(word):
                    pass
            except TimeoutError:
                raise AssertionError(f"no {word} from the relay: {self.log[-2000:]}") from None
            return text

        return await asyncio.to_thread(wait)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, patience())

    async def dial(self, *, silence: float = 30) -> Connection:
        d = self.directory / "pki"
        context = client_context(d / "paris.pem", d / "paris.key", d / "ca.pem")
        return await Connection.dial("127.0.0.1", self.port, context, "daemon", silence=silence)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


@pytest.fixture
async def place(two_pools: World, tmp_path: Path) -> AsyncIterator[tuple[Relayed, Process]]:
    """A relay in this process, to stage disks with, and one in a process of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, socket.socket() as reserved:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(patience())
        reserved.bind(("127.0.0.1", 0))
        process = Process(two_pools, tmp_path, notify, reserved.getsockname()[1])
        reserved.close()
        async with relayed(two_pools, tmp_path) as made:
            process.configure()
            try:
                await process.start()
                yield made, process
            finally:
                if process.process is not None:
                    process.process.terminate()
                    await process.ended()


@asynccontextmanager
async def half_written(
    made: Relayed, process: Process, *, silence: float = 30
) -> AsyncIterator[tuple[Staging, Connection, Any]]:
    """Provide a disk of which half has come to the process, and the connection that it is on."""
    staging = await made.stage()
    connection = await process.dial(silence=silence)
    disk = await open_disk(connection, staging.open(made.pool))
    await disk.offer(0, DATA[: SIZE // 2])
    try:
        yield staging, connection, disk
    finally:
        await connection.close()


def held_in_the_pool(made: Relayed) -> Fault:
    """Let the next import wait in its middle, so that no segment of it is ended by its age."""
    return made.world.lab.faults.add(Fault("import", pool="dr", stall=True, stall_at=UNIT))


async def succeeded(made: Relayed, staging: Staging) -> list[str]:
    """Return the tasks of imports of a disk that the target pool believes to have succeeded, when
    all have ended.
    """
    imports = [call for call in made.world.lab.calls if call.kind == "import"]
    await until(lambda: all(call.outcome for call in imports))

    def look(xenapi: Any) -> list[str]:
        return [
            task["name_label"]
            for task in xenapi.task.get_all_records().values()
            if staging.uuid in task["name_label"] and task["status"] == "success"
        ]

    found: list[str] = await made.world.ask("dr", look)
    return found


async def write_all(made: Relayed, process: Process, staging: Staging) -> None:
    connection = await process.dial()
    disk = await open_disk(connection, staging.open(made.pool))
    await disk.offer(0, DATA)
    assert isinstance(await disk.finish(), wire.Done)
    await connection.close()
    assert await made.content(staging.uuid) == DATA


@pytest.mark.leaves("result", "session")
async def test_a_relay_that_is_killed_confirms_nothing(place: tuple[Relayed, Process]) -> None:
    made, process = place
    held = held_in_the_pool(made)
    async with half_written(made, process) as (staging, connection, disk):
        await held.stalled.wait()
        process.signal(signal.SIGKILL)
        await process.ended()
        held.release()

        with pytest.raises(DataError):
            await disk.finish()
        assert connection.ended.is_set()

    assert await succeeded(made, staging) == []
    await process.start()
    await write_all(made, process, await made.stage())


async def test_a_relay_that_hangs_is_given_up(place: tuple[Relayed, Process]) -> None:
    made, process = place
    held = held_in_the_pool(made)
    async with half_written(made, process, silence=4) as (staging, _, disk):
        await held.stalled.wait()
        process.signal(signal.SIGSTOP)
        held.release()

        # Not finish(): the relay would read that when it goes on, and rightly end the disk.
        with pytest.raises(DataError, match="silent"):
            await disk.next()
        process.signal(signal.SIGCONT)

    assert await succeeded(made, staging) == []
    await write_all(made, process, await made.stage())


async def test_a_relay_that_is_told_to_stop_ends_in_good_order(
    place: tuple[Relayed, Process],
) -> None:
    made, process = place
    held = held_in_the_pool(made)
    async with half_written(made, process) as (staging, _, disk):
        await held.stalled.wait()
        process.signal(signal.SIGTERM)

        await process.told("STOPPING=1")
        held.release()
        with pytest.raises(DataError, match="the relay is being stopped"):
            await disk.next()

    assert await process.ended() == 0
    assert await succeeded(made, staging) == []
    assert "relay.stopped" in process.log


async def test_within_its_grace_a_disk_is_finished(place: tuple[Relayed, Process]) -> None:
    made, process = place
    process.configure(grace="60s")
    process.signal(signal.SIGTERM)
    await process.ended()
    await process.start()
    async with half_written(made, process) as (staging, _, disk):
        process.signal(signal.SIGTERM)
        await process.told("STOPPING=1")

        await disk.offer(SIZE // 2, DATA[SIZE // 2 :])

        assert isinstance(await disk.finish(), wire.Done)
        assert await process.ended() == 0

    assert await made.content(staging.uuid) == DATA


async def test_a_reload_rules_for_what_comes_after_it(place: tuple[Relayed, Process]) -> None:
    made, process = place
    other = '[clients.paris]\npools = ["00000000-0000-0000-0000-00000000000f"]\n'
    async with half_written(made, process) as (staging, connection, disk):
        process.configure(more=f"disks = 3\n{other}")
        process.signal(signal.SIGHUP)
        await process.told("RELOADING=1")
        await process.told("READY=1")

        channel = connection.open((await made.stage()).open(made.pool))
        refused = await channel.receive()

        assert isinstance(refused, wire.Refuse)
        assert refused.code is Code.NOT_ALLOWED
        await disk.offer(SIZE // 2, DATA[SIZE // 2 :])
        assert isinstance(await disk.finish(), wire.Done)
        channel.close()

    assert "relay.disks" in process.log
    assert await made.content(staging.uuid) == DATA


async def test_a_bad_file_changes_nothing(place: tuple[Relayed, Process]) -> None:
    made, process = place
    process.configure(more="disk = 3\n")
    process.signal(signal.SIGHUP)
    await process.told("RELOADING=1")
    await process.told("READY=1")

    await write_all(made, process, await made.stage())

    assert "did you mean 'disks'?" in process.log
