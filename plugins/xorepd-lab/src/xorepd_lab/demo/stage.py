"""The processes on stage: the lab with its two pools, the daemon, and the operator's commands."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self, TextIO

from xorepd_lab.demo.needs import BIN as BIN

CONFIG = Path(__file__).with_name("demo.toml")
READY_S = 60.0
STOP_S = 30.0
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
"""What ends a program that nobody ends by hand."""


class StageError(Exception):
    """A process did not do what it was asked to."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have a signal end this program by way of every `finally` there is; those are not disturbed.

    By itself it would end without a word to the processes that it has started.
    """

    def end(number: int, frame: FrameType | None) -> None:
        _ignore_endings()
        sys.exit(128 + number)

    before = {each: signal.signal(each, end) for each in ENDINGS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _ignore_endings() -> None:
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)


@dataclass
class Stage:
    """Everything that the demo starts lives below one directory and ends with it.

    As a context, it clears itself away at the end, whatever that is: also a signal.
    """

    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="xorepd-demo-")))
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    described: str = ""
    """What the lab says of itself: one line of JSON."""
    lab: subprocess.Popen[str] | None = None
    daemon: subprocess.Popen[str] | None = None
    others: list[subprocess.Popen[str]] = field(default_factory=list)
    """Processes that end after the daemon and before the lab."""
    _logs: list[TextIO] = field(default_factory=list)
    _ending: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._ending.enter_context(ended_by_signals())
        self._ending.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._ending.callback(self.stop)
        self._ending.callback(_ignore_endings)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ending.close()

    def need(self, room: int) -> None:
        """Make sure of that many bytes of free space.

        Raises:
            StageError: there are fewer.
        """
        if shutil.disk_usage(self.directory).free < room:
            raise StageError(f"{room / (1 << 30):.0f} GiB of free space are needed")

    @property
    def socket(self) -> Path:
        return Path(self.environment["XOREPD_SOCKET"])

    def start_lab(self, *options: str) -> None:
        """Bring up the pools; returns when they answer."""
        state = str(self.directory / "lab")
        command = [str(BIN / "xorepd-lab"), "up", "--state", state, "--json", *options]
        self.lab = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log("lab.log"), text=True
        )
        assert self.lab.stdout is not None
        line = self.lab.stdout.readline()
        if not line:
            raise StageError(f"the lab did not start:\n{self.tail('lab.log')}")
        self.described = line
        self.pools = {pool["name"]: pool for pool in json.loads(line)["pools"]}
        lab_directory = str(self.directory / "lab")
        self.environment |= {
            "XOREPD_DEMO_DIR": lab_directory,
            "XOREPD_DEMO_PROD_URL": self.pools["prod"]["url"],
            "XOREPD_DEMO_DR_URL": self.pools["dr"]["url"],
            "XOREPD_SOCKET": str(self.directory / "lab" / "control.sock"),
        }

    def start_daemon(self, config: Path = CONFIG) -> None:
        """Start the daemon; returns when it says that it is ready."""
        notifications = self.directory / "notify.sock"
        notifications.unlink(missing_ok=True)
        with Notifications(notifications) as heard:
            self.daemon = subprocess.Popen(
                [BIN / "xorepd", "run", "--config", config],
                stdout=self._log("xorepd.log"),
                stderr=subprocess.STDOUT,
                env=self.environment | {"NOTIFY_SOCKET": str(notifications)},
                text=True,
            )
            if not heard.ready(self.daemon, READY_S):
                raise StageError(f"the daemon did not start:\n{self.tail('xorepd.log')}")

    def let_catch_up(self) -> None:
        """Wait until the daemon has made up for the run that its death cut off."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            newest = self.ctl("history")["records"][0]
            if newest["outcome"] != "interrupted" and not self.ctl("status")["running"]:
                return
            threading.Event().wait(0.2)
        raise StageError("the run that was cut off has not been made up")

    def kill_daemon(self) -> None:
        """End the daemon as a power cut would."""
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()
        self.daemon = None

    def stop_daemon(self) -> None:
        """End the daemon as its supervisor would; returns when it has."""
        assert self.daemon is not None
        self.daemon.terminate()
        self.daemon.wait(STOP_S)
        self.daemon = None

    def ctl(self, *arguments: str) -> Any:
        """Return what `xorepctl … --json` says."""
        return json.loads(self.run(BIN / "xorepctl", *arguments, "--json"))

    def ctl_live(self, *arguments: str) -> None:
        """Run `xorepctl` before the audience's eyes.

        Raises:
            StageError: it failed.
        """
        done = subprocess.run([BIN / "xorepctl", *arguments], env=self.environment, check=False)
        if done.returncode:
            raise StageError(f"xorepctl {' '.join(arguments)} ended with {done.returncode}")

    def events(self, run_id: str) -> Iterator[dict[str, Any]]:
        """Give the records of a run as they change, from the daemon's own socket."""
        connection = http.client.HTTPConnection("localhost", timeout=READY_S)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(str(self.socket))
        with closing(connection):
            connection.request("GET", f"/runs/{run_id}/events")
            for line in connection.getresponse():
                record = json.loads(line)
                if "read_bytes" in record:
                    yield record

    def guest(self, *arguments: str) -> str:
        """Let the guest of web01 write to its disks."""
        state = ("--state", str(self.directory / "lab"))
        return self.run(BIN / "xorepd-lab", "write", *state, "--vm", "web01", *arguments)

    def fault(self, *arguments: str) -> str:
        """Have the lab misbehave, or behave again."""
        action, *rest = arguments
        state = ("--state", str(self.directory / "lab"))
        return self.run(BIN / "xorepd-lab", "fault", action, *state, *rest)

    def check_lab(self) -> None:
        """Have the lab look whether its records and files agree.

        Raises:
            StageError: they do not; with what is wrong.
        """
        self.run(BIN / "xorepd-lab", "fsck", "--state", self.directory / "lab")

    def run(self, *command: str | Path) -> str:
        """Return what a command prints.

        Raises:
            StageError: it failed; with what it said.
        """
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise StageError(f"{Path(command[0]).name} {' '.join(map(str, command[1:]))}: {said}")
        return done.stdout

    def stop(self) -> None:
        """End every process in order."""
        for process in (self.daemon, *self.others, self.lab):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process is not None and process.stdout is not None:
                process.stdout.close()
        for log in self._logs:
            log.close()

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the end of a log."""
        text = (self.directory / name).read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _log(self, name: str) -> TextIO:
        log = (self.directory / name).open("a")
        self._logs.append(log)
        return log


class Notifications:
    """What a process says to its supervisor, as systemd would hear it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._path = path

    def __enter__(self) -> Notifications:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def ready(self, process: subprocess.Popen[str], timeout: float) -> bool:
        """Wait for READY=1; False when the process ends before, or takes too long."""
        self._socket.settimeout(0.5)
        waited = 0.0
        while waited < timeout and process.poll() is None:
            try:
                if "READY=1" in self._socket.recv(4096).decode().splitlines():
                    return True
            except TimeoutError:
                waited += 0.5
        return False
