"""The small parts of the process: lock, signals, systemd, tasks and kept pools."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.patience import patience
from xorepd.config.models import PoolSettings
from xorepd.errors import StateError
from xorepd.ids import PoolName
from xorepd.process.lending import Pools
from xorepd.process.lock import locked
from xorepd.process.signals import Intent, intents
from xorepd.process.systemd import Notifier
from xorepd.tasks import background, first_of

# -- lock ------------------------------------------------------------------------------------------


def test_second_daemon_on_a_state_directory_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with (
        locked(state),
        pytest.raises(StateError, match=rf"process {os.getpid()}"),
        locked(state),
    ):
        pass

    with locked(tmp_path / "state"):
        pass


def test_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from xorepd.process.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)

    with locked(tmp_path):
        pass


# -- signals ---------------------------------------------------------------------------------------


async def test_signals_are_intents_in_their_order() -> None:
    with intents() as queue:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            expected = Intent.RELOAD if number is signal.SIGHUP else Intent.STOP
            assert await queue.get() is expected


# -- systemd ---------------------------------------------------------------------------------------


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(patience())
        yield listener


def test_supervisor_is_told_how_we_are(supervisor: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})

    notifier.ready("jobs: 2, running: 0")
    notifier.stopping("stopping")
    notifier.reloading()

    assert supervisor.recv(4096) == b"READY=1\nSTATUS=jobs: 2, running: 0"
    assert supervisor.recv(4096) == b"STOPPING=1\nSTATUS=stopping"
    reloading, monotonic = supervisor.recv(4096).split(b"\n")
    assert reloading == b"RELOADING=1"
    assert monotonic.startswith(b"MONOTONIC_USEC=")


def test_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0xorepd-test-{os.getpid()}")
        listener.settimeout(patience())

        Notifier({"NOTIFY_SOCKET": f"@xorepd-test-{os.getpid()}"}).status("well")

        assert listener.recv(4096) == b"STATUS=well"


def test_supervisor_that_has_gone_is_no_error(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("well")
    Notifier({}).ready("well")


async def test_watchdog_is_fed_more_often_than_it_asks(
    supervisor: socket.socket, tmp_path: Path
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"})
    supervisor.setblocking(False)
    loop = asyncio.get_running_loop()

    async with background(("watchdog", notifier.feed_watchdog())):
        for _ in range(3):
            assert await loop.sock_recv(supervisor, 4096) == b"WATCHDOG=1"


async def test_watchdog_of_another_process_is_not_fed() -> None:
    for environ in ({}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}):
        await Notifier({"NOTIFY_SOCKET": "/x"} | environ).feed_watchdog()


# -- tasks -----------------------------------------------------------------------------------------


async def test_first_of_ends_the_others() -> None:
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def short() -> None:
        return

    await first_of(endless(), short())

    assert ended.is_set()


async def test_failing_background_ends_the_block() -> None:
    async def failing() -> None:
        raise StateError("gone")

    with pytest.raises(StateError, match="gone"):
        async with background(("failing", failing())):
            await asyncio.Event().wait()


async def test_error_of_the_block_ends_the_background() -> None:
    async def endless() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StateError, match="mine"):
        async with background(("endless", endless())):
            raise StateError("mine")


# -- pools -----------------------------------------------------------------------------------------


class Endpoint:
    """Pools that open and close, and remember it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failing = 0

    @asynccontextmanager
    async def open(self, settings: PoolSettings) -> AsyncIterator[str]:
        if self.failing:
            self.failing -= 1
            raise StateError("closed today")
        self.log.append(f"open {settings.url}")
        try:
            yield settings.url
        finally:
            self.log.append(f"close {settings.url}")


def pool(url: str = "https://one") -> PoolSettings:
    return PoolSettings.model_validate({"name": "prod", "url": url, "password_env": "P"})


async def test_pool_stays_open_between_runs() -> None:
    endpoint = Endpoint()
    async with Pools(endpoint.open) as pools:
        for _ in range(2):
            async with pools.lend(pool()) as lent:
                assert lent == "https://one"
        assert endpoint.log == ["open https://one"]

    assert endpoint.log == ["open https://one", "close https://one"]


async def test_changed_pool_is_opened_anew_and_the_old_one_outlives_its_last_run() -> None:
    endpoint = Endpoint()
    async with Pools(endpoint.open) as pools, pools.lend(pool()):
        pools.retain({PoolName("prod"): pool("https://two")})
        async with pools.lend(pool("https://two")) as lent:
            assert lent == "https://two"
            assert endpoint.log == ["open https://one", "open https://two"]

    assert endpoint.log.index("close https://one") < endpoint.log.index("close https://two")


async def test_removed_pool_that_nobody_uses_is_closed() -> None:
    endpoint = Endpoint()
    async with Pools(endpoint.open) as pools:
        async with pools.lend(pool()):
            pass

        pools.retain({})
        async with pools.lend(pool()):
            pass

        assert endpoint.log.count("open https://one") == 2


async def test_pool_that_failed_to_open_is_tried_anew() -> None:
    endpoint = Endpoint()
    endpoint.failing = 1
    async with Pools(endpoint.open) as pools:
        with pytest.raises(StateError, match="closed today"):
            async with pools.lend(pool()):
                pass
        async with pools.lend(pool()) as lent:
            assert lent == "https://one"


async def test_cancelled_run_takes_the_pool_from_nobody() -> None:
    opening, proceed = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow(settings: PoolSettings) -> AsyncIterator[str]:
        opening.set()
        await proceed.wait()
        yield settings.url

    async def use(pools: Pools[str]) -> str:
        async with pools.lend(pool()) as lent:
            return lent

    async with Pools(slow) as pools, asyncio.TaskGroup() as group:
        first = group.create_task(use(pools))
        second = group.create_task(use(pools))
        await opening.wait()
        first.cancel()
        proceed.set()
        assert await second == "https://one"
