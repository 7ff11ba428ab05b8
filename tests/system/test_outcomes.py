"""What a daemon knows of its runs, and its next process after it: killed, stopped, without room."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from xorepd_lab.demo.stage import BIN, CONFIG, Stage

PATIENCE_S = 60.0

pytestmark = pytest.mark.timeout(300)


class Unix(http.client.HTTPConnection):
    """HTTP on the daemon's socket: quicker than a process for each question."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(path))


def ask(stage: Stage, path: str, method: str = "GET") -> Any:
    with closing(Unix(stage.socket)) as connection:
        connection.request(method, path)
        return json.loads(connection.getresponse().read())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    directory = tmp_path / "stage"
    directory.mkdir()
    made = Stage(directory)
    try:
        made.start_lab("--topology", "small")
        made.start_daemon(configured(made))
        yield made
    finally:
        made.stop()


def configured(stage: Stage) -> Path:
    """Return the demo's configuration with all VMs in its job, which a stop cancels at once."""
    text = CONFIG.read_text()
    text = text.replace('vms = ["web01"]', 'vms = ["*"]').replace('verify = "full"', "")
    text = text.replace('grace = "10s"', 'grace = "0s"')
    file = stage.directory / "all.toml"
    file.write_text(text)
    return file


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not come"
    return found


def events(stage: Stage, *names: str) -> list[dict[str, Any]]:
    """Return what all processes of the daemon have logged."""
    lines = (stage.directory / "xorepd.log").read_text().splitlines()
    found = (json.loads(line) for line in lines if line.startswith("{"))
    return [event for event in found if event["event"] in names]


def outcomes(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(record["vm_name"], record["outcome"]) for record in records]


def half_done(stage: Stage) -> str:
    """Begin a run of which one VM has ended, and one hangs; return its id."""
    stage.fault("add", "export", "--object", "web01-root", "--times", "0", "--stall")
    run_id: str = ask(stage, "/jobs/web/run", "POST")["run_id"]
    until(lambda: ask(stage, "/history")["records"] and ask(stage, "/status")["history"] is None)
    return run_id


def go_on(stage: Stage) -> None:
    """Start the daemon again, with pools that work."""
    stage.fault("clear")
    stage.start_daemon(stage.directory / "all.toml")


def made_up(stage: Stage) -> list[dict[str, Any]]:
    """Wait until a run that the daemon started by itself has ended; return its records."""
    [started] = until(lambda: by_itself(stage))
    for _ in stage.events(started["run_id"]):
        pass
    records: list[dict[str, Any]] = ask(stage, f"/runs/{started['run_id']}")["records"]
    return records


def by_itself(stage: Stage) -> list[dict[str, Any]]:
    """Return the starts that nobody commanded."""
    return [event for event in events(stage, "run.started") if event["cause"] != "command"]


def test_vm_that_has_ended_is_told_of_at_once_and_outlives_a_kill(stage: Stage) -> None:
    run_id = half_done(stage)

    assert outcomes(ask(stage, "/history")["records"]) == [("db01", "full")]
    shown = stage.ctl("show")
    assert (shown["run_id"], shown["running"]) == (run_id, True)
    assert outcomes(shown["records"]) == [("db01", "full"), ("web01", "running")]
    [job] = ask(stage, "/status")["jobs"]
    [db01] = [vm for vm in job["vms"] if vm["name"] == "db01"]
    assert (db01["last"]["outcome"], db01["age_s"] is not None) == ("full", True)
    assert outcomes(events(stage, "run.finished")) == [("db01", "full")]

    stage.kill_daemon()
    go_on(stage)

    first = ask(stage, f"/runs/{run_id}")["records"]
    assert outcomes(first) == [("db01", "full"), ("web01", "interrupted")]
    assert sorted(outcomes(made_up(stage))) == [("db01", "delta"), ("web01", "full")]


def test_run_that_a_stop_cancelled_is_made_up_once(stage: Stage) -> None:
    run_id = half_done(stage)

    stage.stop_daemon()
    go_on(stage)

    first = ask(stage, f"/runs/{run_id}")["records"]
    assert outcomes(first) == [("db01", "full"), ("web01", "cancelled")]
    assert sorted(outcomes(made_up(stage))) == [("db01", "delta"), ("web01", "full")]

    stage.stop_daemon()
    go_on(stage)
    until(lambda: len(events(stage, "daemon.ready")) == 3)
    assert len(by_itself(stage)) == 1
    assert ask(stage, "/status")["jobs"][0]["run_id"] is None


def test_run_that_an_operator_cancelled_before_the_stop_is_not_made_up(stage: Stage) -> None:
    run_id = half_done(stage)
    ask(stage, "/jobs/web/cancel", "POST")

    stage.stop_daemon()
    go_on(stage)

    first = ask(stage, f"/runs/{run_id}")["records"]
    assert outcomes(first) == [("db01", "full"), ("web01", "cancelled")]
    assert by_itself(stage) == []
    assert ask(stage, "/status")["jobs"][0]["run_id"] is None


def test_run_that_ends_while_its_history_cannot_be_written_is_shown_said_and_kept(
    stage: Stage,
) -> None:
    run_id = half_done(stage)
    database = stage.directory / "lab" / "state" / "history.db"

    with closing(sqlite3.connect(database, isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        stage.fault("clear")
        until(lambda: ask(stage, "/status")["jobs"][0]["run_id"] is None)

        status = ask(stage, "/status")
        last = {vm["name"]: vm["last"]["outcome"] for vm in status["jobs"][0]["vms"]}
        assert last == {"db01": "full", "web01": "full"}
        assert (status["history"]["pending"], status["history"]["dropped"]) == (1, 0)
        said = " ".join(stage.run(BIN / "xorepctl", "status").split())
        assert "history: 1 result is not written yet; the daemon tries again:" in said
        assert "another program holds it" in said
        assert outcomes(ask(stage, "/history")["records"]) == [("web01", "full"), ("db01", "full")]

    until(lambda: ask(stage, "/status")["history"] is None)
    stage.kill_daemon()
    go_on(stage)
    kept = ask(stage, f"/runs/{run_id}")["records"]
    assert sorted(outcomes(kept)) == [("db01", "full"), ("web01", "full")]
    assert by_itself(stage) == []
