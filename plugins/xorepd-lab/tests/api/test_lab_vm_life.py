"""VMs: power, what a guest answers, where a VM can run, what is allowed when."""

from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import (
    NULL,
    VM_RECORD,
    Api,
    logged_in,
    small_lab,
    vbd_record,
    vif_record,
)
from tests.lab.vmwatch import begun, free_memory, host, messages, tools, until
from xorepd_lab.faults.faults import Fault
from xorepd_lab.guests.agent import drop_report
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab
GIB = 1 << 30


# -- starting and stopping ------------------------------------------------------------------------


async def test_a_running_vm_has_a_domain_a_console_and_memory_of_its_host(api: Api) -> None:
    vm = await api.vm("db01")
    before = await free_memory(api, "prod-h2")

    await api("VM.start", vm, False, False)

    record = await api("VM.get_record", vm)
    assert record["power_state"] == "Running"
    assert int(record["domid"]) > 0
    assert record["resident_on"] == await host(api, "prod-h2")
    assert record["scheduled_to_be_resident_on"] == NULL
    assert record["bios_strings"]["system-product-name"] == "HVM domU"
    (console,) = [await api("console.get_record", ref) for ref in record["consoles"]]
    assert (console["protocol"], console["VM"]) == ("rfb", vm)
    assert console["location"].endswith(f"/console?uuid={console['uuid']}")
    used = int(record["memory_dynamic_min"]) + int(record["memory_overhead"])
    assert await free_memory(api, "prod-h2") == before - used
    metrics = await api("VM_metrics.get_record", record["metrics"])
    assert (metrics["current_domain_type"], metrics["hvm"]) == ("hvm", True)
    assert str(metrics["start_time"]) > "20200101"

    await api("VM.hard_shutdown", vm)

    record = await api("VM.get_record", vm)
    assert (record["domid"], record["consoles"], record["resident_on"]) == ("-1", [], NULL)
    assert await free_memory(api, "prod-h2") == before
    assert await messages(api, vm) == ["VM_STARTED", "VM_SHUTDOWN"]


async def test_a_guest_reports_its_addresses_by_all_their_keys(api: Api) -> None:
    vm = await api.vm("db01")
    await api("VM.start", vm, False, False)

    said = await tools(api, vm)

    assert said["networks"]["0/ip"] == said["networks"]["0/ipv4/0"]
    assert said["networks"]["0/ipv6/0"].startswith("fe80::")
    assert said["os_version"]["distro"] == "debian"
    assert said["other"]["feature-shutdown"] == "1"
    assert said["PV_drivers_detected"] is True


async def test_a_guest_without_tools_lacks_what_a_clean_shutdown_needs(api: Api) -> None:
    vm = await api.vm("db01")
    await api("VM.add_to_other_config", vm, "lab:guest", "no-tools")
    await api("VM.start", vm, False, False)

    assert await api.failure("VM.clean_shutdown", vm) == ["VM_LACKS_FEATURE", vm]
    assert await api.failure("VM.suspend", vm) == ["VM_LACKS_FEATURE", vm]
    assert "clean_shutdown" not in await api("VM.get_allowed_operations", vm)
    await api("VM.shutdown", vm)
    assert await api("VM.get_power_state", vm) == "Halted"


async def test_a_guest_that_does_not_answer_is_given_up(api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.add_to_other_config", vm, "lab:guest", "deaf")

    assert await api.failure("VM.clean_shutdown", vm) == ["VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", vm]
    assert await api.failure("VM.suspend", vm) == ["VM_FAILED_SUSPEND_ACKNOWLEDGMENT", vm]
    assert await api("VM.get_suspend_VDI", vm) == NULL
    assert await api("VDI.get_by_name_label", "Suspend image") == []
    assert await api("VM.get_power_state", vm) == "Running"


async def test_a_guest_that_hangs_is_given_up_later_and_shutdown_pulls_the_plug(api: Api) -> None:
    vm = await api.vm("web01")
    api.pool.clock.scale = 0.0001
    await api("VM.add_to_other_config", vm, "lab:guest", "stuck")

    assert await api.failure("VM.clean_shutdown", vm) == ["VM_SHUTDOWN_TIMEOUT", vm, "1200."]
    await api("VM.set_shutdown_delay", vm, "3")
    await api("VM.shutdown", vm)
    assert await api("VM.get_power_state", vm) == "Halted"


async def test_a_hard_shutdown_cancels_a_clean_one(api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.add_to_other_config", vm, "lab:guest", "stuck")
    clean = await api("Async.VM.clean_shutdown", vm)
    await until(api, "VM.get_current_operations", vm, {clean: "clean_shutdown"})
    assert set(await api("VM.get_allowed_operations", vm)) == {"hard_shutdown", "hard_reboot"}

    await api("VM.hard_shutdown", vm)

    assert (await api.finished(clean))["status"] == "cancelled"
    assert await api("VM.get_power_state", vm) == "Halted"
    assert await api("VM.get_current_operations", vm) == {}


async def test_a_reboot_makes_a_new_domain_on_the_same_host(api: Api) -> None:
    vm = await api.vm("web01")
    before = await api("VM.get_record", vm)

    await api("VM.clean_reboot", vm)

    after = await api("VM.get_record", vm)
    assert (after["power_state"], after["resident_on"]) == ("Running", before["resident_on"])
    assert after["domid"] != before["domid"]
    assert after["guest_metrics"] not in (NULL, before["guest_metrics"])
    await until(api, "VM_guest_metrics.get_PV_drivers_detected", after["guest_metrics"], True)
    await api("VM.hard_reboot", vm)
    assert (await messages(api, vm))[-2:] == ["VM_REBOOTED", "VM_REBOOTED"]


async def report(api: Api, vm: str) -> dict[str, Any]:
    """Return what the guest has said up to now."""
    metrics = await api("VM.get_guest_metrics", vm)
    return dict(await api("VM_guest_metrics.get_record", metrics))


async def test_a_new_domain_has_a_report_that_says_nothing_at_once(api: Api) -> None:
    vm = await api.vm("db01")
    await api("VM.start", vm, False, False)
    first = await api("VM.get_guest_metrics", vm)
    await tools(api, vm)
    await api("VM.add_to_other_config", vm, "lab:guest", "no-tools")

    for again in ("VM.hard_reboot", "VM.start"):
        if again == "VM.start":
            await api("VM.hard_shutdown", vm)
        await api(again, vm, *([False, False] if again == "VM.start" else []))

        said = await report(api, vm)

        assert await api("VM.get_guest_metrics", vm) not in (NULL, first)
        empty = ("os_version", "PV_drivers_version", "networks", "other", "memory", "disks")
        assert all(said[name] == {} for name in empty)
        assert (said["PV_drivers_detected"], said["PV_drivers_up_to_date"]) == (False, False)
        assert {said["can_use_hotplug_vbd"], said["can_use_hotplug_vif"]} == {"unspecified"}
        assert said["live"] is True
        assert str(said["last_updated"]) > "20200101"


async def test_a_vm_can_be_started_paused(api: Api) -> None:
    vm = await api.vm("db01")

    await api("VM.start", vm, True, False)
    assert await api("VM.get_power_state", vm) == "Paused"
    assert (await report(api, vm))["PV_drivers_detected"] is False
    await api("VM.unpause", vm)
    await tools(api, vm)
    await api("VM.pause", vm)

    assert await api.failure("VM.clean_shutdown", vm) == [
        "VM_BAD_POWER_STATE",
        vm,
        "running",
        "paused",
    ]
    assert set(await api("VM.get_allowed_operations", vm)) >= {"unpause", "hard_shutdown"}


async def test_a_start_can_be_cancelled_and_leaves_nothing_behind(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    task = await begun(api, vm, "start", False, False)

    await api("task.cancel", task)

    assert (await api.finished(task))["status"] == "cancelled"
    record = await api("VM.get_record", vm)
    assert (record["power_state"], record["scheduled_to_be_resident_on"]) == ("Halted", NULL)
    vbds = [await api("VBD.get_record", vbd) for vbd in record["VBDs"]]
    assert not any(vbd["currently_attached"] or vbd["current_operations"] for vbd in vbds)


async def test_the_power_state_of_a_living_vm_is_not_reset(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    here, there = await host(api, "prod-h1"), await host(api, "prod-h2")

    assert await api.failure("VM.power_state_reset", vm) == ["DOMAIN_EXISTS", vm]
    await api("VM.pool_migrate", vm, there, {})
    assert await api.failure("VM.power_state_reset", vm) == ["HOST_IS_LIVE", there]
    lab.pools["prod"].db.set("host_metrics", await api("host.get_metrics", there), live=False)
    await api("VM.power_state_reset", vm)

    record = await api("VM.get_record", vm)
    assert (record["power_state"], record["resident_on"]) == ("Halted", NULL)
    await api("VM.start_on", vm, here, False, False)


async def test_a_checkpoint_keeps_its_place_on_the_host(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    free = await free_memory(api, "prod-h1")
    fault = lab.faults.add(Fault("inner", "VDI.snapshot", stall=True))
    task = await api("Async.VM.checkpoint", vm, "s")
    await fault.stalled.wait()

    assert await api("VM.get_power_state", vm) == "Suspended"
    assert await api("VM.get_resident_on", vm) == await host(api, "prod-h1")
    assert await free_memory(api, "prod-h1") == free
    fault.release()

    assert (await api.finished(task))["status"] == "success"
    assert len(await api("VM.get_consoles", vm)) == 1


async def test_guests_go_on_booting_when_the_lab_comes_back(tmp_path: Path) -> None:
    async with small_lab(tmp_path / "lab") as lab, logged_in(lab) as api:
        vm = await api.vm("db01")
        await api("VM.start", vm, False, False)
        await tools(api, vm)
        drop_report(lab.pools["prod"].db, vm)

    async with small_lab(tmp_path / "lab") as lab, logged_in(lab) as api:
        assert (await tools(api, vm))["PV_drivers_detected"] is True


# -- suspending -----------------------------------------------------------------------------------


async def test_a_suspended_vm_keeps_its_devices_and_its_memory_on_disk(api: Api) -> None:
    vm, disk = await api.vm("web01"), await api.disk("web01-root")
    tag = "content_id"

    await api("VM.suspend", vm)

    record = await api("VM.get_record", vm)
    assert record["power_state"] == "Suspended"
    assert (record["resident_on"], record["domid"], record["consoles"]) == (NULL, "-1", [])
    image = await api("VDI.get_record", record["suspend_VDI"])
    assert (image["type"], image["name_label"]) == ("suspend", "Suspend image")
    assert int(image["virtual_size"]) >= 1.26 * int(record["memory_static_max"])
    vbds = [await api("VBD.get_record", vbd) for vbd in record["VBDs"]]
    assert all(vbd["currently_attached"] for vbd in vbds)
    assert tag in await api("VDI.get_other_config", disk)
    assert set(await api("VM.get_allowed_operations", vm)) >= {"resume", "resume_on", "destroy"}

    await api("VM.resume", vm, False, False)

    after = await api("VM.get_record", vm)
    assert (after["power_state"], after["suspend_VDI"]) == ("Running", NULL)
    assert after["guest_metrics"] == record["guest_metrics"]
    assert await api("VDI.get_by_name_label", "Suspend image") == []
    assert tag not in await api("VDI.get_other_config", disk)
    assert (await messages(api, vm))[-2:] == ["VM_SUSPENDED", "VM_RESUMED"]


async def test_the_memory_goes_to_the_first_sr_that_is_wished_for(api: Api) -> None:
    vm = await api.vm("web01")
    pool = (await api("pool.get_all"))[0]
    (shared,) = await api("SR.get_by_name_label", "prod-shared")
    (local,) = await api("SR.get_by_name_label", "prod-local")
    await api("VM.set_suspend_SR", vm, local)  # not seen where the VM runs

    await api("VM.suspend", vm)
    assert await api("VDI.get_SR", await api("VM.get_suspend_VDI", vm)) == shared
    await api("VM.resume_on", vm, await host(api, "prod-h1"), False, False)
    await api("pool.set_suspend_image_SR", pool, NULL)

    assert await api.failure("VM.suspend", vm) == ["VM_NO_SUSPEND_SR", vm]


async def test_a_vm_is_resumed_from_what_was_its_memory_and_from_nothing_else(api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.suspend", vm)
    record = await api("VM.get_record", vm)
    assert record["last_booted_record"] != ""
    assert record["last_boot_CPU_flags"]["vendor"] == "GenuineIntel"
    image = await api("VDI.get_record", record["suspend_VDI"])
    kept = ("SR", "virtual_size", "type", "sharable", "read_only", "other_config")
    empty = await api("VDI.create", {field: image[field] for field in kept})
    wanted = {
        **record,
        "name_label": "another",
        "affinity": NULL,
        "is_a_template": False,
        "suspend_VDI": empty,
    }
    other = await api("VM.create", wanted)

    code, text = await api.failure("VM.resume", other, False, False)

    assert (code, "no saved domain" in text) == ("INTERNAL_ERROR", True)
    assert await api("VM.get_power_state", other) == "Suspended"
    await api("VM.hard_shutdown", other)
    await api("VM.destroy", other)


async def test_a_hard_shutdown_drops_the_memory_of_a_suspended_vm(api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.suspend", vm)

    await api("VM.hard_shutdown", vm)

    assert await api("VM.get_power_state", vm) == "Halted"
    assert await api("VDI.get_by_name_label", "Suspend image") == []
    await api("VM.start", vm, False, False)


async def test_a_vm_whose_memory_is_lost_ends_halted(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    await api("VM.suspend", vm)
    image = await api("VM.get_suspend_VDI", vm)
    lab.pools["prod"].db.set("VM", vm, suspend_VDI=NULL)

    assert await api.failure("VM.resume", vm, False, False) == ["VM_HAS_NO_SUSPEND_VDI", "VM", vm]
    assert await api("VM.get_power_state", vm) == "Halted"
    await api("VDI.destroy", image)


# -- where ----------------------------------------------------------------------------------------


async def test_a_vm_migrates_to_a_host_that_sees_its_disks(api: Api) -> None:
    vm = await api.vm("web01")
    there = await host(api, "prod-h2")
    before, free = await api("VM.get_record", vm), await free_memory(api, "prod-h1")

    await api("VM.pool_migrate", vm, there, {"live": "true"})

    record = await api("VM.get_record", vm)
    assert (record["power_state"], record["resident_on"]) == ("Running", there)
    assert record["consoles"] != before["consoles"]
    assert record["guest_metrics"] == before["guest_metrics"]
    assert await free_memory(api, "prod-h1") > free
    assert (await messages(api, vm))[-1] == "VM_MIGRATED"


async def test_a_vm_does_not_migrate_where_its_disk_is_not(api: Api) -> None:
    vm = await api.vm("db01")
    (sr,) = await api("SR.get_by_name_label", "prod-local")
    await api("VM.start", vm, False, False)
    await tools(api, vm)

    failure = await api.failure("VM.pool_migrate", vm, await host(api, "prod-h1"), {})

    assert failure == ["VM_REQUIRES_SR", vm, sr]


async def test_a_migration_can_be_cancelled(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    here, there = await host(api, "prod-h1"), await host(api, "prod-h2")
    task = await begun(api, vm, "pool_migrate", there, {})
    code, *_ = await api.failure("VBD.create", vbd_record(vm, await api.disk("db01-data")))

    await api("task.cancel", task)

    assert code == "OTHER_OPERATION_IN_PROGRESS"
    assert (await api.finished(task))["status"] == "cancelled"
    assert await api("VM.get_resident_on", vm) == here
    assert await api("VM.get_scheduled_to_be_resident_on", vm) == NULL


@pytest.mark.parametrize("operation", ["start", "pool_migrate"])
async def test_a_host_that_dies_meanwhile_gets_no_vm(lab: Lab, api: Api, operation: str) -> None:
    there, db = await host(api, "prod-h2"), lab.pools["prod"].db
    vm = await api.vm("db01" if operation == "start" else "web01")
    before = await api("VM.get_record", vm)
    api.pool.clock.scale = 0.2
    arguments = (False, False) if operation == "start" else (there, {})
    task = await api(f"Async.VM.{operation}", vm, *arguments)
    while db.get("VM", vm, "scheduled_to_be_resident_on") != there:
        await db.changed()
    db.set("host_metrics", db.get("host", there, "metrics"), live=False)

    end = await api.finished(task)

    assert end["error_info"] in (["HOST_OFFLINE", there], ["HOST_NOT_LIVE"])
    after = await api("VM.get_record", vm)
    for field in ("power_state", "resident_on", "domid"):
        assert after[field] == before[field]


async def test_a_host_tells_why_it_cannot_run_a_vm(api: Api) -> None:
    here, there = await host(api, "prod-h1"), await host(api, "prod-h2")
    vm = await api("VM.create", {**VM_RECORD, "VCPUs_max": "17"})

    assert await api.failure("VM.assert_can_boot_here", vm, here) == [
        "HOST_NOT_ENOUGH_PCPUS",
        "17",
        "16",
    ]
    assert await api("VM.get_possible_hosts", vm) == []
    assert await api.failure("VM.start", vm, False, False) == ["NO_HOSTS_AVAILABLE"]
    await api("VM.set_VCPUs_max", vm, "2")
    assert sorted(await api("VM.get_possible_hosts", vm)) == sorted([here, there])
    await api("host.disable", there)
    assert await api("VM.get_possible_hosts", vm) == [here]
    assert await api.failure("VM.start_on", vm, there, False, False) == ["HOST_DISABLED", there]
    vm = await api.vm("db01")
    assert await api.failure("VM.start", vm, False, False) == ["NO_HOSTS_AVAILABLE"]


async def test_a_vm_needs_its_memory_on_one_host(api: Api) -> None:
    much = str(400 * GIB)
    sizes = dict.fromkeys(
        ("memory_static_max", "memory_dynamic_max", "memory_dynamic_min", "memory_static_min"), much
    )
    vm = await api("VM.create", {**VM_RECORD, **sizes})

    code, needed, free = await api.failure("VM.start", vm, False, False)

    assert code == "HOST_NOT_ENOUGH_FREE_MEMORY"
    overhead = int(await api("VM.compute_memory_overhead", vm))
    assert int(needed) == 400 * GIB + overhead
    assert 0 < int(free) < 256 * GIB
    most = int(await api("VM.maximise_memory", vm, free, False))
    assert most % (1 << 20) == 0
    await api("VM.set_memory_limits", vm, *map(str, (GIB, most, most, most)))
    await api("VM.start", vm, False, False)
    assert await api("VM.get_power_state", vm) == "Running"


async def test_a_network_without_interfaces_binds_vms_to_one_host(api: Api) -> None:
    network = await api(
        "network.create", {"name_label": "private", "other_config": {}, "MTU": "1500"}
    )
    first = await api("VM.create", VM_RECORD)
    second = await api("VM.create", VM_RECORD)
    for vm in (first, second):
        await api("VIF.create", vif_record(vm, network))
    here, there = await host(api, "prod-h1"), await host(api, "prod-h2")

    await api("VM.start_on", first, here, False, False)

    assert await api("VM.get_possible_hosts", second) == [here]
    assert await api.failure("VM.start_on", second, there, False, False) == [
        "VM_REQUIRES_NETWORK",
        second,
        network,
    ]
    assert await api.failure("VM.assert_agile", first) == [
        "HA_CONSTRAINT_VIOLATION_NETWORK_NOT_SHARED",
        network,
    ]


async def test_what_create_did_not_check_is_found_at_the_start(api: Api) -> None:
    here = await host(api, "prod-h1")

    async def start(**fields: Any) -> list[str]:
        vm = await api("VM.create", {**VM_RECORD, **fields})
        return await api.failure("VM.start_on", vm, here, False, False)

    assert await start(VCPUs_max="0") == ["INVALID_VALUE", "VCPUs_max", "0"]
    assert (await start(VCPUs_at_startup="3"))[0] == "VALUE_NOT_SUPPORTED"
    assert await start(memory_static_min=str(9 * GIB)) == ["MEMORY_CONSTRAINT_VIOLATION"]
    assert (await start(actions_after_crash="rename_restart"))[0] == "VALUE_NOT_SUPPORTED"


# -- allowed and current operations ---------------------------------------------------------------


async def test_allowed_operations_follow_the_power_state(api: Api) -> None:
    vm = await api.vm("db01")
    halted = set(await api("VM.get_allowed_operations", vm))
    running = set(await api("VM.get_allowed_operations", await api.vm("web01")))

    assert halted == {
        "changing_dynamic_range", "changing_static_range", "changing_shadow_memory",
        "changing_NVRAM", "make_into_template", "destroy", "export", "metadata_export",
        "start", "start_on", "clone", "copy", "snapshot", "migrate_send", "create_vtpm",
    }  # fmt: skip
    assert running == {
        "changing_dynamic_range", "changing_VCPUs_live", "snapshot", "checkpoint", "suspend",
        "pause", "clean_shutdown", "clean_reboot", "hard_shutdown", "hard_reboot", "pool_migrate",
        "migrate_send", "metadata_export",
    }  # fmt: skip


async def test_while_a_vm_is_started_its_devices_are_taken(lab: Lab, api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")
    vbds, vifs = await api("VM.get_VBDs", vm), await api("VM.get_VIFs", vm)
    task = await begun(api, vm, "start", False, False)

    assert await api("VM.get_allowed_operations", vm) == []
    for vbd in vbds:
        assert await api("VBD.get_current_operations", vbd) == {task: "attach"}
    assert await api("VIF.get_current_operations", vifs[0]) == {task: "attach"}
    other = await api("VM.create", VM_RECORD)
    await api("VBD.create", vbd_record(other, disk))
    assert await api.failure("VM.start", other, False, False) == ["VDI_IN_USE", disk]
    await api("task.cancel", task)
    await api.finished(task)
    assert await api("VBD.get_current_operations", vbds[0]) == {}
    await api("VM.start", other, False, False)
    assert await api.failure("VM.start", vm, False, False) == ["VDI_IN_USE", disk]


async def test_templates_and_control_domains_refuse_most_things(api: Api) -> None:
    (template,) = await api("VM.get_by_name_label", "Debian Bookworm 12")
    dom0 = await api("host.get_control_domain", await host(api, "prod-h1"))

    assert set(await api("VM.get_allowed_operations", template)) == {
        "changing_dynamic_range", "changing_static_range", "changing_shadow_memory",
        "changing_NVRAM", "clone", "copy", "export", "metadata_export", "provision",
    }  # fmt: skip
    assert await api.failure("VM.destroy", template) == ["VM_IS_TEMPLATE", template, "destroy"]
    assert await api.failure("VM.hard_shutdown", dom0) == [
        "OPERATION_NOT_ALLOWED",
        "This operation is not allowed on a control domain",
    ]
    assert await api.failure("VM.power_state_reset", dom0) == ["CANNOT_RESET_CONTROL_DOMAIN", dom0]
    assert await api.failure("VM.provision", await api.vm("db01")) == ["ONLY_PROVISION_TEMPLATE"]
    assert await api.failure("VM.set_is_a_template", dom0, True) == [
        "VM_BAD_POWER_STATE",
        dom0,
        "halted",
        "running",
    ]


async def test_what_guests_of_the_lab_cannot_do_is_refused_as_xapi_refuses_it(api: Api) -> None:
    vm, halted = await api.vm("web01"), await api.vm("db01")

    assert await api.failure("VM.send_sysrq", vm, "h") == ["NOT_IMPLEMENTED", "send_sysrq"]
    assert await api.failure("VM.call_plugin", vm, "fun", "x", {}) == [
        "XENAPI_MISSING_PLUGIN",
        "fun",
    ]
    code, why, *_ = await api.failure(
        "VM.call_plugin", vm, "guest-agent-operation", "request-rdp-on", {}
    )
    assert (code, why) == ("XENAPI_PLUGIN_FAILURE", "failed to execute fn")
    assert (await api.failure("VM.call_plugin", halted, "fun", "x", {}))[0] == "VM_BAD_POWER_STATE"
    assert await api("VM.get_data_sources", vm) == []
    assert (await api("VM.get_boot_record", vm))["uuid"] == await api("VM.get_uuid", vm)
    assert await api("VM.get_cooperative", vm) is True


async def test_two_calls_wait_for_one_vm(api: Api) -> None:
    vm = await api.vm("db01")
    snapshot = await api("Async.VM.snapshot", vm, "s")
    start = await api("Async.VM.start", vm, False, False)

    assert (await api.finished(snapshot))["status"] == "success"
    assert (await api.finished(start))["status"] == "success"
