"""The XenAPI SDK in a process of its own, used as its documentation shows."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import Api, logged_in
from tests.strangers.programs import PATIENCE_S, run, succeed
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]

TOUR = Path(__file__).parent / "sdk" / "tour.py"
WATCH = TOUR.with_name("watch.py")


async def test_the_sdk_tours_a_pool_that_it_enters_through_a_member(lab: Lab) -> None:
    pool = lab.pools["prod"]
    member = f"https://{pool.address(pool.host('prod-h2'))}:{pool.https_port}"

    told = await succeed(
        *(sys.executable, TOUR, member, pool.username, pool.password, "web01"),
        env={"SSL_CERT_FILE": str(pool.ca_file)},
    )

    report = json.loads(told)
    assert report["redirected"] is True
    assert report["default_sr_is_known"] is True
    assert report["vms"] == {"web01": "Running", "db01": "Halted"}
    assert report["disks"] == [["0", "Disk"], ["1", "Disk"], ["3", "CD"]]
    assert report["task"] == {"status": "success", "progress": 1.0, "error_info": []}
    assert report["snapshot"] == {
        "name_label": "web01 by tour",
        "is_a_snapshot": True,
        "is_a_template": True,
        "power_state": "Halted",
    }
    assert report["snapshot_is_of_vm"] is True
    assert report["snapshot_time_is_a_date"] is True
    assert report["failures"] == [
        "VM_BAD_POWER_STATE",
        "VM_IS_SNAPSHOT",
        ["HANDLE_INVALID", "VM"],
        ["UUID_INVALID", "VM"],
        ["MESSAGE_METHOD_UNKNOWN", "VM.levitate"],
    ]
    assert report["gone"] == "HANDLE_INVALID"
    assert ["task", "add"] in report["events"]
    assert list(pool.db.select("session", originator="tour")) == []


async def test_the_sdk_refuses_a_certificate_that_nobody_vouched_for(lab: Lab) -> None:
    pool = lab.pools["prod"]

    done = await run(sys.executable, TOUR, pool.url, pool.username, pool.password, "web01")

    assert done.status != 0
    assert "CERTIFICATE_VERIFY_FAILED" in done.err


async def test_a_watcher_sees_what_others_do_and_survives_a_restart(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    vm, idle = await api.vm("web01"), await api.vm("db01")
    watcher = await asyncio.create_subprocess_exec(
        *(sys.executable, WATCH, pool.url, pool.username, pool.password),
        env={**os.environ, "SSL_CERT_FILE": str(pool.ca_file)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert watcher.stdout is not None
    told: list[dict[str, Any]] = []

    async def hear(key: str, value: object = None) -> None:
        """Read on until it tells that."""
        assert watcher.stdout is not None
        while True:
            line = await watcher.stdout.readline()
            assert line, told
            told.append(json.loads(line))
            if key in told[-1] and value in (None, told[-1][key]):
                return

    try:
        await hear("watching")
        held = lab.faults.add(Fault("inner", "VDI.snapshot", "prod", stall=True))
        async with asyncio.TaskGroup() as group:
            taking = group.create_task(api("VM.snapshot", vm, "watched"))
            while "snapshot" not in told[-1].get("does", {}).values():
                await hear("does")  # events tell how an object is, not all that it was
            held.release()
        snapshot = taking.result()
        await hear("vm", "watched")
        await api("VM.destroy", snapshot)
        await hear("gone", "watched")
        await api("VM.hard_shutdown", vm)
        await hear("state", "Halted")

        await pool.life.restart_toolstack(pool.master)
        await hear("lost")
        await hear("watching")
        async with logged_in(lab) as again:
            await again("VM.set_name_description", idle, "stop watching")
        async with asyncio.timeout(PATIENCE_S):
            await watcher.wait()
    finally:
        if watcher.returncode is None:
            watcher.kill()
            await watcher.wait()

    assert watcher.returncode == 0
