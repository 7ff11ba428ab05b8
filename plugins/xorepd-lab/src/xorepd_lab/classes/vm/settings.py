"""VM: the setters that check something: firmware, order, HA and others.

Source: xapi: ocaml/xapi/xapi_vm.ml, xapi_vm_helpers.ml, message_forwarding.ml.
"""

import re

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.generics import add_to_map
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.vm.memory import set_sizes
from xorepd_lab.model.failures import NULL, ApiError, incompatible_type, not_simulated
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import words
from xorepd_lab.rules.placement import required_srs
from xorepd_lab.rules.storage_rules import hosts_of
from xorepd_lab.rules.vm_rules import check_power_state

BIOS_STRINGS = words(
    "bios-vendor bios-version system-manufacturer system-product-name system-version"
    " system-serial-number baseboard-manufacturer baseboard-product-name baseboard-version"
    " baseboard-serial-number baseboard-asset-tag baseboard-location-in-chassis"
    " enclosure-asset-tag"
)
"""Those that a client may set."""
GENERIC_BIOS_STRINGS = {
    **dict.fromkeys(BIOS_STRINGS, ""),
    "bios-vendor": "Xen",
    "system-manufacturer": "Xen",
    "system-product-name": "HVM domU",
    "hp-rombios": "",
    "oem-1": "Xen",
    "oem-2": "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d",
}
LONGEST_BIOS_STRING = 512
HA_PRIORITIES = ("", "restart", "best-effort")
VENDOR_DEVICE_VERSION = 2
"""The virtual hardware that first had the vendor's PCI device."""

_PRINTABLE = re.compile(r"[\x20-\x7e]*")


# -- firmware -----------------------------------------------------------------------------------


@rpc("VM.set_HVM_boot_policy(self: ref VM, value: string)", asynchronous=False)
def set_hvm_boot_policy(call: Call, vm: str, value: str) -> None:
    set_sizes(call, vm, HVM_boot_policy=value, domain_type="hvm" if value else "pv")


@rpc("VM.set_domain_type(self: ref VM, value: domain_type)", asynchronous=False)
def set_domain_type(call: Call, vm: str, value: str) -> None:
    if value == "unspecified":
        raise ApiError("INVALID_VALUE", "domain_type", value)
    policy = "BIOS order" if value == "hvm" else ""
    set_sizes(call, vm, domain_type=value, HVM_boot_policy=policy)


@rpc("VM.get_secureboot_readiness(self: ref VM)")
def get_secureboot_readiness(call: Call, vm: str) -> str:
    """Tell how far a VM is; what its variables say once they are there, nobody reads here."""
    record = call.pool.db.record("VM", vm)
    if record["HVM_boot_params"].get("firmware") != "uefi":
        return "not_supported"
    if record["platform"].get("secureboot", "").lower() not in ("true", "1"):
        return "disabled"
    if "EFI-variables" not in record["NVRAM"]:
        return "first_boot"
    raise not_simulated("VM.get_secureboot_readiness")


@rpc("VM.set_NVRAM(self: ref VM, value: map string string)", asynchronous=False)
async def set_nvram(call: Call, vm: str, value: dict[str, str]) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_NVRAM")):
        call.pool.db.set("VM", vm, NVRAM=value)


@rpc("VM.add_to_NVRAM(self: ref VM, key: string, value: string)", asynchronous=False)
async def add_to_nvram(call: Call, vm: str, key: str, value: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_NVRAM")):
        add_to_map(call, "VM", vm, "NVRAM", key, value)


@rpc("VM.remove_from_NVRAM(self: ref VM, key: string)", asynchronous=False)
async def remove_from_nvram(call: Call, vm: str, key: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_NVRAM")):
        call.pool.db.drop("VM", vm, "NVRAM", key)


@rpc("VM.set_bios_strings(self: ref VM, value: map string string)")
def set_bios_strings(call: Call, vm: str, value: dict[str, str]) -> None:
    """Set the BIOS strings, once; missing ones are filled from defaults."""
    if call.pool.db.get("VM", vm, "bios_strings"):
        raise ApiError("VM_BIOS_STRINGS_ALREADY_SET")
    for key, text in value.items():
        _check_bios_string(key, text)
    call.pool.db.set("VM", vm, bios_strings={**GENERIC_BIOS_STRINGS, **value})


@rpc("VM.copy_bios_strings(vm: ref VM, host: ref host)")
def copy_bios_strings(call: Call, vm: str, host: str) -> None:
    """Take over the host's BIOS strings, once, and bind the VM to it."""
    if call.pool.db.get("VM", vm, "bios_strings"):
        raise ApiError("VM_BIOS_STRINGS_ALREADY_SET")
    strings = call.pool.db.get("host", host, "bios_strings")
    call.pool.db.set("VM", vm, bios_strings=dict(strings), affinity=host)


def ensure_bios_strings(db: Registry, vm: str) -> None:
    """Give a VM that has none the generic ones, as its first start does."""
    if not db.get("VM", vm, "bios_strings"):
        db.set("VM", vm, bios_strings=dict(GENERIC_BIOS_STRINGS))


def _check_bios_string(key: str, text: str) -> None:
    if key not in BIOS_STRINGS:
        raise ApiError("INVALID_VALUE", key, "Unknown key")
    if not text:
        raise ApiError("INVALID_VALUE", key, "Value provided is empty")
    if len(text) > LONGEST_BIOS_STRING:
        complaint = f"{text} has length more than {LONGEST_BIOS_STRING} characters"
        raise ApiError("INVALID_VALUE", key, complaint)
    if not _PRINTABLE.fullmatch(text):
        raise ApiError("INVALID_VALUE", key, f"{text} has non-printable ASCII characters")


# -- HA, order, appliance -----------------------------------------------------------------------


@rpc("VM.set_ha_restart_priority(self: ref VM, value: string)", asynchronous=False)
def set_ha_restart_priority(call: Call, vm: str, value: str) -> None:
    db = call.pool.db
    if value not in HA_PRIORITIES:
        raise ApiError("INVALID_VALUE", "ha_restart_priority", value)
    db.set("VM", vm, ha_restart_priority=value)
    if db.get("VM", vm, "power_state") == "Running":
        db.set("VM", vm, ha_always_run=value == "restart")
    call.pool.operations.refresh("VM", vm)


@rpc("VM.set_ha_always_run(self: ref VM, value: bool)", asynchronous=False)
def set_ha_always_run(call: Call, vm: str, value: bool) -> None:
    """Set the priority instead: the field has long been deprecated."""
    set_ha_restart_priority(call, vm, "restart" if value else "")


@rpc("VM.set_start_delay(self: ref VM, value: int)")
def set_start_delay(call: Call, vm: str, value: int) -> None:
    _set_non_negative(call, vm, "start_delay", value)


@rpc("VM.set_shutdown_delay(self: ref VM, value: int)")
def set_shutdown_delay(call: Call, vm: str, value: int) -> None:
    _set_non_negative(call, vm, "shutdown_delay", value)


@rpc("VM.set_order(self: ref VM, value: int)")
def set_order(call: Call, vm: str, value: int) -> None:
    _set_non_negative(call, vm, "order", value)


def _set_non_negative(call: Call, vm: str, field: str, value: int) -> None:
    if value < 0:
        raise ApiError("INVALID_VALUE", f"{field} must be non-negative", str(value))
    call.pool.db.set("VM", vm, **{field: value})


@rpc("VM.set_appliance(self: ref VM, value: ref VM_appliance)")
def set_appliance(call: Call, vm: str, value: str) -> None:
    db = call.pool.db
    record = db.record("VM", vm)
    if record["is_control_domain"] or record["is_a_template"] or record["is_a_snapshot"]:
        text = "Control domains, templates and snapshots cannot be assigned to appliances."
        raise ApiError("OPERATION_NOT_ALLOWED", text)
    db.set("VM", vm, appliance=value)
    call.pool.operations.refresh("VM_appliance", record["appliance"])
    call.pool.operations.refresh("VM", vm)


@rpc("VM.set_groups(self: ref VM, value: set ref VM_group)", newer=True)
def set_groups(call: Call, vm: str, value: list[str]) -> None:
    db = call.pool.db
    record = db.record("VM", vm)
    if record["is_control_domain"] or record["is_a_template"] or record["is_a_snapshot"]:
        text = "Control domains, templates, and snapshots cannot be added to VM groups."
        raise ApiError("OPERATION_NOT_ALLOWED", text)
    if len(value) > 1:
        raise ApiError("TOO_MANY_GROUPS")
    for group in value:
        db.row("VM_group", group)
    db.set("VM", vm, groups=value)
    for group in {*record["groups"], *value}:
        if db.exists("VM_group", group):
            others = [each for each in db.get("VM_group", group, "VMs") if each != vm]
            db.set("VM_group", group, VMs=[*others, vm] if group in value else others)


@rpc("VM.set_snapshot_schedule(self: ref VM, value: ref VMSS)", asynchronous=False)
def set_snapshot_schedule(call: Call, vm: str, value: str) -> None:
    db = call.pool.db
    if value not in (NULL, ""):
        if not db.exists("VMSS", value) or db.get("VM", vm, "is_control_domain"):
            raise ApiError("INVALID_VALUE", value)
        if db.get("VM", vm, "is_a_template"):
            raise ApiError("VM_IS_TEMPLATE", vm)
    db.set("VM", vm, snapshot_schedule=value or NULL)
    call.pool.operations.refresh("VM", vm)


# -- the rest -----------------------------------------------------------------------------------


@rpc("VM.set_actions_after_crash(self: ref VM, value: on_crash)")
def set_actions_after_crash(call: Call, vm: str, value: str) -> None:
    # Only a start looks at whether that makes sense.
    call.pool.db.set("VM", vm, actions_after_crash=value)


@rpc("VM.set_actions_after_softreboot(self: ref VM, value: on_softreboot)", asynchronous=False)
def set_actions_after_softreboot(call: Call, vm: str, value: str) -> None:
    call.pool.db.set("VM", vm, actions_after_softreboot=value)


@rpc("VM.set_has_vendor_device(self: ref VM, value: bool)")
def set_has_vendor_device(call: Call, vm: str, value: bool) -> None:
    db = call.pool.db
    check_power_state(vm, db.get("VM", vm, "power_state"), "Halted")
    db.set("VM", vm, has_vendor_device=value)
    update_platform_version(db, vm)


def update_platform_version(db: Registry, vm: str) -> None:
    """Raise the version of the virtual hardware to what the VM visibly needs."""
    record = db.record("VM", vm)
    if record["has_vendor_device"]:
        version = max(VENDOR_DEVICE_VERSION, record["hardware_platform_version"])
        db.set("VM", vm, hardware_platform_version=version)


@rpc("VM.set_suspend_VDI(self: ref VM, value: ref VDI)")
def set_suspend_vdi(call: Call, vm: str, value: str) -> None:
    """Let a suspended VM resume from a copy of its memory.

    XAPI compares checksums; here the copy must have the size of the original.
    """
    db = call.pool.db
    record = db.record("VM", vm)
    check_power_state(vm, record["power_state"], "Suspended")
    new = db.record("VDI", value)
    if new["type"] == "cbt_metadata":
        raise incompatible_type(vm, new["type"])
    if value == record["suspend_VDI"]:
        return
    srs = {*required_srs(db, vm), new["SR"]} - {db.get("VDI", record["suspend_VDI"], "SR")}
    if not set.intersection(set(db.refs("host")), *(set(hosts_of(db, sr)) for sr in srs)):
        raise ApiError("NO_HOSTS_AVAILABLE")
    old = db.record("VDI", record["suspend_VDI"])
    if old["virtual_size"] != new["virtual_size"]:
        told = [f"{vdi['uuid']} : {vdi['virtual_size']}" for vdi in (old, new)]
        raise ApiError("SUSPEND_VDI_REPLACEMENT_IS_NOT_IDENTICAL", *told)
    db.set("VM", vm, suspend_VDI=value)
