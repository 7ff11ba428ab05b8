"""Ansible's modules for XenServer, run by the real `ansible-playbook` over verified TLS."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import Api
from tests.strangers.programs import need_python_program, succeed
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]

PLAYBOOKS = Path(__file__).parent / "ansible"


async def play(lab: Lab, name: str, directory: Path, **variables: str) -> Any:
    """Run a playbook against the pool `prod` and return what it wrote to its report."""
    pool, report = lab.pools["prod"], directory / "report.json"
    given = {
        "url": pool.url,
        "user": pool.username,
        "password": pool.password,
        "report": str(report),
        **variables,
    }
    await succeed(
        *(need_python_program("ansible-playbook"), "-i", "localhost,", "-c", "local"),
        *("--extra-vars", json.dumps(given), PLAYBOOKS / name),
        env={
            "SSL_CERT_FILE": str(pool.ca_file),
            "ANSIBLE_HOME": str(directory / "ansible"),
            "ANSIBLE_PYTHON_INTERPRETER": need_python_program("python"),
            "ANSIBLE_DEPRECATION_WARNINGS": "false",
        },
    )
    return json.loads(report.read_text())


async def test_ansible_describes_a_vm(lab: Lab, tmp_path: Path) -> None:
    found = await play(lab, "look.yml", tmp_path, vm="web01")

    assert found["state"] == "poweredon"
    assert found["hardware"]["num_cpus"] == 2
    assert found["hardware"]["memory_mb"] == 2048
    assert [(d["name"], d["vbd_userdevice"]) for d in found["disks"]] == [
        ("web01-root", "0"),
        ("web01-data", "1"),
    ]
    assert found["cdrom"] == {"type": "none"}
    assert found["networks"][0]["name"] == "lan"
    assert found["networks"][0]["mac"] == "02:16:3e:5e:6c:01"
    assert list(lab.pools["prod"].db.select("session", originator="Ansible")) == []


async def test_ansible_powers_a_vm_off_and_on(lab: Lab, api: Api, tmp_path: Path) -> None:
    changed = await play(lab, "power.yml", tmp_path, vm="web01")

    assert changed == [True, False, True, False, True, True]
    assert await api("VM.get_power_state", await api.vm("web01")) == "Running"


@pytest.mark.parametrize("template", ["of a stranger", "Debian Bookworm 12"])
async def test_ansible_deploys_changes_and_removes_a_vm(
    lab: Lab, api: Api, tmp_path: Path, template: str
) -> None:
    if template == "of a stranger":
        made_so = await api("VM.clone", await api.vm("db01"), template)
        await api("VM.set_is_a_template", made_so, True)
    before = set(await api("VDI.get_all"))

    report = await play(
        lab,
        "deploy.yml",
        tmp_path,
        vm="app01",
        template=template,
        sr="prod-shared",
        network="lan",
    )

    made = report["made"]["instance"]
    assert made["state"] == "poweredon"
    assert made["hardware"]["num_cpus"] == 2
    assert made["hardware"]["memory_mb"] == 512
    assert [(d["name"], d["size"], d["sr"]) for d in made["disks"]] == [
        ("app01-root", 64 << 20, "prod-shared")
    ]
    assert "02:16:3e:00:00:07" in [network["mac"] for network in made["networks"]]
    assert report["again"]["changed"] is False
    assert report["changed"]["instance"]["name_desc"] == "changed by Ansible"
    assert report["changed"]["instance"]["hardware"]["memory_mb"] == 1024
    assert report["removed"]["changed"] is True
    assert await api("VM.get_by_name_label", "app01") == []
    assert set(await api("VDI.get_all")) <= before
