"""The daemon as a process: started, told, stopped. Its pools cannot be reached."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patience

SECRET = "geheim-52c1"
CONFIG = """
[daemon]
state_dir = "state"
socket = "run/control.sock"
log_level = "debug"
grace = "{grace}"

[pools.prod]
url = "https://127.0.0.1:{port}"
password_env = "PROD_PASSWORD"

[pools.dr]
url = "https://127.0.0.1:{port}"
password_file = "dr.password"

[jobs.web]
source = "prod"
vms = ["web01"]
target = {{ pool = "dr", sr = "dr-storage" }}
keep = {keep}
"""


@dataclass
class Place:
    """A directory with a configuration, and a supervisor that listens."""

    directory: Path
    notify: socket.socket
    pool: socket.socket
    """Accepts connections and never answers: what a hanging pool looks like."""

    def configure(self, *, keep: int = 3, port: int | None = None, grace: str = "60s") -> None:
        # Port 1 refuses at once.
        text = CONFIG.format(keep=keep, port=1 if port is None else port, grace=grace)
        (self.directory / "xorepd.toml").write_text(text)

    @property
    def hanging_port(self) -> int:
        return int(self.pool.getsockname()[1])

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "WATCHDOG_USEC": "60000000",
            "PROD_PASSWORD": SECRET,
            "COLUMNS": "80",
        }

    def start(self) -> Daemon:
        # Not through a pipe, which a daemon that says much could fill.
        log = self.directory / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "xorepd", "run", "-c", "xorepd.toml"],
                cwd=self.directory,
                env=self.environ,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        return Daemon(self, process, log)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from xorepd.ctl import main; main()", *arguments],
            cwd=self.directory,
            env=self.environ | {"XOREPD_SOCKET": "run/control.sock"},
            capture_output=True,
            text=True,
            check=False,
        )

    def told(self, word: str) -> str:
        """Wait until the daemon tells its supervisor something that begins so."""
        while not (text := self.notify.recv(4096).decode()).startswith(word):
            pass
        return text


@dataclass
class Daemon:
    place: Place
    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        return self.process.wait(timeout=patience())

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "dr.password").touch(mode=0o600)
    (tmp_path / "dr.password").write_text(SECRET + "\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, socket.socket() as pool:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(patience())
        pool.bind(("127.0.0.1", 0))
        pool.listen(64)
        made = Place(tmp_path, notify, pool)
        made.configure()
        yield made


@pytest.fixture
def daemon(place: Place) -> Iterator[Daemon]:
    started = place.start()
    try:
        place.told("READY=1")
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def test_daemon_is_ready_answers_and_stops(place: Place, daemon: Daemon) -> None:
    socket_path = str(place.directory / "run" / "control.sock")
    curl = subprocess.run(
        ["curl", "-sS", "--unix-socket", socket_path, "http://localhost/status"],
        capture_output=True,
        check=True,
    )
    assert json.loads(curl.stdout)["pid"] == daemon.process.pid

    daemon.signal(signal.SIGTERM)

    assert daemon.ended() == 0
    place.told("STOPPING=1")
    assert not os.path.lexists(socket_path)
    assert daemon.events()[-1]["event"] == "daemon.stopped"


def test_run_on_unreachable_pools_fails_and_says_why(place: Place, daemon: Daemon) -> None:
    run = place.ctl("run", "web", "--wait")
    assert run.returncode == 1
    assert "no answer from 127.0.0.1" in run.stdout

    assert "failed" in place.ctl("status").stdout
    (record,) = json.loads(place.ctl("history", "--json").stdout)["records"]
    assert (record["outcome"], record["vm_name"]) == ("failed", "web01")
    (finished,) = [event for event in daemon.events() if event["event"] == "run.finished"]
    assert (finished["run_id"], finished["job"]) == (record["run_id"], "web")


def test_history_is_there_after_a_restart(place: Place, daemon: Daemon) -> None:
    place.ctl("run", "web", "--wait")
    daemon.signal(signal.SIGTERM)
    daemon.ended()

    again = place.start()
    place.told("READY=1")

    assert "failed" in place.ctl("history").stdout
    again.signal(signal.SIGTERM)
    assert again.ended() == 0


def test_sighup_takes_a_good_file_and_leaves_a_bad_one(place: Place, daemon: Daemon) -> None:
    def keep() -> int:
        return int(json.loads(place.ctl("jobs", "--json").stdout)["jobs"][0]["targets"][0]["keep"])

    place.configure(keep=5)
    daemon.signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in place.told("RELOADING=1")
    place.told("READY=1")
    assert keep() == 5

    place.configure(keep=99)
    daemon.signal(signal.SIGHUP)
    place.told("RELOADING=1")
    place.told("READY=1")
    assert keep() == 5
    (refused,) = [event for event in daemon.events() if event["event"] == "reload.refused"]
    assert "jobs.web.keep = 99" in refused["error"]

    command = place.ctl("reload")
    assert command.returncode == 1
    assert "jobs.web.keep = 99" in command.stderr


def test_sigterm_cancels_what_does_not_end_in_its_grace(place: Place, daemon: Daemon) -> None:
    place.configure(port=place.hanging_port, grace="0s")
    place.ctl("reload")
    run_id = json.loads(place.ctl("run", "web", "--json").stdout)["run_id"]

    daemon.signal(signal.SIGTERM)

    place.told("STATUS=stopping, runs to end: 0")
    place.pool.close()  # a login that hangs ends with its connection
    assert daemon.ended() == 0
    (finished,) = [event for event in daemon.events() if event["event"] == "run.finished"]
    assert (finished["run_id"], finished["outcome"]) == (run_id, "cancelled")


def test_second_signal_ends_the_grace(place: Place, daemon: Daemon) -> None:
    place.configure(port=place.hanging_port, grace="1h")
    place.ctl("reload")
    place.ctl("run", "web")
    daemon.signal(signal.SIGTERM)
    place.told("STOPPING=1")

    daemon.signal(signal.SIGINT)

    place.told("STATUS=stopping, runs to end: 0")
    place.pool.close()
    assert daemon.ended() == 0


def test_second_daemon_on_the_same_state_is_refused(place: Place, daemon: Daemon) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "xorepd", "run", "-c", "xorepd.toml"],
        cwd=place.directory,
        env=place.environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert second.returncode == 1
    assert second.stderr.startswith(f"xorepd: another xorepd (process {daemon.process.pid})")
    assert len(second.stderr.splitlines()) == 1
    assert place.ctl("status").returncode == 0


def test_damaged_state_is_set_aside_and_said(place: Place, daemon: Daemon) -> None:
    place.ctl("run", "web", "--wait")
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    state = place.directory / "state"
    for name in ("history.db", "maps.db", "daemon-id"):
        (state / name).write_bytes(b"\xff\xfe no file of xorepd" * 1000)

    again = place.start()
    place.told("READY=1")

    told = json.loads(place.ctl("status", "--json").stdout)["set_aside"]
    assert [sentence.partition(" ")[0] for sentence in told] == [
        "daemon-id",
        "history.db",
        "maps.db",
    ]
    assert "history.db was damaged" in place.ctl("status").stdout
    assert place.ctl("run", "web", "--wait").returncode == 1
    assert "failed" in place.ctl("history").stdout
    aside = [event["name"] for event in again.events() if event["event"] == "state.set_aside"]
    assert sorted(aside) == ["daemon-id.damaged", "history.db.damaged", "maps.db.damaged"]
    again.signal(signal.SIGTERM)
    assert again.ended() == 0


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(place: Place) -> None:
    precious = place.directory / "precious"
    precious.write_text("what somebody needs\n")
    (place.directory / "state").mkdir(mode=0o700)
    (place.directory / "state" / "lock").symlink_to(precious)

    started = place.start()

    assert started.ended() == 1
    [line] = started.log.read_text().splitlines()
    assert "is not a lock file of xorepd" in line
    assert precious.read_text() == "what somebody needs\n"


def test_secret_is_nowhere_to_be_read(place: Place, daemon: Daemon) -> None:
    place.ctl("run", "web", "--wait")
    outputs = [place.ctl(*command).stdout for command in (["status", "--json"], ["history"])]
    daemon.signal(signal.SIGTERM)
    daemon.ended()

    for file in (daemon.log, *(place.directory / "state").iterdir()):
        assert SECRET.encode() not in file.read_bytes()
    assert all(SECRET not in output for output in outputs)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda place: place.configure(keep=0), "jobs.web.keep = 0"),
        (lambda place: (place.directory / "dr.password").unlink(), "pools.dr.password_file"),
        (lambda place: (place.directory / "dr.password").chmod(0o644), "chmod 600"),
    ],
)
def test_bad_configuration_is_refused_at_the_start(place: Place, break_it: Any, words: str) -> None:
    break_it(place)

    for command in ("run", "check"):
        refused = subprocess.run(
            [sys.executable, "-m", "xorepd", command, "-c", "xorepd.toml"],
            cwd=place.directory,
            env=place.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 78
        assert words in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_check_finds_all_at_once_that_run_and_reload_would_refuse(
    place: Place, daemon: Daemon
) -> None:
    good = (place.directory / "xorepd.toml").read_text()
    where = place.directory
    (where / "plain").touch(mode=0o644)
    (where / "dr.password").write_text("")
    state_dir, socket_path = 'state_dir = "plain"', f'socket = "{"s" * 120}"'
    bad = good.replace('state_dir = "state"', state_dir).replace(
        'socket = "run/control.sock"', socket_path
    )
    bad = bad.replace('password_env = "PROD_PASSWORD"', 'password_env = "NOPE"\nca_file = "plain"')
    bad += (
        'schedule = "*/90 * * * *"\n'
        f'hooks = {{ before = ["{where}/nope"], after = ["{where}/plain"] }}\n'
        '\n[jobs.db]\nsource = "prod"\nvms = ["db01"]\nkep = 3\n'
        'target = { pool = "lyon", sr = "x" }\ntransport = "drect"\n'
    )
    (where / "xorepd.toml").write_text(bad)

    said = []
    for command in ("check", "run"):
        refused = subprocess.run(
            [sys.executable, "-m", "xorepd", command, "-c", "xorepd.toml"],
            cwd=where,
            env=place.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 78
        lines = refused.stderr.splitlines()
        assert all(line.startswith(f"xorepd: {where}/xorepd.toml: ") for line in lines)
        said.append(sorted(line.removeprefix("xorepd: ") for line in lines))
    reload = place.ctl("reload")
    said.append(sorted(line.removeprefix("xorepctl: ") for line in reload.stderr.splitlines()))

    keys = [line.removeprefix(f"{where}/xorepd.toml: ").split(": ")[0] for line in said[0]]
    assert [key.split(" = ")[0] for key in keys] == [
        "daemon.socket",
        "daemon.state_dir",
        "jobs.db.kep",
        "jobs.db.target.pool",
        "jobs.db.transport",
        "jobs.web.hooks.after",
        "jobs.web.hooks.before",
        "jobs.web.schedule",
        "pools.dr.password_file",
        "pools.prod.ca_file",
        "pools.prod.password_env",
    ]
    assert said[1] == said[2] == said[0]
    assert place.ctl("status").returncode == 0


def check(place: Place, command: str = "check") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xorepd", command, "-c", "xorepd.toml"],
        cwd=place.directory,
        env=place.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_finds_a_history_that_run_would_refuse(place: Place) -> None:
    history = place.directory / "state" / "history.db"
    history.parent.mkdir()
    with closing(sqlite3.connect(history)) as connection:
        connection.execute("PRAGMA user_version = 99")

    for command in ("check", "run"):
        refused = check(place, command)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (78, 1)
        assert "history.db: was written by a newer xorepd (schema 99, this one" in refused.stderr


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"short"])
def test_check_takes_a_damaged_history_which_run_sets_aside(place: Place, content: bytes) -> None:
    history = place.directory / "state" / "history.db"
    history.parent.mkdir()
    history.write_bytes(content)

    assert check(place).returncode == 0
    started = place.start()
    place.told("READY=1")
    assert place.ctl("status").returncode == 0
    started.signal(signal.SIGTERM)
    assert started.ended() == 0


AS_NOBODY = """
import os, sys
import uvloop, xorepd.daemon.app, xorepd.daemon.checking, xorepd.relay.app, xorepd.relay.settings
from xorepd import cli, ctl
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
(ctl if sys.argv.pop(1) == "xorepctl" else cli).main()
"""


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["xorepd", "run"], 78),
        (["xorepd", "check"], 78),
        (["xorepd", "relay", "run"], 78),
        (["xorepd", "relay", "check"], 78),
        (["xorepctl", "status"], 1),
    ],
)
@pytest.mark.parametrize("hidden", ["file", "directory"])
def test_configuration_that_the_account_may_not_read_is_a_bad_one(
    command: list[str], status: int, hidden: str
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "etc" / "xorepd.toml"
        file.parent.mkdir()
        file.write_text("jobs = {}\n")
        os.chmod(directory, 0o755)
        (file if hidden == "file" else file.parent).chmod(0)

        refused = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *command, "-c", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        file.parent.chmod(0o700)

    assert refused.returncode == status, refused.stderr
    [line] = refused.stderr.splitlines()
    assert f"{file}: this account may not read it (Permission denied); give it to" in line


def test_units_are_not_started_again_after_a_bad_configuration() -> None:
    for unit in (Path(__file__).parents[2] / "systemd").glob("*.service"):
        lines = unit.read_text().splitlines()
        assert {"Restart=on-failure", "RestartPreventExitStatus=78"} <= set(lines)


def test_check_says_what_a_good_configuration_does(place: Place) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "xorepd", "check", "-c", "xorepd.toml"],
        cwd=place.directory,
        env=place.environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0
    assert "web: 1 VM(s) prod -> dr/dr-storage, keep 3, by hand" in checked.stdout


def test_no_daemon_has_an_exit_status_of_its_own(place: Place) -> None:
    status = place.ctl("status")

    assert (status.returncode, status.stdout) == (3, "")
    assert status.stderr.startswith("xorepctl: no daemon answers on run/control.sock")
    assert place.ctl("nonsense").returncode == 2
