"""From an empty machine to the bad day: docs/install.md, docs/day-by-day.md, docs/bad-day.md."""

from __future__ import annotations

import json
import re

import pytest

from tests.recipes.bad_day import UUID, clone_and_start
from tests.recipes.likeness import assert_like
from tests.recipes.machine import PLACES, Machine, pause
from tests.recipes.pages import Block, claim
from tests.strangers.programs import need
from xorepd_lab.demo.proof import login
from xorepd_lab.demo.stage import Stage

pytestmark = pytest.mark.timeout(600)  # whole systems, one thing after the other

PAGE = "docs/install.md"
INSTALL = claim(PAGE, "python3 -m venv")
FINGERPRINT = claim(PAGE, "$ openssl s_client")
CERTIFICATES = claim(PAGE, "for host in")
PASSWORDS = claim(PAGE, "install -d -m 0700 /etc/xorepd/credentials")
CONFIGURATION = claim(PAGE, "[pools.paris]")
OWNERS = claim(PAGE, "chown root:xorepd")
CHECK = claim(PAGE, "$ CREDENTIALS_DIRECTORY=")
UNIT = claim(PAGE, "install -m 0644 /opt/xorepd/share")
DROP_IN = claim(PAGE, "[Service]")
ENABLE = claim(PAGE, "systemctl daemon-reload")
DAYS = "docs/day-by-day.md"
FIRST_RUN = claim(DAYS, "$ xorepctl run web --wait")
WHILE_IT_RUNS = claim(DAYS, "$ xorepctl run web\n")
HISTORY = claim(DAYS, "$ xorepctl history")
RELOAD = claim(DAYS, "$ xorepctl reload")
UPGRADE = claim(PAGE, "/opt/xorepd/bin/pip install --upgrade")
BAD_DAY = claim("docs/bad-day.md", "# what is there")
BAD_DAY_WITH_MEMORY = claim(
    "docs/bad-day.md", 'xe vm-list name-label="[XO Backup web] web01 (memory'
)

SLOW = 1 << 20
"""Bytes per second of a transfer that has to be met in its middle."""


def shows(machine: Machine, block: Block, *, status: int = 0) -> None:
    """Run the commands of a block one after the other, and compare what they print."""
    for command, shown in block.steps:
        assert_like(shown, machine.run(command, status=status))


@pytest.mark.stranger
def test_a_reader_comes_from_nothing_to_a_replica_and_through_the_bad_day(
    bare: Machine, pools: Stage
) -> None:
    need("openssl", "Debian: openssl")
    for name, label in (("prod", "Production"), ("dr", "DR production")):
        with login(pools.pools[name]) as xenapi:
            for network in xenapi.network.get_by_name_label("lan"):
                xenapi.network.set_name_label(network, label)

    # 1. The program
    assert bare.run(INSTALL.text).splitlines()[-1].startswith("xorepd ")

    # 3. The certificates
    [(command, shown)] = FINGERPRINT.steps
    told = bare.run(command)
    assert_like(shown, told)
    bare.run(CERTIFICATES.text)

    # 4. The passwords
    for name, pool in (("paris", "prod"), ("lyon", "dr")):
        bare.type(name, f"{pools.pools[pool]['password']}\n")
    bare.run(PASSWORDS.text)

    # 5. The configuration
    fingerprint = told.strip().rpartition("=")[2]
    text = re.sub(r"sha256:[0-9A-F:]{95}", f"sha256:{fingerprint}", CONFIGURATION.text) + PLACES
    bare.write("/etc/xorepd/xorepd.toml", text)
    bare.run(OWNERS.text)
    shows(bare, CHECK)
    text = text.replace("*/15 * * * *", "0 0 29 2 *")  # only when it is told to, from here on
    bare.write("/etc/xorepd/xorepd.toml", text)

    # 6. The service
    bare.type("override.conf", DROP_IN.text)
    bare.run(UNIT.text)
    bare.run(ENABLE.text)

    # Day by day
    shows(bare, FIRST_RUN)
    pools.guest("--disk", "1", "--sequential", "0", str(24 << 20), "--seed", "1")
    pools.fault("add", "export", "--times", "0", "--rate", str(SLOW))
    run, status, cancel = WHILE_IT_RUNS.steps
    assert_like(run[1], bare.run(run[0]))
    _wait_for_a_transfer(bare)
    assert_like(status[1], bare.run(status[0]))
    assert_like(cancel[1], bare.run(cancel[0]))
    _wait_until_idle(bare)
    pools.fault("clear")
    bare.run("xorepctl run web --wait")
    error = ("SR_BACKEND_FAILURE_44", "", "There is insufficient space")
    said = [word for each in error for word in ("--error", each)]
    pools.fault("add", "rpc", "--pool", "prod", "--match", "VM.snapshot", *said)
    bare.run("xorepctl run web --wait", status=1)
    shows(bare, HISTORY)

    bare.write("/etc/xorepd/xorepd.toml", text.replace("keep = 3", "keep = 4"))
    good, bad = RELOAD.steps
    assert_like(good[1], bare.run(good[0]))
    bare.write("/etc/xorepd/xorepd.toml", text.replace("keep = 3", "kep = 3"))
    assert_like(bad[1], bare.run(bad[0], status=1))

    # The bad day
    bare.write("/etc/xorepd/xorepd.toml", text + 'snapshot = "memory"\n')
    bare.write("/etc/xorepd/xorepd.toml", text.replace("keep = 3", 'keep = 3\nsnapshot = "memory"'))
    bare.run("xorepctl reload")
    bare.run("xorepctl run web --wait")
    printed = clone_and_start(bare, pools, BAD_DAY)
    assert "power-state ( RO)    : Halted" in printed["vm-list"]
    _memory_goes_on(bare, pools)

    # One day later there is a new release.
    assert "\nxorepd 0." in bare.run(UPGRADE.text)
    assert "web01" in bare.run("xorepctl status")


def _wait_for_a_transfer(machine: Machine) -> None:
    while True:
        status = json.loads(machine.run("xorepctl status --json"))
        assert any(job["run_id"] for job in status["jobs"]), "it was over before it was seen"
        rates = ("rate_bytes_per_s", "sent_rate_bytes_per_s")
        if any(all(record[rate] for rate in rates) for record in status["running"]):
            return


def _wait_until_idle(machine: Machine) -> None:
    while any(job["run_id"] for job in json.loads(machine.run("xorepctl status --json"))["jobs"]):
        pause()


def _memory_goes_on(machine: Machine, pools: Stage) -> None:
    with login(pools.pools["dr"]) as xenapi:
        [name] = [
            vm["name_label"]
            for vm in xenapi.VM.get_all_records().values()
            if vm["power_state"] == "Suspended" and not vm["is_a_snapshot"]
        ]
    listed, *rest = BAD_DAY_WITH_MEMORY.text.splitlines()
    found = UUID.search(machine.run(re.sub(r"\[XO Backup.*\)", name, listed)))
    assert found is not None
    for line in rest:
        machine.run(line.replace("<uuid>", found[0]))
    with login(pools.pools["dr"]) as xenapi:
        assert xenapi.VM.get_power_state(xenapi.VM.get_by_uuid(found[0])) == "Running"
