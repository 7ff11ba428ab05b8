"""The programs as a user runs them: the lab and the daemon as processes, curl on the socket."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from xorepd_lab.demo import judge
from xorepd_lab.demo.proof import disks_of, hold_files_still, login
from xorepd_lab.demo.stage import BIN, Stage

SLOW = 2 << 20
"""Bytes per second of an export that has to be met in its middle."""

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None, reason="curl is not installed; it is the stranger in this test"
)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    directory = tmp_path / "stage"
    directory.mkdir()
    made = Stage(directory)
    try:
        made.start_lab("--topology", "small")
        for pool in made.pools.values():
            hold_files_still(pool)
        made.start_daemon()
        yield made
        made.check_lab()
    finally:
        made.stop()


def curl(stage: Stage, path: str) -> dict[str, object]:
    command = ["curl", "--silent", "--fail", "--unix-socket", str(stage.socket)]
    done = subprocess.run([*command, f"http://localhost{path}"], check=True, capture_output=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@needs_curl
@pytest.mark.stranger
def test_curl_sees_bytes_and_rate_while_a_transfer_runs(stage: Stage) -> None:
    stage.fault("add", "export", "--times", "0", "--rate", str(SLOW))
    started = stage.ctl("run", "web")

    for event in stage.events(started["run_id"]):
        if event["sent_bytes"] and event["rate_bytes_per_s"] and event["sent_rate_bytes_per_s"]:
            break

    status: Any = curl(stage, "/status")
    [running] = status["running"]
    assert 0 < running["read_bytes"] < running["planned_bytes"]
    assert 0 < running["sent_bytes"] <= running["read_bytes"]
    assert running["rate_bytes_per_s"] > 0
    stage.fault("clear")
    for event in stage.events(started["run_id"]):
        last = event
    assert last["read_bytes"] == last["planned_bytes"]


@pytest.mark.stranger
def test_libvhdi_opens_every_file_of_every_sr_after_two_deltas(stage: Stage) -> None:
    stage.ctl_live("run", "web", "--wait")
    for seed in ("1", "2"):
        stage.guest("--disk", "1", "--random", "5", "--seed", seed)
        stage.ctl_live("run", "web", "--wait")

    outcomes = [run["outcome"] for run in stage.ctl("history")["records"]]
    assert outcomes == ["delta", "delta", "full"]
    opened = 0
    for pool in stage.pools.values():
        for sr in pool["srs"]:
            for file in Path(sr["directory"]).glob("*.vhd"):
                with judge.Disk(Path(sr["directory"]), file.stem) as disk:
                    disk.sha256()
                    opened += 1
    assert opened > 10


def test_a_sigkilled_daemon_continues_with_a_delta(stage: Stage) -> None:
    stage.ctl_live("run", "web", "--wait")
    point = stage.ctl("history")["records"][0]["restore_point"]
    dr = stage.pools["dr"]
    with login(dr) as xenapi:
        disks = disks_of(dr, xenapi, point)
    before = {device: judge.sha256(*disk) for device, disk in disks.items()}
    stage.guest("--disk", "1", "--sequential", str(16 << 20), str(8 << 20), "--seed", "1")
    stage.fault("add", "export", "--times", "0", "--rate", str(SLOW))
    started = stage.ctl("run", "web")
    for event in stage.events(started["run_id"]):
        if 0 < event["read_bytes"] < event["planned_bytes"]:
            break

    while step_of_the_run(stage) != "transfer":
        pass
    stage.kill_daemon()
    stage.fault("clear")

    assert {device: judge.sha256(*disk) for device, disk in disks.items()} == before
    stage.start_daemon()
    stage.let_catch_up()
    made_up, cut = stage.ctl("history")["records"][:2]
    assert (cut["outcome"], cut["step"]) == ("interrupted", "transfer")
    assert 0 < cut["read_bytes"] < cut["planned_bytes"]
    assert "interrupted in transfer: xorepd" in stage.run(BIN / "xorepctl", "history")
    assert made_up["outcome"] == "delta"


def step_of_the_run(stage: Stage) -> str:
    """Return which step is written down of the run under way, once it has moved something."""
    database = f"file:{stage.directory / 'lab' / 'state' / 'history.db'}?mode=ro"
    with closing(sqlite3.connect(database, uri=True)) as connection:
        [(text,)] = connection.execute("SELECT records FROM begun")
    [record] = json.loads(text)
    return str(record["step"]) if record["read_bytes"] else ""


def test_a_sigkilled_daemon_goes_on_with_what_it_had_sent(stage: Stage) -> None:
    stage.guest("--disk", "1", "--sequential", "0", str(24 << 20), "--seed", "1")
    stage.fault("add", "export", "--times", "0", "--rate", str(SLOW))
    started = stage.ctl("run", "web")
    with login(stage.pools["dr"]) as xenapi:
        for _ in stage.events(started["run_id"]):
            if "xorepd:confirmed" in str(xenapi.VDI.get_all_records()):
                break

    stage.kill_daemon()
    stage.fault("clear")

    stage.start_daemon()
    stage.let_catch_up()
    newest = stage.ctl("history")["records"][0]
    assert newest["outcome"] == "full"
    assert max(disk["resumed_from"] for disk in newest["disks"]) > 0
    assert "continued from there" in stage.run(BIN / "xorepctl", "show", newest["run_id"])


def test_the_labs_own_configuration_is_a_working_one(stage: Stage) -> None:
    described = json.loads(stage.described)

    done = subprocess.run(
        [BIN / "xorepd", "check", "--config", described["config"]], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr


def test_the_socket_may_be_named_before_the_command(stage: Stage) -> None:
    del stage.environment["XOREPD_SOCKET"]
    socket = str(stage.directory / "lab" / "control.sock")

    before = stage.run(BIN / "xorepctl", "--socket", socket, "jobs")

    assert before == stage.run(BIN / "xorepctl", "jobs", "--socket", socket)


def test_no_secret_reaches_logs_arguments_or_status(stage: Stage) -> None:
    stage.ctl_live("run", "web", "--wait")
    assert stage.daemon is not None
    pid = stage.daemon.pid
    seen = [
        (stage.directory / "xorepd.log").read_text(),
        Path(f"/proc/{pid}/cmdline").read_text(),
        json.dumps(stage.ctl("status")) + json.dumps(stage.ctl("history")),
    ]

    for pool in stage.pools.values():
        for text in seen:
            assert pool["password"] not in text
    assert "session_id=OpaqueRef" not in seen[0]
