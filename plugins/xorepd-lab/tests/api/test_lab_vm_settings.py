"""VMs: the setters that check something, and appliances."""

import pytest

from tests.lab.labclient import NULL, VM_RECORD, Api
from tests.lab.vmwatch import free_memory, host
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab
GIB = 1 << 30


async def test_memory_of_a_running_vm_changes_between_its_static_limits(api: Api) -> None:
    vm = await api.vm("web01")
    free = await free_memory(api, "prod-h1")

    await api("VM.set_memory_dynamic_range", vm, str(GIB), str(2 * GIB))

    assert await api("VM.get_memory_dynamic_min", vm) == str(GIB)
    assert await free_memory(api, "prod-h1") == free + GIB
    assert await api.failure("VM.set_memory_dynamic_max", vm, str(3 * GIB)) == [
        "MEMORY_CONSTRAINT_VIOLATION_ORDER"
    ]
    assert (await api.failure("VM.set_memory_static_max", vm, str(3 * GIB)))[0] == (
        "VM_BAD_POWER_STATE"
    )
    code, more, left = await api.failure("VM.set_memory_dynamic_min", vm, str(900 * GIB))
    assert (code, int(more)) == ("HOST_NOT_ENOUGH_FREE_MEMORY", 899 * GIB >> 10)
    assert int(left) == (free + GIB) >> 10


async def test_the_order_of_a_vm_is_checked_and_its_ha_priority_acts_at_once(api: Api) -> None:
    vm = await api.vm("web01")

    assert await api.failure("VM.set_order", vm, "-1") == [
        "INVALID_VALUE",
        "order must be non-negative",
        "-1",
    ]
    assert await api.failure("VM.set_ha_restart_priority", vm, "often") == [
        "INVALID_VALUE",
        "ha_restart_priority",
        "often",
    ]
    await api("VM.set_ha_restart_priority", vm, "restart")
    assert await api("VM.get_ha_always_run", vm) is True
    await api("VM.hard_shutdown", vm)
    assert await api("VM.get_ha_always_run", vm) is False
    await api("VM.start", vm, False, False)
    assert await api("VM.get_ha_always_run", vm) is True


async def test_what_a_vm_is_can_change_while_it_is_halted(api: Api) -> None:
    vm, running = await api.vm("db01"), await api.vm("web01")

    await api("VM.set_domain_type", vm, "pv")
    assert await api("VM.get_HVM_boot_policy", vm) == ""
    await api("VM.set_HVM_boot_policy", vm, "BIOS order")
    assert await api("VM.get_domain_type", vm) == "hvm"
    assert await api.failure("VM.set_domain_type", vm, "unspecified") == [
        "INVALID_VALUE",
        "domain_type",
        "unspecified",
    ]
    bare = await api("VM.create", {**VM_RECORD, "has_vendor_device": False})
    assert await api("VM.get_hardware_platform_version", bare) == "0"
    await api("VM.set_has_vendor_device", bare, True)
    assert await api("VM.get_hardware_platform_version", bare) == "2"
    assert (await api.failure("VM.set_has_vendor_device", running, True))[0] == "VM_BAD_POWER_STATE"
    assert await api.failure("VM.set_protection_policy", vm, NULL) == ["MESSAGE_REMOVED"]
    assert await api.failure("VM.set_snapshot_schedule", vm, "OpaqueRef:none") == [
        "INVALID_VALUE",
        "OpaqueRef:none",
    ]


async def test_shadow_memory_and_processors_change_as_the_power_state_lets_them(api: Api) -> None:
    vm, running = await api.vm("db01"), await api.vm("web01")
    overhead = int(await api("VM.get_memory_overhead", vm))

    await api("VM.set_HVM_shadow_multiplier", vm, 4.0)
    assert int(await api("VM.get_memory_overhead", vm)) > overhead
    assert (await api.failure("VM.set_HVM_shadow_multiplier", vm, 0.5))[0] == "INVALID_VALUE"
    assert (await api.failure("VM.set_HVM_shadow_multiplier", running, 2.0))[0] == (
        "VM_BAD_POWER_STATE"
    )
    await api("VM.set_shadow_multiplier_live", running, 2.0)
    await api("VM.set_VCPUs_number_live", running, "1")
    metrics = await api("VM.get_metrics", running)
    assert (await api("VM_metrics.get_record", metrics))["VCPUs_number"] == "1"
    assert (await api.failure("VM.set_VCPUs_number_live", running, "9"))[0] == "INTERNAL_ERROR"
    assert await api.failure("VM.add_to_VCPUs_params_live", running, "weight", "1") == [
        "NOT_IMPLEMENTED",
        "add_to_VCPUs_params_live",
    ]
    await api("VM.set_VCPUs_at_startup", running, "2")  # whatever the power state
    assert (await api.failure("VM.set_VCPUs_max", running, "4"))[0] == "VM_BAD_POWER_STATE"


async def test_a_suspended_vm_takes_a_copy_of_its_memory_for_its_own(api: Api) -> None:
    vm = await api.vm("web01")
    assert (await api.failure("VM.set_suspend_VDI", vm, await api.disk("web01-root")))[0] == (
        "VM_BAD_POWER_STATE"
    )
    await api("VM.suspend", vm)
    image = await api("VM.get_suspend_VDI", vm)
    copy = await api("VDI.clone", image)

    code, *_ = await api.failure("VM.set_suspend_VDI", vm, await api.disk("web01-root"))
    await api("VM.set_suspend_VDI", vm, copy)
    await api("VM.resume", vm, False, False)

    assert code == "SUSPEND_VDI_REPLACEMENT_IS_NOT_IDENTICAL"
    assert await api("VDI.get_by_name_label", "Suspend image") == [image]


async def test_bios_strings_say_what_is_wrong_with_them(api: Api) -> None:
    vm = await api("VM.create", VM_RECORD)

    async def wrong(text: str) -> str:
        code, key, why = await api.failure("VM.set_bios_strings", vm, {"bios-vendor": text})
        assert (code, key) == ("INVALID_VALUE", "bios-vendor")
        return why

    assert await wrong("") == "Value provided is empty"
    assert (await wrong("x" * 513)).endswith("has length more than 512 characters")
    assert (await wrong("ä")).endswith("has non-printable ASCII characters")
    await api("VM.copy_bios_strings", vm, await host(api, "prod-h1"))
    assert await api("VM.get_affinity", vm) == await host(api, "prod-h1")


async def test_an_appliance_starts_and_stops_its_vms_in_order(lab: Lab, api: Api) -> None:
    appliance = await api("VM_appliance.create", {"name_label": "shop"})
    assert await api.failure("VM_appliance.start", appliance, False) == [
        "OPERATION_NOT_ALLOWED",
        "Appliance has no VMs.",
    ]
    vms = [await api("VM.create", {**VM_RECORD, "name_label": name}) for name in "ab"]
    for order, vm in enumerate(vms):
        await api("VM.set_appliance", vm, appliance)
        await api("VM.set_order", vm, str(order))
    assert await api("VM_appliance.get_allowed_operations", appliance) == ["start"]
    assert await api.failure("VM.set_is_a_template", vms[0], True) == [
        "VM_IS_PART_OF_AN_APPLIANCE",
        vms[0],
        appliance,
    ]

    await api("VM_appliance.start", appliance, False)
    first, second = [int(await api("VM.get_domid", vm)) for vm in vms]
    assert first < second
    await api("VM.add_to_blocked_operations", vms[1], "hard_shutdown", "no")
    failure = await api.failure("VM_appliance.hard_shutdown", appliance)

    assert failure == ["OPERATION_PARTIALLY_FAILED", "VM_appliance.hard_shutdown", vms[1]]
    await api("VM_appliance.destroy", appliance)
    assert await api("VM.get_appliance", vms[0]) == NULL
