"""VMs: creating, protecting, snapshots and clones, power."""

from typing import Any

import pytest

from tests.lab.labclient import (
    NULL,
    VM_RECORD,
    Api,
    logged_in,
    vbd_record,
    vdi_record,
    vif_record,
)
from tests.lab.vmwatch import tools
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


async def devices(api: Api, vm: str) -> list[dict[str, Any]]:
    refs = await api("VM.get_VBDs", vm)
    return sorted(
        [await api("VBD.get_record", ref) for ref in refs], key=lambda vbd: str(vbd["userdevice"])
    )


async def test_create_ignores_blocked_operations(api: Api) -> None:
    vm = await api("VM.create", {**VM_RECORD, "blocked_operations": {"start": "no"}})

    record = await api("VM.get_record", vm)
    assert record["blocked_operations"] == {}
    assert record["power_state"] == "Halted"
    assert record["domain_type"] == "hvm"
    assert record["has_vendor_device"] is True
    assert record["platform"]["device-model"]
    assert record["other_config"]["mac_seed"]
    assert record["bios_strings"] == {}
    assert await api("VM_metrics.get_uuid", record["metrics"])


async def test_create_names_a_missing_member(api: Api) -> None:
    record = {name: value for name, value in VM_RECORD.items() if name != "platform"}

    code, text = await api.failure("VM.create", record)

    assert code == "INTERNAL_ERROR"
    assert 'Dispatcher_FieldNotFound("platform")' in text


async def test_a_blocked_start_says_why(api: Api) -> None:
    vm = await api.vm("db01")
    await api("VM.set_blocked_operations", vm, {"start": "a replica", "start_on": "a replica"})

    assert await api.failure("VM.start", vm, False, False) == [
        "OPERATION_BLOCKED",
        vm,
        "a replica",
    ]
    assert "start" not in await api("VM.get_allowed_operations", vm)
    await api("VM.remove_from_blocked_operations", vm, "start")
    assert "start" in await api("VM.get_allowed_operations", vm)
    code, text = await api.failure("VM.set_blocked_operations", vm, {"dance": "x"})
    assert code == "INTERNAL_ERROR"
    assert "dance" in text


async def test_checks_come_in_their_order(api: Api) -> None:
    vm = await api.vm("web01")

    assert await api.failure("VM.start", vm, False, False) == [
        "VM_BAD_POWER_STATE",
        vm,
        "halted",
        "running",
    ]
    await api("VM.add_to_blocked_operations", vm, "start", "first")
    assert (await api.failure("VM.start", vm, False, False))[0] == "OPERATION_BLOCKED"
    template = await api("VM.create", {**VM_RECORD, "is_a_template": True})
    assert await api.failure("VM.start", template, False, False) == [
        "VM_IS_TEMPLATE",
        template,
        "start",
    ]
    snapshot = await api("VM.snapshot", vm, "s")
    assert await api.failure("VM.start", snapshot, False, False) == [
        "VM_IS_SNAPSHOT",
        snapshot,
        "start",
    ]


async def test_a_snapshot_takes_over_what_it_should(api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.set_blocked_operations", vm, {"migrate_send": "busy"})
    await api("VM.add_to_other_config", vm, "mine", "yes")
    await api("VM.set_order", vm, "7")
    for name in ("web01-root", "web01-data"):
        await api("VDI.add_to_other_config", await api.disk(name), "marker", name)
    before = await api("VM.get_record", vm)

    snapshot = await api("VM.snapshot", vm, "point")

    source = await api("VM.get_record", vm)
    record = await api("VM.get_record", snapshot)
    assert record["name_label"] == "point"
    assert (record["is_a_snapshot"], record["is_a_template"]) == (True, True)
    assert (record["snapshot_of"], source["snapshots"]) == (vm, [snapshot])
    assert (record["parent"], source["parent"]) == (before["parent"], snapshot)
    assert record["snapshot_info"] == {
        "power-state-at-snapshot": "Running",
        "disk-snapshot-type": "crash_consistent",
    }
    assert before["uuid"] in record["snapshot_metadata"]
    assert record["blocked_operations"] == {}
    assert record["power_state"] == "Halted"
    assert record["order"] == "0"
    assert record["other_config"] == before["other_config"]
    assert record["generation_id"] != before["generation_id"]
    assert record["guest_metrics"] not in (NULL, before["guest_metrics"])
    assert source["blocked_operations"] == {"migrate_send": "busy"}

    (vif,) = [await api("VIF.get_record", ref) for ref in record["VIFs"]]
    (source_vif,) = [await api("VIF.get_record", ref) for ref in source["VIFs"]]
    assert vif["MAC"] == source_vif["MAC"]

    vbds = await devices(api, snapshot)
    assert [vbd["userdevice"] for vbd in vbds] == ["0", "1", "3"]
    assert [vbd["empty"] for vbd in vbds] == [False, False, True]
    assert [vbd["other_config"] for vbd in vbds] == [{"owner": ""}, {"owner": ""}, {}]
    assert not any(vbd["currently_attached"] for vbd in vbds)
    for vbd, source_vbd in zip(vbds[:2], await devices(api, vm), strict=False):
        vdi = await api("VDI.get_record", vbd["VDI"])
        source_vdi = await api("VDI.get_record", source_vbd["VDI"])
        assert vdi["is_a_snapshot"] is True
        assert vdi["snapshot_of"] == source_vbd["VDI"]
        assert source_vdi["snapshots"] == [vbd["VDI"]]
        assert vdi["name_label"] == source_vdi["name_label"]
        assert vdi["other_config"]["marker"] == vdi["name_label"]
        assert (vdi["read_only"], vdi["managed"]) == (False, True)
        assert vdi["location"] == vdi["uuid"]


async def test_disks_can_be_left_out_of_a_snapshot(api: Api) -> None:
    vm, data = await api.vm("web01"), await api.disk("web01-data")

    snapshot = await api("VM.snapshot", vm, "s", [data])

    assert [vbd["userdevice"] for vbd in await devices(api, snapshot)] == ["0", "3"]
    assert await api("VDI.get_snapshots", data) == []


async def test_a_snapshot_that_fails_leaves_no_disks(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    no_space = ("SR_BACKEND_FAILURE_81", "", "Failed to clone VDI [opterr=no space]", "")
    lab.faults.add(Fault("inner", "VDI.snapshot", skip=1, error=no_space))

    failure = await api.failure("VM.snapshot", vm, "s")

    assert failure == list(no_space)
    records = (await api("VDI.get_all_records")).values()
    assert not any(record["is_a_snapshot"] for record in records)
    assert await api("VM.get_snapshots", vm) == []


async def test_shareable_disks_forbid_snapshots(lab: Lab, api: Api) -> None:
    vm, data = await api.vm("web01"), await api.disk("web01-data")
    lab.pools["prod"].db.set("VDI", data, sharable=True)

    assert await api.failure("VM.snapshot", vm, "s") == ["VDI_IS_SHARABLE", data]
    assert await api("VM.snapshot", vm, "s", [data])


async def test_a_clone_is_a_machine_of_its_own(api: Api) -> None:
    vm = await api.vm("db01")
    await api("VM.set_blocked_operations", vm, {"start": "no"})
    before = await api("VM.get_record", vm)

    clone = await api("VM.clone", vm, "copy")

    record = await api("VM.get_record", clone)
    assert (record["is_a_snapshot"], record["is_a_template"]) == (False, False)
    assert (record["snapshot_of"], record["parent"]) == (NULL, NULL)
    assert record["blocked_operations"] == {}
    assert record["other_config"]["mac_seed"] != before["other_config"]["mac_seed"]
    vif = await api("VIF.get_record", record["VIFs"][0])
    assert vif["MAC"] != await api("VIF.get_MAC", before["VIFs"][0])
    assert vif["MAC_autogenerated"] is True
    vdi = await api("VDI.get_record", (await devices(api, clone))[0]["VDI"])
    assert (vdi["is_a_snapshot"], vdi["snapshot_of"]) == (False, NULL)
    assert str(vdi["snapshot_time"]) != "19700101T00:00:00Z"


async def test_a_clone_of_a_snapshot_is_a_template_until_told_otherwise(api: Api) -> None:
    snapshot = await api("VM.snapshot", await api.vm("web01"), "s")

    clone = await api("VM.clone", snapshot, "restored")
    assert await api("VM.get_is_a_template", clone) is True

    await api("VM.set_is_a_template", clone, False)
    await api("VM.start", clone, False, False)
    assert await api("VM.get_power_state", clone) == "Running"


async def test_destroy_leaves_the_disks(api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    vifs = await api("VM.get_VIFs", vm)

    await api("VM.destroy", vm)

    assert (await api.failure("VM.get_uuid", vm))[0] == "HANDLE_INVALID"
    assert (await api.failure("VIF.get_uuid", vifs[0]))[0] == "HANDLE_INVALID"
    assert await api("VDI.get_VBDs", disk) == []


async def test_snapshot_of_dangles_when_the_source_is_gone(api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    snapshot = await api("VM.snapshot", vm, "s")
    (copy,) = await api("VDI.get_snapshots", disk)

    await api("VM.destroy", vm)
    await api("VDI.destroy", disk)

    assert await api("VM.get_snapshot_of", snapshot) == vm
    assert await api("VDI.get_snapshot_of", copy) == disk
    assert (await api.failure("VDI.get_uuid", disk))[0] == "HANDLE_INVALID"


async def test_starting_uses_the_disks_and_stopping_renews_their_fingerprint(api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    await api("VDI.add_to_other_config", disk, "content_id", "old")

    await api("VM.start", vm, False, False)
    assert (
        await api("VM.get_resident_on", vm) == (await api("host.get_by_name_label", "prod-h2"))[0]
    )
    assert "content_id" not in await api("VDI.get_other_config", disk)
    assert [v["currently_attached"] for v in await devices(api, vm)] == [True, True]
    assert (await devices(api, vm))[0]["device"] == "xvda"
    assert (await api.failure("VDI.destroy", disk)) == ["VDI_IN_USE", disk, "destroy"]

    await api("VM.hard_shutdown", vm)
    assert (await api("VDI.get_other_config", disk))["content_id"] not in ("", "old")
    assert await api("VM.get_resident_on", vm) == NULL


async def test_tools_appear_after_the_start_and_allow_a_clean_shutdown(api: Api) -> None:
    vm = await api.vm("db01")
    await api("VM.start", vm, False, False)

    metrics = await tools(api, vm)
    await api("VM.clean_shutdown", vm)

    assert metrics["PV_drivers_detected"] is True
    assert "0/ip" in metrics["networks"]
    assert await api("VM.get_power_state", vm) == "Halted"


async def test_a_vm_starts_only_where_its_storage_is(api: Api) -> None:
    vm = await api.vm("db01")
    (host,) = await api("host.get_by_name_label", "prod-h1")
    (sr,) = await api("SR.get_by_name_label", "prod-local")

    failure = await api.failure("VM.start_on", vm, host, False, False)

    assert failure == ["VM_REQUIRES_SR", vm, sr]


async def test_two_vms_do_not_share_a_disk(api: Api) -> None:
    disk = await api.disk("web01-data")
    vm = await api("VM.create", VM_RECORD)
    await api("VBD.create", vbd_record(vm, disk))

    assert await api.failure("VM.start", vm, False, False) == ["VDI_IN_USE", disk]


async def test_memory_and_processors_are_checked(api: Api) -> None:
    vm = await api.vm("db01")
    gib = 1 << 30

    order = await api.failure("VM.set_memory_limits", vm, *map(str, (2 * gib, gib, gib, gib)))
    await api("VM.set_memory_limits", vm, *map(str, (gib, 4 * gib, 2 * gib, 3 * gib)))
    await api("VM.set_VCPUs_max", vm, "4")
    await api("VM.set_VCPUs_at_startup", vm, "3")

    assert order == ["MEMORY_CONSTRAINT_VIOLATION_ORDER"]
    record = await api("VM.get_record", vm)
    assert record["memory_dynamic_max"] == str(3 * gib)
    assert (record["VCPUs_max"], record["VCPUs_at_startup"]) == ("4", "3")


async def test_bios_strings_are_set_once(api: Api) -> None:
    vm = await api("VM.create", VM_RECORD)

    unknown = await api.failure("VM.set_bios_strings", vm, {"bios-taste": "x"})
    await api("VM.set_bios_strings", vm, {"bios-vendor": "Acme"})
    again = await api.failure("VM.set_bios_strings", vm, {"bios-vendor": "Acme"})

    assert unknown[0] == "INVALID_VALUE"
    assert (await api("VM.get_bios_strings", vm))["bios-vendor"] == "Acme"
    assert again == ["VM_BIOS_STRINGS_ALREADY_SET"]


async def test_nvram_changes_on_halted_machines_only(api: Api) -> None:
    await api("VM.set_NVRAM", await api.vm("db01"), {"EFI-variables": "AAAA"})
    running = await api.vm("web01")

    assert (await api.failure("VM.add_to_NVRAM", running, "k", "v"))[0] == "VM_BAD_POWER_STATE"


async def test_devices_are_checked_when_they_are_made(api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    (sr,) = await api("SR.get_by_name_label", "prod-local")
    locked = await api("VDI.create", vdi_record(sr, read_only=True))

    async def vbd(vdi: str = disk, **fields: Any) -> list[str]:
        return await api.failure("VBD.create", vbd_record(vm, vdi, **fields))

    assert await vbd(userdevice="0") == ["DEVICE_ALREADY_EXISTS", "0"]
    assert await vbd(userdevice="xvda") == ["DEVICE_ALREADY_EXISTS", "xvda"]
    assert await vbd(userdevice="disk") == ["INVALID_DEVICE", "disk"]
    assert await vbd(type="CD") == ["VBD_CDS_MUST_BE_READONLY"]
    assert await vbd(empty=True) == ["VBD_NOT_REMOVABLE_MEDIA", "in constructor"]
    assert await vbd(locked) == ["VDI_READONLY", locked]

    network = (await api("network.get_all"))[0]
    assert await api.failure("VIF.create", vif_record(vm, network, device="0")) == [
        "DEVICE_ALREADY_EXISTS",
        "0",
    ]
    assert await api.failure("VIF.create", vif_record(vm, network, MAC="02:aa")) == [
        "MAC_INVALID",
        "02:aa",
    ]
    vif = await api("VIF.get_record", await api("VIF.create", vif_record(vm, network)))
    assert vif["MAC_autogenerated"] is True
    assert vif["MAC"].count(":") == 5


async def test_an_attached_vbd_is_not_destroyed(api: Api) -> None:
    vm = await api.vm("web01")
    (vbd, *_) = await api("VM.get_VBDs", vm)

    code, text = await api.failure("VBD.destroy", vbd)

    assert code == "OPERATION_NOT_ALLOWED"
    assert "still attached to" in text


async def test_the_other_pool_has_its_own_objects(lab: Lab) -> None:
    async with logged_in(lab, "dr") as api:
        assert await api("VM.get_by_name_label", "web01") == []
        assert sorted(r["name_label"] for r in (await api("SR.get_all_records")).values()) == [
            "dr-storage"
        ]
