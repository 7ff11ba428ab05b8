"""Snapshots, checkpoints, clones, copies, reverts and what templates become."""

from typing import Any

import pytest

from tests.lab.labclient import NULL, VM_RECORD, Api
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab
from xorepd_lab.model.datamodel import CLASSES
from xorepd_lab.wire.snapshot_text import dump_record, load_record

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab
NO_SPACE = ("SR_BACKEND_FAILURE_44", "", "There is insufficient space", "")


async def disks(api: Api, vm: str) -> dict[str, dict[str, Any]]:
    """Return the VDIs of a VM's disks by their position."""
    vbds = [await api("VBD.get_record", ref) for ref in await api("VM.get_VBDs", vm)]
    return {
        vbd["userdevice"]: {"ref": vbd["VDI"], **await api("VDI.get_record", vbd["VDI"])}
        for vbd in vbds
        if vbd["type"] == "Disk"
    }


async def all_vdis(api: Api) -> set[str]:
    return {ref for ref, record in (await api("VDI.get_all_records")).items() if record["managed"]}


# -- snapshots and checkpoints --------------------------------------------------------------------


async def test_a_snapshot_says_that_it_was_taken(api: Api) -> None:
    vm = await api.vm("db01")

    await api("VM.snapshot", vm, "point")

    (message,) = (await api("message.get_all_records")).values()
    assert message["name"] == "VM_SNAPSHOTTED"
    assert message["obj_uuid"] == await api("VM.get_uuid", vm)
    assert message["body"].endswith("snapshotted, snapshot name: point")


async def test_a_snapshot_is_cancelled_between_two_disks(lab: Lab, api: Api) -> None:
    vm, before = await api.vm("web01"), await all_vdis(api)
    fault = lab.faults.add(Fault("inner", "VDI.snapshot", stall=True))
    task = await api("Async.VM.snapshot", vm, "s")
    await fault.stalled.wait()
    await api("task.cancel", task)

    fault.release()

    assert (await api.finished(task))["status"] == "cancelled"
    assert await all_vdis(api) == before
    assert await api("VM.get_snapshots", vm) == []


async def test_a_checkpoint_holds_the_memory_and_the_vm_runs_on(api: Api) -> None:
    vm = await api.vm("web01")
    home = await api("VM.get_resident_on", vm)

    checkpoint = await api("VM.checkpoint", vm, "moment")

    source, record = await api("VM.get_record", vm), await api("VM.get_record", checkpoint)
    assert (source["power_state"], source["resident_on"]) == ("Running", home)
    assert source["suspend_VDI"] == NULL
    assert record["power_state"] == "Suspended"
    assert (record["is_a_snapshot"], record["snapshot_of"]) == (True, vm)
    assert record["snapshot_info"]["power-state-at-snapshot"] == "Running"
    image = await api("VDI.get_record", record["suspend_VDI"])
    assert (image["type"], image["is_a_snapshot"]) == ("suspend", True)
    vbds = [await api("VBD.get_record", vbd) for vbd in record["VBDs"]]
    assert all(vbd["currently_attached"] for vbd in vbds)
    assert (vbds[0]["device"], await api("VM.get_parent", vm)) == ("xvda", checkpoint)


async def test_a_halted_vm_has_no_memory_to_keep(api: Api) -> None:
    vm = await api.vm("db01")

    assert await api.failure("VM.checkpoint", vm, "s") == [
        "VM_BAD_POWER_STATE",
        vm,
        "paused, suspended, running",
        "halted",
    ]
    assert await api.failure("VM.snapshot_with_quiesce", vm, "s") == ["MESSAGE_REMOVED"]


async def test_a_checkpoint_that_fails_lets_the_vm_run_on(lab: Lab, api: Api) -> None:
    vm, before = await api.vm("web01"), await all_vdis(api)
    lab.faults.add(Fault("inner", "VDI.snapshot", skip=1, error=NO_SPACE))

    assert await api.failure("VM.checkpoint", vm, "s") == list(NO_SPACE)

    assert await api("VM.get_power_state", vm) == "Running"
    assert await all_vdis(api) == before
    assert await api("VM.get_snapshots", vm) == []


async def test_no_room_for_the_memory_means_no_suspend(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    lab.faults.add(Fault("inner", "VDI.create", error=NO_SPACE))

    assert await api.failure("VM.suspend", vm) == ["SR_SUSPEND_SPACE_INSUFFICIENT", sr]
    assert await api("VM.get_power_state", vm) == "Running"


# -- clones and copies ----------------------------------------------------------------------------


async def test_a_clone_of_a_checkpoint_comes_without_its_memory(api: Api) -> None:
    checkpoint = await api("VM.checkpoint", await api.vm("web01"), "moment")

    clone = await api("VM.clone", checkpoint, "again")

    record = await api("VM.get_record", clone)
    assert (record["power_state"], record["suspend_VDI"]) == ("Halted", NULL)
    assert record["is_a_template"] is True
    assert record["other_config"]["base_template_name"] == "moment"
    images = await api("VDI.get_by_name_label", "Suspend image")
    assert images == [await api("VM.get_suspend_VDI", checkpoint)]
    await api("VM.set_is_a_template", clone, False)
    await api("VM.start", clone, False, False)


async def test_a_suspended_vm_is_cloned_only_where_the_pool_allows_it(api: Api) -> None:
    vm, pool = await api.vm("web01"), (await api("pool.get_all"))[0]
    await api("VM.suspend", vm)

    assert await api.failure("VM.clone", vm, "no") == [
        "VM_BAD_POWER_STATE",
        vm,
        "halted",
        "suspended",
    ]
    await api("pool.add_to_other_config", pool, "allow_clone_suspended_vm", "true")
    clone = await api("VM.clone", vm, "yes")
    record = await api("VM.get_record", clone)
    assert record["power_state"] == "Suspended"
    assert record["suspend_VDI"] not in (NULL, await api("VM.get_suspend_VDI", vm))


async def test_a_copy_has_disks_of_its_own_on_the_sr_it_is_told(api: Api) -> None:
    vm = await api.vm("db01")
    (sr,) = await api("SR.get_by_name_label", "prod-shared")

    copy = await api("VM.copy", vm, "far away", sr)

    (disk,) = (await disks(api, copy)).values()
    assert disk["SR"] == sr
    assert "vhd-parent" not in disk["sm_config"]
    near = await api("VM.copy", vm, "near", NULL)
    (disk,) = (await disks(api, near)).values()
    assert disk["SR"] == (await disks(api, vm))["0"]["SR"]
    seeds = [await api("VM.get_other_config", ref) for ref in (vm, copy, near)]
    assert len({config["mac_seed"] for config in seeds}) == 3


async def test_a_copy_ends_when_it_is_cancelled(lab: Lab, api: Api) -> None:
    vm, before = await api.vm("db01"), await all_vdis(api)
    fault = lab.faults.add(Fault("inner", "VDI.copy", stall=True))
    task = await api("Async.VM.copy", vm, "never", NULL)
    await fault.stalled.wait()

    await api("task.cancel", task)
    (part,) = await api("task.get_subtasks", task)
    while not await api("task.get_current_operations", part):
        pass
    fault.release()

    assert (await api.finished(task))["status"] == "cancelled"
    assert await all_vdis(api) == before
    assert await api("VM.get_by_name_label", "never") == []


async def test_a_copy_that_fails_midway_leaves_nothing(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.hard_shutdown", vm)
    before = await all_vdis(api)
    lab.faults.add(Fault("inner", "VDI.clone", skip=1, error=NO_SPACE))

    assert await api.failure("VM.clone", vm, "never") == list(NO_SPACE)

    assert await all_vdis(api) == before
    assert await api("VM.get_by_name_label", "never") == []


async def test_long_copies_of_one_vm_run_side_by_side(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    fault = lab.faults.add(Fault("inner", "VDI.clone", stall=True))
    slow = await api("Async.VM.clone", vm, "slow")
    await fault.stalled.wait()

    assert set(await api("VM.get_allowed_operations", vm)) == {"clone", "copy", "export"}
    quick = await api("VM.clone", vm, "quick")
    fault.release()

    assert (await api.finished(slow))["status"] == "success"
    assert await api("VM.get_name_label", quick) == "quick"


# -- revert ---------------------------------------------------------------------------------------


async def test_a_revert_brings_back_the_contents_and_the_record(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.set_blocked_operations", vm, {"destroy": "never"})
    await lab.guest_write("web01", 0, files={"/etc/motd": b"before"})
    snapshot = await api("VM.snapshot", vm, "point")
    old = await disks(api, vm)
    await lab.guest_write("web01", 0, files={"/etc/motd": b"after"})
    await api("VM.set_name_label", vm, "renamed")
    await api("VM.add_tags", vm, "kept")
    await api("VM.set_blocked_operations", vm, {})
    generation = await api("VM.get_generation_id", vm)

    await api("VM.revert", snapshot)

    record, new = await api("VM.get_record", vm), await disks(api, vm)
    assert (record["name_label"], record["tags"]) == ("web01", ["kept"])
    assert record["blocked_operations"] == {"destroy": "never"}
    assert (record["power_state"], record["is_a_template"]) == ("Halted", False)
    assert (record["is_a_snapshot"], record["parent"]) == (False, snapshot)
    assert record["generation_id"] != generation
    assert await lab.guest_read("web01", 0, "/etc/motd") == b"before"
    for position, disk in new.items():
        assert disk["uuid"] != old[position]["uuid"]
        assert (disk["is_a_snapshot"], disk["cbt_enabled"]) == (False, False)
        (taken,) = [d for p, d in (await disks(api, snapshot)).items() if p == position]
        assert taken["snapshot_of"] == disk["ref"]
    assert not {disk["ref"] for disk in old.values()} & await all_vdis(api)
    await api("VM.start", vm, False, False)


async def test_a_revert_to_a_checkpoint_ends_suspended(api: Api) -> None:
    vm = await api.vm("web01")
    checkpoint = await api("VM.checkpoint", vm, "moment")

    await api("VM.revert", checkpoint)

    record = await api("VM.get_record", vm)
    assert record["power_state"] == "Suspended"
    assert record["suspend_VDI"] not in (NULL, await api("VM.get_suspend_VDI", checkpoint))
    await api("VM.resume", vm, False, False)
    assert await api("VM.get_power_state", vm) == "Running"
    await api("VM.revert", checkpoint)  # a second time


async def test_a_disk_that_the_snapshot_does_not_know_is_left_alone(api: Api) -> None:
    vm, data = await api.vm("web01"), await api.disk("web01-data")
    snapshot = await api("VM.snapshot", vm, "s", [data])

    await api("VM.revert", snapshot)

    assert set(await disks(api, vm)) == {"0"}
    assert await api("VDI.get_VBDs", data) == []


async def test_a_revert_remakes_a_vm_that_is_gone(api: Api) -> None:
    vm = await api.vm("db01")
    uuid, mac = await api("VM.get_uuid", vm), await mac_of(api, vm)
    snapshot = await api("VM.snapshot", vm, "last")
    disk = (await disks(api, vm))["0"]["ref"]
    await api("VM.destroy", vm)
    await api("VDI.destroy", disk)

    await api("VM.revert", snapshot)

    again = await api("VM.get_by_uuid", uuid)
    record = await api("VM.get_record", again)
    assert (record["name_label"], record["is_a_template"]) == ("db01", False)
    assert (record["snapshots"], await mac_of(api, again)) == ([snapshot], mac)
    await api("VM.start", again, False, False)


async def mac_of(api: Api, vm: str) -> str:
    (vif,) = await api("VM.get_VIFs", vm)
    return str(await api("VIF.get_MAC", vif))


async def test_a_revert_that_fails_leaves_the_vm_halted_and_without_disks(
    lab: Lab, api: Api
) -> None:
    vm = await api.vm("web01")
    snapshot = await api("VM.snapshot", vm, "s")
    kept = {disk["ref"] for disk in (await disks(api, snapshot)).values()}
    lab.faults.add(Fault("inner", "VDI.clone", skip=1, error=("VDI_COPY_FAILED",)))

    assert await api.failure("VM.revert", snapshot) == ["VM_REVERT_FAILED", snapshot, vm]

    assert await api("VM.get_power_state", vm) == "Halted"
    assert await disks(api, vm) == {}
    assert kept <= await all_vdis(api)
    await api("VM.revert", snapshot)
    assert set(await disks(api, vm)) == {"0", "1"}
    lab.faults.add(Fault("inner", "VDI.clone", error=NO_SPACE))
    assert await api.failure("VM.revert", snapshot) == list(NO_SPACE)


async def test_only_snapshots_can_be_reverted_to(api: Api) -> None:
    vm = await api.vm("db01")

    assert await api.failure("VM.revert", vm) == ["VM_REVERT_FAILED", vm, NULL]
    snapshot = await api("VM.snapshot", vm, "s")
    await api("VM.add_to_blocked_operations", vm, "reverting", "not now")
    assert await api.failure("VM.revert", snapshot) == ["OPERATION_BLOCKED", vm, "not now"]


def test_the_text_of_a_record_can_be_read_back() -> None:
    spec = CLASSES["VM"]
    record = spec.blank() | {
        "name_label": "it's \\ (odd) 'é'",
        "tags": ["a b", "c'd", "\\"],
        "other_config": {"k'": "v\\'", "": ""},
        "blocked_operations": {"start": "no"},
        "order": -3,
        "HVM_shadow_multiplier": 1.5,
        "is_a_template": True,
    }

    text = dump_record(record)
    read = load_record(text, spec)

    assert "('name__label' 'it\\'s" in text
    assert read == {name: record[name] for name in read}
    assert set(record) - set(read) == {
        "snapshot_metadata",
        "allowed_operations",
        "current_operations",
    }


# -- templates ------------------------------------------------------------------------------------


async def test_a_pool_has_the_templates_that_clients_look_for(api: Api) -> None:
    records = [
        record
        for record in (await api("VM.get_all_records")).values()
        if record["is_default_template"]
    ]

    assert {"Debian Bookworm 12", "Other install media"} <= {r["name_label"] for r in records}
    for record in records:
        assert record["is_a_template"] is True
        assert record["other_config"]["default_template"] == "true"
        assert "<restrictions>" in record["recommendations"]
        assert record["reference_label"]


async def test_a_vm_is_made_of_a_template(api: Api) -> None:
    (template,) = await api("VM.get_by_name_label", "Debian Bookworm 12")
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    vm = await api("VM.clone", template, "new")
    wanted = (await api("VM.get_other_config", vm))["disks"]
    uuid = await api("SR.get_uuid", sr)
    await api("VM.remove_from_other_config", vm, "disks")
    await api("VM.add_to_other_config", vm, "disks", wanted.replace('sr=""', f'sr="{uuid}"'))

    await api("VM.provision", vm)

    record = await api("VM.get_record", vm)
    assert (record["is_a_template"], record["is_default_template"]) == (False, False)
    assert "disks" not in record["other_config"]
    assert "default_template" not in record["other_config"]
    assert record["other_config"]["base_template_name"] == "Debian Bookworm 12"
    metrics = await api("VM_metrics.get_record", record["metrics"])
    assert str(metrics["install_time"]) > "20200101"
    disk = (await disks(api, vm))["0"]
    assert (disk["SR"], disk["type"], disk["name_label"]) == (sr, "system", "0")
    assert disk["virtual_size"] == str(10 << 30)
    (vbd,) = [await api("VBD.get_record", ref) for ref in record["VBDs"]]
    assert (vbd["bootable"], vbd["other_config"]) == (True, {"owner": ""})
    await api("VM.start", vm, False, False)


async def test_what_a_template_asks_for_in_vain_leaves_nothing(api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    good = f'<disk device="0" size="4194304" sr="{await api("SR.get_uuid", sr)}" bootable="true"/>'
    bad = '<disk device="1" size="4194304" sr="nowhere" bootable="false"/>'
    before = await all_vdis(api)

    async def provision(text: str) -> list[str]:
        vm = await api("VM.create", {**VM_RECORD, "is_a_template": True})
        await api("VM.add_to_other_config", vm, "disks", text)
        return await api.failure("VM.provision", vm)

    assert await provision(f"<provision>{good}{bad}</provision>") == [
        "UUID_INVALID",
        "sr",
        "nowhere",
    ]
    for text in ("", "<provision", "<disks/>", "<provision><disk/></provision>"):
        assert (await provision(text))[0] == "INTERNAL_ERROR"
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><provision>&b;</provision>'
    assert (await provision(bomb))[0] == "INTERNAL_ERROR"
    assert await all_vdis(api) == before


async def test_a_vm_becomes_a_template_and_a_vm_again(api: Api) -> None:
    vm = await api.vm("db01")

    await api("VM.set_is_a_template", vm, True)
    record = await api("VM.get_record", vm)
    assert (record["is_a_template"], record["metrics"]) == (True, NULL)
    await api("VM.set_is_default_template", vm, True)
    assert (await api("VM.get_other_config", vm))["default_template"] == "true"
    assert await api.failure("VM.destroy", vm) == ["VM_IS_TEMPLATE", vm, "destroy"]
    await api("VM.set_is_default_template", vm, False)
    await api("VM.set_is_a_template", vm, False)
    await api("VM.start", vm, False, False)
    assert await api("VM.get_power_state", vm) == "Running"
    assert await api.failure("VM.set_is_a_template", vm, True) == [
        "VM_BAD_POWER_STATE",
        vm,
        "halted",
        "running",
    ]
