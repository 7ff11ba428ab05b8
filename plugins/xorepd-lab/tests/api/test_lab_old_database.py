"""A toolstack that is killed and comes back with a database of before."""

from pathlib import Path

import pytest

from tests.lab.labclient import (
    NULL,
    VM_RECORD,
    Api,
    exchange,
    get,
    logged_in,
    small_lab,
    until,
    vbd_record,
    vdi_record,
)
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.leaves("session")]

SAVED, ROLLBACK = (Incident(f"database-{what}", pool="prod") for what in ("saved", "rollback"))


async def scan(api: Api, name: str = "prod-shared") -> None:
    (sr,) = await api("SR.get_by_name_label", name)
    await api("SR.scan", sr)


async def read(lab: Lab, api: Api, vdi: str) -> bytes:
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&format=raw"
    return (await exchange(lab.pools["prod"].plain_url, get(path))).partition(b"\r\n\r\n")[2]


async def test_what_was_made_since_is_gone_and_a_scan_finds_bare_disks(lab: Lab, api: Api) -> None:
    disk = await api.disk("web01-data")
    await lab.happen(SAVED)
    vm = await api("VM.create", VM_RECORD)
    point = await api("VM.snapshot", await api.vm("web01"), "point")
    snapshot = await api("VDI.snapshot", disk)
    await api("VDI.add_to_other_config", snapshot, "xorepd-test", "mine")
    uuid = await api("VDI.get_uuid", snapshot)
    before = await read(lab, api, snapshot)

    await lab.happen(ROLLBACK)

    async with logged_in(lab) as later:
        for cls, ref in (("VM", vm), ("VM", point), ("VDI", snapshot)):
            assert await later.failure(f"{cls}.get_record", ref) == ["HANDLE_INVALID", cls, ref]
        assert await later("VM.get_snapshots", await later.vm("web01")) == []
        await scan(later)
        found = await later("VDI.get_by_uuid", uuid)
        record = await later("VDI.get_record", found)
        assert found != snapshot
        assert (record["name_label"], record["other_config"], record["VBDs"]) == ("", {}, [])
        assert (record["is_a_snapshot"], record["snapshot_of"]) == (False, NULL)
        assert await read(lab, later, found) == before


async def test_what_was_destroyed_since_is_back_without_its_data(lab: Lab, api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    vdi = await api("VDI.create", vdi_record(sr, other_config={"xorepd-test": "mine"}))
    vm = await api("VM.create", VM_RECORD)
    vbd = await api("VBD.create", vbd_record(vm, vdi))
    await lab.happen(SAVED)
    await api("VM.destroy", vm)
    await api("VDI.destroy", vdi)

    await lab.happen(ROLLBACK)

    async with logged_in(lab) as later:
        assert await later("VBD.get_VDI", vbd) == vdi
        assert await later("VDI.get_other_config", vdi) == {"xorepd-test": "mine"}
        code, _, text, _ = await later.failure("VDI.snapshot", vdi)
        assert code == "SR_BACKEND_FAILURE_46"
        assert text.endswith(f"[opterr=VDI {await later('VDI.get_uuid', vdi)} not found]")
        await scan(later)
        assert await later.failure("VDI.get_record", vdi) == ["HANDLE_INVALID", "VDI", vdi]
        await later("VM.destroy", vm)


async def test_fields_are_as_they_were(lab: Lab, api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    await api("VM.add_to_other_config", vm, "k", "old")
    await lab.happen(SAVED)
    await api("VM.remove_from_other_config", vm, "k")
    await api("VM.add_to_blocked_operations", vm, "start", "no")
    await api("VDI.set_name_label", disk, "renamed")

    await lab.happen(ROLLBACK)

    async with logged_in(lab) as later:
        assert (await later("VM.get_other_config", vm))["k"] == "old"
        assert await later("VM.get_blocked_operations", vm) == {}
        assert await later("VDI.get_name_label", disk) == "db01-data"
        assert await later("VM.get_by_name_label", "db01") == [vm]


async def test_sessions_and_tasks_are_gone(lab: Lab, api: Api) -> None:
    await lab.happen(SAVED)
    old, task = api.ref, await api("task.create", "t", "")

    await lab.happen(ROLLBACK)

    assert not lab.pools["prod"].db.exists("session", old)
    async with logged_in(lab) as later:
        assert await later.failure("task.get_status", task) == ["HANDLE_INVALID", "task", task]


async def test_a_token_of_before_is_of_the_future(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    await lab.happen(SAVED)
    for number in range(200):
        await api("VM.set_name_description", vm, str(number))
    token = (await api("event.from", ["vm"], "", 0.0))["token"]

    await lab.happen(ROLLBACK)

    async with logged_in(lab) as later:
        await later("VM.set_name_description", vm, "unheard")
        assert (await later("event.from", ["vm"], token, 0.2))["events"] == []
        fresh = await later("event.from", ["vm"], "", 0.0)
        assert int(fresh["token"].split(",")[0]) < int(token.split(",")[0])


async def test_a_vm_that_was_started_since_runs_on(lab: Lab, api: Api) -> None:
    started, stopped = await api.vm("db01"), await api.vm("web01")
    disk = await api.disk("db01-data")
    await api("VDI.add_to_other_config", disk, "content_id", "of before")
    await lab.happen(SAVED)
    await api("VM.start", started, False, False)
    await api("VM.hard_shutdown", stopped)
    host = await api("VM.get_resident_on", started)

    await lab.happen(ROLLBACK)

    async with logged_in(lab) as later:
        assert await later("VM.get_power_state", started) == "Running"
        assert await later("VM.get_resident_on", started) == host
        assert await later("VM.get_power_state", stopped) == "Halted"
        for vm, attached in ((started, True), (stopped, False)):
            vbds = await later("VM.get_VBDs", vm)
            assert {await later("VBD.get_currently_attached", vbd) for vbd in vbds} == {attached}
        await lab.guest_write("db01", 0, random=2, seed=1)
        assert await later.failure("VDI.destroy", disk) == ["VDI_IN_USE", disk, "destroy"]
        # It says what the content was when nobody wrote: the one case in which it lies.
        assert (await later("VDI.get_other_config", disk))["content_id"] == "of before"
        await later("VM.hard_shutdown", started)
        assert (await later("VDI.get_other_config", disk))["content_id"] == "of before"


async def test_a_snapshot_that_was_reverted_to_since_leaves_the_vm_without_its_disk(
    lab: Lab, api: Api
) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    point = await api("VM.snapshot", vm, "point")
    await lab.happen(SAVED)
    await api("VM.revert", point)
    vdis = [await api("VBD.get_VDI", vbd) for vbd in await api("VM.get_VBDs", vm)]
    (new,) = [vdi for vdi in vdis if vdi != NULL]
    uuid = await api("VDI.get_uuid", new)

    await lab.happen(ROLLBACK)

    async with logged_in(lab) as later:
        assert disk in [await later("VBD.get_VDI", vbd) for vbd in await later("VM.get_VBDs", vm)]
        await scan(later, "prod-local")
        assert (await later.failure("VDI.get_record", disk))[0] == "HANDLE_INVALID"
        assert await later("VDI.get_name_label", await later("VDI.get_by_uuid", uuid)) == ""


async def test_a_lab_that_ends_after_that_resumes_the_old_database(tmp_path: Path) -> None:
    async with small_lab(tmp_path / "lab", ["session"]) as lab, logged_in(lab) as api:
        vm = await api.vm("db01")
        await lab.happen(SAVED)
        await api("VM.set_name_description", vm, "later")
        await until(lambda: b"later" in (tmp_path / "lab" / "lab.journal").read_bytes())
        await lab.happen(ROLLBACK)

    async with small_lab(tmp_path / "lab") as lab, logged_in(lab) as api:
        assert await api("VM.get_name_description", vm) == "made by the lab"


async def test_a_database_must_have_been_saved(lab: Lab) -> None:
    with pytest.raises(LookupError, match="pool prod has saved no database"):
        await lab.happen(ROLLBACK)


async def test_a_request_may_cause_it(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    lab.faults.add(Fault("rpc", "VM.snapshot", incident=SAVED, moment="before"))
    lab.faults.add(Fault("rpc", "VM.set_name_description", incident=ROLLBACK, moment="after"))
    await api("VM.snapshot", vm, "point")

    with pytest.raises(ConnectionError):
        await api("VM.set_name_description", vm, "x")

    await until(lab.pools["prod"].life.serves)
    async with logged_in(lab) as later:
        assert await later("VM.get_by_name_label", "point") == []
        await scan(later, "prod-local")
