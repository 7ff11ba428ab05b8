"""XenGarden, a wrapper of the SDK from PyPI: everything it changes is an `Async.` call it polls."""

import json
from pathlib import Path

import pytest

from tests.lab.labclient import Api
from tests.strangers.programs import need_python_program, succeed
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]

LIFE = Path(__file__).parent / "garden" / "life.py"


async def test_a_clone_lives_and_dies_in_the_garden(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    before = set(await api("VM.get_all")), set(await api("VDI.get_all"))

    told = await succeed(
        *(need_python_program("python"), LIFE, pool.url, pool.username, pool.password, "db01"),
        env={"SSL_CERT_FILE": str(pool.ca_file)},
    )

    report = json.loads(told)
    assert report["cpus"] == "2"
    assert report["disks"] == 1
    assert report["macs"] == ["02:16:3e:5e:6c:02"]
    assert report["clone"] == {
        "state": "Running",
        "description": "planted",
        "cpus": "4",
        "memory": str(1 << 30),
    }
    assert {"prod-shared", "prod-local"} <= set(report["srs"])
    vms, disks = before
    assert set(await api("VM.get_all")) == vms
    # The clone may have left a base copy, until the collector has merged it.
    records = (await api("VDI.get_all_records")).items()
    left = {record["name_label"] for ref, record in records if ref not in disks}
    assert left <= {"base copy"}
