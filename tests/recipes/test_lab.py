"""docs/lab.md: the lab is started, worked with, broken and looked at as the page says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.recipes.likeness import assert_like
from tests.recipes.machine import Machine, pause
from tests.recipes.pages import Block, claim
from tests.recipes.shapes import assert_shaped
from tests.strangers.programs import need
from xorepd_lab.demo.proof import login
from xorepd_lab.demo.stage import Stage
from xorepd_lab.topology import AccountSpec, PoolSpec

pytestmark = pytest.mark.timeout(600)  # whole systems, one thing after the other

PAGE = "docs/lab.md"
UP = claim(PAGE, "$ xorepd-lab up")
DAEMON = claim(PAGE, "xorepd run --config /tmp/lab")
GUEST = claim(PAGE, "$ xorepd-lab write")
CALLS = claim(PAGE, "$ xorepd-lab calls")
FAULT = claim(PAGE, "$ xorepd-lab fault add rpc")
FAULTS = claim(PAGE, "xorepd-lab fault add export")
REWRITES = claim(PAGE, "[\n  {")
INCIDENT = claim(PAGE, "$ xorepd-lab incident")
FSCK = claim(PAGE, "$ xorepd-lab fsck")
INSTALL = claim(PAGE, "pip install plugins/xorepd-lab")
PLUGIN = claim(PAGE, "pytest_plugins")
OWN_TEST = claim(PAGE, "import XenAPI")
OWN_PROGRAM = claim(PAGE, "import asyncio")
PROGRAM_PRINTS = claim(PAGE, "https://127.90.28.1")
ACCOUNTS = claim(PAGE, "PoolSpec(...")
NBD = claim(PAGE, "mkdir tls")
XVA = claim(PAGE, "curl --cacert /tmp/lab/prod.pem")

SMALL = {
    "--state /tmp/lab --json": "--state /tmp/lab --json --topology small --time-scale 0.01",
    "--sequential 1073741824 100663296": "--sequential 1048576 4194304",
}
"""Disks of a few MiB, to be done sooner."""


@pytest.fixture
def machine(root: Path) -> Iterator[Machine]:
    environment = {"XOREPD_SOCKET": str(root / "tmp/lab/xorepd.sock")}
    with Machine(root, dict(SMALL), environment) as made:
        yield made


def shows(machine: Machine, block: Block) -> None:
    """Run the commands of a block; those that say that something failed end with 1."""
    for command, shown in block.steps:
        failed = "failed in" in shown or "has no file" in shown
        assert_like(shown, machine.run(command, status=1 if failed else 0))


def test_a_lab_is_used_as_the_page_tells(machine: Machine) -> None:
    # Start it
    [(command, shown)] = UP.steps
    lab = machine.start(command, "lab.log")
    while not (lines := _json_lines(machine.root / "lab.log")):
        assert lab.poll() is None
        pause()
    assert_shaped(shown, lines[0])
    config = machine.path("/tmp/lab/xorepd.toml")
    config.write_text(config.read_text().replace("*/5 * * * *", "0 0 29 2 *"))
    run, export, replicate = DAEMON.text.splitlines()
    daemon = machine.start(run, "xorepd.log")
    machine.wait_for("daemon.ready", "xorepd.log", daemon)
    machine.run(f"{export}\n{replicate}")

    # Let the guest work; see what it was asked
    shows(machine, GUEST)
    [(command, shown)] = CALLS.steps
    for lines in (shown.splitlines(), machine.run(command).splitlines()):
        assert len(lines) == 8
        for line in lines:
            pool, host, kind, _, _, client = line.split()
            assert (host.partition("-")[0], kind, client) == (pool, "rpc", "xorepd")

    # Make things fail
    shows(machine, FAULT)
    rules = [json.loads(line) for line in _json_lines_of(FAULT.steps[2][1])]
    (machine.root / "rules.json").write_text(
        json.dumps(
            [{k: v for k, v in rule.items() if k not in ("seen", "fired")} for rule in rules]
        )
    )
    machine.run(FAULTS.text, cwd=machine.root)
    listed = machine.run("xorepd-lab fault list --state /tmp/lab").splitlines()
    added = [line.split()[3] for line in FAULTS.text.splitlines() if "fault add" in line]
    assert [json.loads(line)["where"] for line in listed] == [*added, "rpc"]
    machine.run("xorepd-lab fault clear --state /tmp/lab")
    (machine.root / "rules.json").write_text(REWRITES.text)
    machine.run("xorepd-lab fault load rules.json --state /tmp/lab", cwd=machine.root)
    listed = machine.run("xorepd-lab fault list --state /tmp/lab").splitlines()
    assert [json.loads(line)["rewrite"] for line in listed] == [
        rule["rewrite"] for rule in json.loads(REWRITES.text)
    ]
    machine.run("xorepd-lab fault clear --state /tmp/lab")
    shows(machine, INCIDENT)

    # Check it
    [shown_uuid] = set(re.findall(r"[0-9a-f-]{36}", FSCK.text))
    machine.words[shown_uuid] = _disk_of_the_replica(lines_of(machine.root / "lab.log"))
    shows(machine, FSCK)


def lines_of(log: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(_json_lines(log)[0])
    return described


def _json_lines(log: Path) -> list[str]:
    return _json_lines_of(log.read_text())


def _json_lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines(keepends=True) if line[0] == "{" and line[-1] == "\n"]


def _disk_of_the_replica(described: dict[str, Any]) -> str:
    [dr] = [pool for pool in described["pools"] if pool["name"] == "dr"]
    with login(dr) as xenapi:
        [vm] = [
            vm
            for vm in xenapi.VM.get_all_records().values()
            if "Continuous Replication" in vm["tags"] and not vm["is_a_snapshot"]
        ]
        disks = [xenapi.VDI.get_record(xenapi.VBD.get_VDI(vbd)) for vbd in vm["VBDs"]]
    [uuid] = [str(disk["uuid"]) for disk in disks if disk["name_label"] == "web01-root"]
    return uuid


# -- for other clients -----------------------------------------------------------------------------

CLIENT = """
def snapshot(session, name):
    [vm] = session.xenapi.VM.get_by_name_label(name)
    for _ in range(2):
        try:
            return session.xenapi.VM.snapshot(vm, "mine")
        except OSError:
            pass
"""
"""A client that asks again when it gets no answer."""


def test_the_lab_is_installed_by_itself(machine: Machine) -> None:
    assert "Successfully installed xorepd-lab-" in machine.run(INSTALL.text)


def test_another_clients_test_uses_the_fixture_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "my_client.py").write_text(CLIENT)
    (tmp_path / "conftest.py").write_text(PLUGIN.text)
    (tmp_path / "test_mine.py").write_text(f"import my_client\n{OWN_TEST.text}")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_another_program_uses_the_lab_as_the_page_shows() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN_PROGRAM.text], check=True, capture_output=True, text=True
    )

    assert_like(PROGRAM_PRINTS.text, done.stdout)


def test_a_pool_of_ones_own_has_accounts() -> None:
    known = {"PoolSpec": PoolSpec, "AccountSpec": AccountSpec}

    made = eval(ACCOUNTS.text.replace("...", '"mine", ("h1",), (), ("lan",)'), known)

    assert [account.name for account in made.accounts] == ["operator", "guest"]


# -- with other programs ---------------------------------------------------------------------------


@pytest.mark.stranger
def test_nbdcopy_and_curl_read_and_write_what_the_page_says(root: Path, pools: Stage) -> None:
    need("nbdcopy", "Debian: libnbd-bin")
    prod, dr = pools.pools["prod"], pools.pools["dr"]
    with login(prod) as xenapi:
        for network in xenapi.network.get_by_name_label("lan"):
            xenapi.network.add_purpose(network, "nbd")
        [vm] = xenapi.VM.get_by_name_label("web01")
        snapshot = xenapi.VM.snapshot(vm, "mine")
        uuid = xenapi.VM.get_uuid(snapshot)
        vdi = xenapi.VBD.get_VDI(xenapi.VM.get_VBDs(snapshot)[0])
        info = xenapi.VDI.get_nbd_info(vdi)[0]
        size = int(xenapi.VDI.get_virtual_size(vdi))
        name = quote(info["exportname"], safe="")
        words = {
            "ADDRESS:PORT/EXPORTNAME": f"{info['address']}:{info['port']}/{name}",
            "SUBJECT": info["subject"],
        }
        with Machine(root, words) as machine:
            mkdir, nbdcopy = NBD.text.splitlines()
            machine.run(mkdir, cwd=root)
            (root / "tls" / "ca-cert.pem").write_text(info["cert"])
            machine.run(nbdcopy, cwd=root)
            assert (root / "disk.raw").stat().st_size == size

            export, load = XVA.text.splitlines()
            for command, pool in ((export, prod), (load, dr)):
                machine.words = {
                    "/tmp/lab/prod.pem": prod["ca_file"],
                    "/tmp/lab/dr.pem": dr["ca_file"],
                    "PASSWORD": pool["password"],
                    "https://ADDRESS:PORT": pool["url"],
                    "SNAPSHOT": uuid,
                    "sr_uuid=SR": f"sr_uuid={dr['srs'][0]['uuid']}",
                }
                machine.run(command, cwd=root)
    with login(dr) as xenapi:
        assert "mine" in {vm["name_label"] for vm in xenapi.VM.get_all_records().values()}
