"""Two daemons as processes with the same job: one is stopped in its run, the other takes over."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xorepd.replication.format.claims import PREFIX
from xorepd_lab.demo.proof import hold_files_still, leftovers, login
from xorepd_lab.demo.stage import CONFIG, Stage

SLOW = 1 << 20
"""Bytes per second of an export that has to be met in its middle."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    directory = tmp_path / "stage"
    directory.mkdir()
    made = Stage(directory)
    try:
        made.start_lab("--topology", "small")
        for pool in made.pools.values():
            hold_files_still(pool)
        yield made
    finally:
        made.stop()


def configured(stage: Stage, name: str) -> Path:
    """Return the demo's configuration with a state of its own and a lease as short as may be."""
    _, pools_and_jobs = CONFIG.read_text().split("[pools.prod]", 1)
    mine = stage.directory / name
    file = stage.directory / f"{name}.toml"
    file.write_text(
        f'[daemon]\nstate_dir = "{mine}"\nsocket = "{mine}.sock"\nlease = "5s"\n\n'
        f"[pools.prod]{pools_and_jobs}"
    )
    return file


def beside(stage: Stage, name: str) -> Stage:
    """Start another daemon on the same lab; return the stage as its operator sees it."""
    socket = {"XOREPD_SOCKET": str(stage.directory / f"{name}.sock")}
    other = replace(stage, environment=stage.environment | socket, daemon=None)
    other.start_daemon(configured(stage, name))
    assert other.daemon is not None
    stage.others.append(other.daemon)
    return other


def run(stage: Stage) -> dict[str, Any]:
    """Run the job to its end; return the record of its VM."""
    started = stage.ctl("run", "web")
    list(stage.events(started["run_id"]))
    record: dict[str, Any] = stage.ctl("history")["records"][0]
    assert record["run_id"] == started["run_id"]
    return record


def staging_file(stage: Stage) -> Path:
    dr = stage.pools["dr"]
    with login(dr) as xenapi:
        (uuid,) = [
            vdi["uuid"]
            for vdi in xenapi.VDI.get_all_records().values()
            if vdi["name_label"].startswith("[Importing] web01-data")
        ]
    (file,) = [path for sr in dr["srs"] for path in Path(sr["directory"]).glob(f"{uuid}.*")]
    return file


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.timeout(300)
def test_a_daemon_that_was_stopped_past_its_lease_does_not_write_when_it_goes_on(
    stage: Stage,
) -> None:
    one = beside(stage, "one")
    assert one.daemon is not None
    assert run(one)["outcome"] == "full"
    two = beside(stage, "two")
    stage.guest("--disk", "1", "--sequential", str(16 << 20), str(8 << 20), "--seed", "1")
    stage.fault("add", "export", "--times", "0", "--rate", str(SLOW))
    started = one.ctl("run", "web")
    for event in one.events(started["run_id"]):
        if event["sent_bytes"] and event["read_bytes"] < event["planned_bytes"]:
            break  # what was only read yet may go to a disk that nothing has open

    one.daemon.send_signal(signal.SIGSTOP)
    stage.fault("clear")
    while (record := run(two))["outcome"] == "lease-held":
        continue
    assert record["outcome"] == "delta", record["error"]
    half = staging_file(stage)  # its stream is still open, so it could not be destroyed yet
    before = digest(half)

    one.daemon.send_signal(signal.SIGCONT)
    list(one.events(started["run_id"]))

    assert digest(half) == before
    (stopped,) = [r for r in one.ctl("history")["records"] if r["run_id"] == started["run_id"]]
    assert stopped["outcome"] == "failed"
    assert "the lease on" in stopped["error"]
    assert run(two)["outcome"] == "delta"
    for pool in stage.pools.values():
        with login(pool) as xenapi:
            assert leftovers(pool, xenapi) == []
            for sr in xenapi.SR.get_all_records().values():
                assert not [key for key in sr["other_config"] if key.startswith(PREFIX)]
    stage.check_lab()


@pytest.mark.timeout(120)
def test_two_daemons_that_are_told_at_once_make_one_replica(stage: Stage) -> None:
    pair = [beside(stage, "one"), beside(stage, "two")]

    started = [(on, on.ctl("run", "web")["run_id"]) for on in pair]
    for on, run_id in started:
        list(on.events(run_id))

    records = [on.ctl("history")["records"][0] for on in pair]
    assert sorted(record["outcome"] for record in records)[0] in ("delta", "full")
    assert {record["outcome"] for record in records} <= {"full", "delta", "lease-held"}
    assert "full" in {record["outcome"] for record in records}
    stage.check_lab()
