"""fence_xenapi, with which a cluster switches a VM off that it has lost sight of."""

import pytest

from tests.lab.labclient import Api
from tests.strangers.programs import Done, need, run
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
# It never logs out.
pytestmark = [pytest.mark.lab, pytest.mark.stranger, pytest.mark.leaves("session")]


async def fence(lab: Lab, action: str, *arguments: str) -> Done:
    pool = lab.pools["prod"]
    return await run(
        *(need("fence_xenapi", "Debian: fence-agents"), "--session-url", pool.url),
        *("--username", pool.username, "--password", pool.password),
        *("--action", action, *arguments),
        env={"SSL_CERT_FILE": str(pool.ca_file)},
    )


async def test_a_cluster_sees_the_vms(lab: Lab, api: Api) -> None:
    listed = await fence(lab, "list")

    assert listed.status == 0
    vms = {await api("VM.get_uuid", await api.vm(name)): name for name in ("web01", "db01")}
    assert sorted(listed.out.split()) == sorted(f"{uuid},{name}" for uuid, name in vms.items())


async def test_a_cluster_fences_a_vm_and_brings_it_back(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")

    off = await fence(lab, "off", "--plug", "web01")
    assert off.status == 0
    assert await api("VM.get_power_state", vm) == "Halted"

    assert (await fence(lab, "status", "--plug", "web01")).status == 2
    on = await fence(lab, "on", "--plug", "web01")
    assert on.status == 0
    assert await api("VM.get_power_state", vm) == "Running"


async def test_a_vm_that_may_not_start_stays_fenced(lab: Lab, api: Api) -> None:
    await api("VM.add_to_blocked_operations", await api.vm("db01"), "start", "not this one")

    on = await fence(lab, "on", "--plug", "db01", "--power-timeout", "2")

    assert on.status != 0
    assert "OPERATION_BLOCKED" in on.out
    assert await api("VM.get_power_state", await api.vm("db01")) == "Halted"
