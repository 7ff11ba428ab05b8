"""VM: making, changing and removing machines.

Source: xapi: ocaml/xapi/xapi_vm.ml, xapi_vm_helpers.ml, ocaml/idl/datamodel_vm.ml.
"""

import re
from typing import Any

from xorepd.lab.attachments import device_name
from xorepd.lab.classes.vbd import LAST_USERDEVICE
from xorepd.lab.classes.vif import LAST_DEVICE
from xorepd.lab.dispatch import Call, rpc
from xorepd.lab.failures import NULL, ApiError
from xorepd.lab.generics import add_to_map, create_arguments
from xorepd.lab.operations import Claim
from xorepd.lab.rules import check_vm
from xorepd.lab.schema import words

IGNORED = words(
    "blocked_operations protection_policy is_snapshot_from_vmpp snapshot_schedule is_vmss_snapshot"
)
"""Accepted by VM.create, and not kept."""
ONLY_SUSPENDED = ["suspend_VDI", "last_booted_record", "last_boot_CPU_flags"]
BIOS_STRINGS = words(
    "bios-vendor bios-version system-manufacturer system-product-name system-version"
    " system-serial-number baseboard-manufacturer baseboard-product-name baseboard-version"
    " baseboard-serial-number baseboard-asset-tag baseboard-location-in-chassis enclosure-"
    " asset-tag"
)
DEFAULT_BIOS_STRINGS = {
    "bios-vendor": "Xen",
    "bios-version": "",
    "system-manufacturer": "Xen",
    "system-product-name": "HVM domU",
    "system-version": "",
    "system-serial-number": "",
    "hp-rombios": "",
}
LONGEST_BIOS_STRING = 512
DEVICE_MODEL = "qemu-upstream-compat"

_PRINTABLE = re.compile(r"[\x20-\x7e]*$")


@rpc("VM.create(args: record VM)")
def create(call: Call, record: dict[str, Any]) -> str:
    """Make a VM without disks. What it is given is stored unchecked; `start` looks at it."""
    fields = create_arguments("VM", record)
    db = call.pool.db
    blank = {name: value for name, value in fields.items() if name not in IGNORED}
    if fields["power_state"] == "Suspended":
        if not db.exists("VDI", fields["suspend_VDI"]) or not fields["last_booted_record"]:
            raise ApiError("VM_BAD_POWER_STATE", NULL, "halted", "suspended")
    else:
        blank["power_state"] = "Halted"
        for name in ONLY_SUSPENDED:
            del blank[name]
    blank["platform"] = {"device-model": DEVICE_MODEL, **fields["platform"]}
    blank["other_config"] = {"mac_seed": db.new_uuid(), **fields["other_config"]}
    if fields["domain_type"] == "unspecified":
        blank["domain_type"] = "hvm" if fields["HVM_boot_policy"] else "pv"
    blank["metrics"] = db.create("VM_metrics", last_updated=call.pool.clock.now())
    ref = db.create("VM", **blank)
    call.pool.operations.refresh("VM", ref)
    return ref


@rpc("VM.destroy(self: ref VM)")
async def destroy(call: Call, vm: str) -> None:
    """Remove the record and what belongs to it; the disks stay."""
    if call.pool.db.get("VM", vm, "is_default_template"):
        raise ApiError("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", vm)
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "destroy")):
        remove_vm(call, vm)


def remove_vm(call: Call, vm: str) -> None:
    db = call.pool.db
    record = db.record("VM", vm)
    for child in record["children"]:
        db.set("VM", child, parent=record["parent"])
    for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs"), ("VTPM", "VTPMs")):
        for ref in record[field]:
            db.destroy(cls, ref)
    for cls, field in (("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")):
        if db.exists(cls, record[field]):
            db.destroy(cls, record[field])
    db.destroy("VM", vm)


# -- protection ---------------------------------------------------------------------------------


@rpc("VM.set_blocked_operations(self: ref VM, value: map vm_operations string)", asynchronous=False)
def set_blocked_operations(call: Call, vm: str, value: dict[str, str]) -> None:
    call.pool.db.set("VM", vm, blocked_operations=value)
    call.pool.operations.refresh("VM", vm)


@rpc(
    "VM.add_to_blocked_operations(self: ref VM, key: vm_operations, value: string)",
    asynchronous=False,
)
def add_to_blocked_operations(call: Call, vm: str, key: str, value: str) -> None:
    add_to_map(call, "VM", vm, "blocked_operations", key, value)
    call.pool.operations.refresh("VM", vm)


@rpc("VM.remove_from_blocked_operations(self: ref VM, key: vm_operations)", asynchronous=False)
def remove_from_blocked_operations(call: Call, vm: str, key: str) -> None:
    call.pool.db.drop("VM", vm, "blocked_operations", key)
    call.pool.operations.refresh("VM", vm)


@rpc("VM.update_allowed_operations(self: ref VM)")
def update_allowed_operations(call: Call, vm: str) -> None:
    call.pool.db.row("VM", vm)
    call.pool.operations.refresh("VM", vm)


@rpc("VM.assert_operation_valid(self: ref VM, op: vm_operations)")
def assert_operation_valid(call: Call, vm: str, op: str) -> None:
    check_vm(call.pool.db, vm, op)


@rpc("VM.set_is_a_template(self: ref VM, value: bool)")
def set_is_a_template(call: Call, vm: str, value: bool) -> None:
    db = call.pool.db
    if value:
        check_vm(db, vm, "make_into_template")
    elif db.exists("VM_metrics", db.get("VM", vm, "metrics")):
        # The moment a template becomes a VM counts as its installation.
        db.set("VM_metrics", db.get("VM", vm, "metrics"), install_time=call.pool.clock.now())
    db.set("VM", vm, is_a_template=value)
    call.pool.operations.refresh("VM", vm)


@rpc("VM.set_is_default_template(vm: ref VM, value: bool)")
def set_is_default_template(call: Call, vm: str, value: bool) -> None:
    call.pool.db.set("VM", vm, is_default_template=value)
    call.pool.operations.refresh("VM", vm)


@rpc("VM.set_ha_restart_priority(self: ref VM, value: string)")
def set_ha_restart_priority(call: Call, vm: str, value: str) -> None:
    if value not in ("", "restart", "best-effort"):
        raise ApiError("INVALID_VALUE", "ha_restart_priority", value)
    call.pool.db.set("VM", vm, ha_restart_priority=value)


@rpc("VM.set_ha_always_run(self: ref VM, value: bool)")
def set_ha_always_run(call: Call, vm: str, value: bool) -> None:
    call.pool.db.set("VM", vm, ha_always_run=value)


# -- memory, processors, firmware ---------------------------------------------------------------


def check_memory_order(
    static_min: int, dynamic_min: int, dynamic_max: int, static_max: int
) -> None:
    if not static_min <= dynamic_min <= dynamic_max <= static_max:
        raise ApiError("MEMORY_CONSTRAINT_VIOLATION_ORDER")


@rpc(
    "VM.set_memory_limits(self: ref VM, static_min: int, static_max: int, dynamic_min: int,"
    " dynamic_max: int)"
)
async def set_memory_limits(
    call: Call, vm: str, static_min: int, static_max: int, dynamic_min: int, dynamic_max: int
) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_memory_limits")):
        check_memory_order(static_min, dynamic_min, dynamic_max, static_max)
        call.pool.db.set(
            "VM",
            vm,
            memory_static_min=static_min,
            memory_static_max=static_max,
            memory_dynamic_min=dynamic_min,
            memory_dynamic_max=dynamic_max,
        )


@rpc("VM.set_memory(self: ref VM, value: int)")
async def set_memory(call: Call, vm: str, value: int) -> None:
    static_min = min(value, call.pool.db.get("VM", vm, "memory_static_min"))
    await set_memory_limits(call, vm, static_min, value, value, value)


@rpc("VM.set_VCPUs_max(self: ref VM, value: int)", asynchronous=False)
def set_vcpus_max(call: Call, vm: str, value: int) -> None:
    check_vm(call.pool.db, vm, "changing_VCPUs")
    if value < max(1, call.pool.db.get("VM", vm, "VCPUs_at_startup")):
        raise ApiError(
            "INVALID_VALUE",
            "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max",
            str(value),
        )
    call.pool.db.set("VM", vm, VCPUs_max=value)


@rpc("VM.set_VCPUs_at_startup(self: ref VM, value: int)", asynchronous=False)
def set_vcpus_at_startup(call: Call, vm: str, value: int) -> None:
    check_vm(call.pool.db, vm, "changing_VCPUs")
    if not 0 < value <= call.pool.db.get("VM", vm, "VCPUs_max"):
        raise ApiError(
            "INVALID_VALUE",
            "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max",
            str(value),
        )
    call.pool.db.set("VM", vm, VCPUs_at_startup=value)


@rpc("VM.set_HVM_boot_policy(self: ref VM, value: string)", asynchronous=False)
def set_hvm_boot_policy(call: Call, vm: str, value: str) -> None:
    call.pool.db.set("VM", vm, HVM_boot_policy=value, domain_type="hvm" if value else "pv")


@rpc("VM.set_HVM_shadow_multiplier(self: ref VM, value: float)", asynchronous=False)
def set_hvm_shadow_multiplier(call: Call, vm: str, value: float) -> None:
    call.pool.db.set("VM", vm, HVM_shadow_multiplier=value)


@rpc("VM.set_domain_type(self: ref VM, value: domain_type)", asynchronous=False)
def set_domain_type(call: Call, vm: str, value: str) -> None:
    call.pool.db.set("VM", vm, domain_type=value)


@rpc("VM.set_NVRAM(self: ref VM, value: map string string)", asynchronous=False)
def set_nvram(call: Call, vm: str, value: dict[str, str]) -> None:
    check_vm(call.pool.db, vm, "changing_NVRAM")
    call.pool.db.set("VM", vm, NVRAM=value)


@rpc("VM.add_to_NVRAM(self: ref VM, key: string, value: string)", asynchronous=False)
def add_to_nvram(call: Call, vm: str, key: str, value: str) -> None:
    check_vm(call.pool.db, vm, "changing_NVRAM")
    add_to_map(call, "VM", vm, "NVRAM", key, value)


@rpc("VM.remove_from_NVRAM(self: ref VM, key: string)", asynchronous=False)
def remove_from_nvram(call: Call, vm: str, key: str) -> None:
    check_vm(call.pool.db, vm, "changing_NVRAM")
    call.pool.db.drop("VM", vm, "NVRAM", key)


@rpc("VM.set_bios_strings(self: ref VM, value: map string string)")
def set_bios_strings(call: Call, vm: str, value: dict[str, str]) -> None:
    """Set the BIOS strings, once; missing ones are filled from defaults."""
    if call.pool.db.get("VM", vm, "bios_strings"):
        raise ApiError("VM_BIOS_STRINGS_ALREADY_SET")
    for key, text in value.items():
        if key not in BIOS_STRINGS:
            raise ApiError("INVALID_VALUE", key, "Unknown key")
        bad = len(text) > LONGEST_BIOS_STRING or text != text.strip() or not _PRINTABLE.match(text)
        if bad or not text:
            raise ApiError("INVALID_VALUE", key, text)
    call.pool.db.set("VM", vm, bios_strings={**DEFAULT_BIOS_STRINGS, **value})


# -- plain setters ------------------------------------------------------------------------------


def _declare_setter(field: str, kind: str) -> None:
    def setter(call: Call, vm: str, value: Any) -> None:
        call.pool.db.set("VM", vm, **{field: value})

    rpc(f"VM.set_{field}(self: ref VM, value: {kind})")(setter)


for _field, _kind in {
    "has_vendor_device": "bool",
    "actions_after_crash": "on_crash",
    "actions_after_softreboot": "on_softreboot",
    "start_delay": "int",
    "shutdown_delay": "int",
    "order": "int",
    "suspend_VDI": "ref VDI",
    "appliance": "ref VM_appliance",
    "protection_policy": "ref VMPP",
    "snapshot_schedule": "ref VMSS",
}.items():
    _declare_setter(_field, _kind)


@rpc("VM.get_allowed_VBD_devices(vm: ref VM)", asynchronous=False)
def get_allowed_vbd_devices(call: Call, vm: str) -> list[str]:
    db = call.pool.db
    taken = {db.get("VBD", vbd, "userdevice") for vbd in db.get("VM", vm, "VBDs")}
    free = (str(n) for n in range(LAST_USERDEVICE + 1))
    return [n for n in free if n not in taken and device_name(n) not in taken]


@rpc("VM.get_allowed_VIF_devices(vm: ref VM)", asynchronous=False)
def get_allowed_vif_devices(call: Call, vm: str) -> list[str]:
    db = call.pool.db
    taken = {db.get("VIF", vif, "device") for vif in db.get("VM", vm, "VIFs")}
    return [str(n) for n in range(LAST_DEVICE + 1) if str(n) not in taken]
