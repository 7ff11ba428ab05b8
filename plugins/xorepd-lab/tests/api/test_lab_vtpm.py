"""VTPMs: who has one, what is in it, and where it travels."""

import base64

import pytest

from tests.lab.labclient import VM_RECORD, Api
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab
SECRET = base64.b64encode(b"state of a TPM").decode()


async def contents(api: Api, vm: str) -> list[str]:
    return [await api("VTPM.get_contents", vtpm) for vtpm in await api("VM.get_VTPMs", vm)]


async def test_a_halted_vm_gets_one_vtpm(api: Api) -> None:
    vm, running = await api.vm("db01"), await api.vm("web01")

    vtpm = await api("VTPM.create", vm, False)

    record = await api("VTPM.get_record", vtpm)
    assert (record["VM"], record["persistence_backend"]) == (vm, "xapi")
    assert record["allowed_operations"] == ["destroy"]
    assert "contents" not in record
    assert await api("VM.get_VTPMs", vm) == [vtpm]
    assert "create_vtpm" not in await api("VM.get_allowed_operations", vm)
    assert await api.failure("VTPM.create", vm, False) == ["VTPM_MAX_AMOUNT_REACHED", "1"]
    assert await api.failure("VTPM.create", running, False) == [
        "VM_BAD_POWER_STATE",
        running,
        "halted",
        "running",
    ]


async def test_a_pool_may_forbid_vtpms(lab: Lab, api: Api) -> None:
    pool = (await api("pool.get_all"))[0]
    lab.pools["prod"].db.put("pool", pool, "restrictions", "restrict_vtpm", "true")

    assert await api.failure("VTPM.create", await api.vm("db01"), False) == [
        "FEATURE_RESTRICTED",
        "restrict_vtpm",
    ]


async def test_contents_are_replaced_as_a_whole(api: Api) -> None:
    vm = await api.vm("db01")
    vtpm = await api("VTPM.create", vm, False)
    assert await contents(api, vm) == [""]

    await api("VTPM.set_contents", vtpm, SECRET)
    assert await contents(api, vm) == [SECRET]
    await api("VTPM.set_contents", vtpm, SECRET[:-4])
    assert await contents(api, vm) == [SECRET[:-4]]

    assert (await api.failure("VTPM.set_contents", vtpm, "no base64!"))[0] == "INTERNAL_ERROR"


async def test_snapshots_clones_and_reverts_carry_the_contents(api: Api) -> None:
    vm = await api.vm("db01")
    vtpm = await api("VTPM.create", vm, False)
    await api("VTPM.set_contents", vtpm, SECRET)

    snapshot = await api("VM.snapshot", vm, "s")
    clone = await api("VM.clone", vm, "c")
    await api("VTPM.set_contents", vtpm, "")

    assert await contents(api, snapshot) == await contents(api, clone) == [SECRET]
    await api("VM.revert", snapshot)
    assert await contents(api, vm) == [SECRET]
    assert await api("VM.get_VTPMs", vm) != [vtpm]


async def test_a_unique_vtpm_is_copied_empty(api: Api) -> None:
    vm = await api("VM.create", VM_RECORD)
    await api("VTPM.set_contents", await api("VTPM.create", vm, True), SECRET)

    clone = await api("VM.clone", vm, "c")

    assert await contents(api, clone) == [""]
    assert await api("VTPM.get_is_unique", (await api("VM.get_VTPMs", clone))[0]) is True


async def test_contents_go_with_the_vtpm(api: Api) -> None:
    vm = await api.vm("db01")
    vtpm = await api("VTPM.create", vm, False)
    await api("VM.start", vm, False, False)
    assert await api("VTPM.get_allowed_operations", vtpm) == []
    assert await api.failure("VTPM.destroy", vtpm) == [
        "VM_BAD_POWER_STATE",
        vm,
        "halted, suspended",
        "running",
    ]
    await api("VM.hard_shutdown", vm)
    secrets = await api("secret.get_all")

    await api("VTPM.destroy", vtpm)

    assert len(await api("secret.get_all")) == len(secrets) - 1
    await api("VTPM.create", vm, False)
    await api("VM.destroy", vm)
    assert len(await api("secret.get_all")) == len(secrets) - 1
    assert await api("VTPM.get_all") == []
