"""VM: making, changing and removing machines.

Source: xapi: ocaml/xapi/xapi_vm.ml, xapi_vm_helpers.ml, ocaml/idl/datamodel_vm.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.generics import add_to_map, create_arguments
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.devices import vtpm as vtpms
from xorepd_lab.classes.devices.vbd import free_devices
from xorepd_lab.classes.devices.vif import LAST_DEVICE
from xorepd_lab.classes.vm.settings import update_platform_version
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.schema import words
from xorepd_lab.rules.placement import update_memory_overhead
from xorepd_lab.rules.vm_rules import check_vm

IGNORED = words(
    "blocked_operations protection_policy is_snapshot_from_vmpp snapshot_schedule is_vmss_snapshot"
)
"""Accepted by VM.create, and not kept."""
ONLY_SUSPENDED = ["suspend_VDI", "last_booted_record", "last_boot_CPU_flags"]
DEVICE_MODEL = "qemu-upstream-compat"


@rpc("VM.create(args: record VM)")
def create(call: Call, record: dict[str, Any]) -> str:
    """Make a VM without disks. What it is given is stored unchecked; `start` looks at it."""
    fields = create_arguments("VM", record)
    db = call.pool.db
    blank = {name: value for name, value in fields.items() if name not in IGNORED}
    if fields["power_state"] == "Suspended":
        if fields["suspend_VDI"] == NULL or not all(fields[name] for name in ONLY_SUSPENDED):
            raise ApiError("VM_BAD_POWER_STATE", db.new_ref(), "halted", "suspended")
    else:
        blank["power_state"] = "Halted"
        for name in ONLY_SUSPENDED:
            del blank[name]
    blank["platform"] = {"device-model": DEVICE_MODEL, **fields["platform"]}
    blank["other_config"] = {"mac_seed": db.new_uuid(), **fields["other_config"]}
    if fields["domain_type"] == "unspecified":
        blank["domain_type"] = "hvm" if fields["HVM_boot_policy"] else "pv"
    blank["metrics"] = db.create("VM_metrics")
    ref = db.create("VM", **blank)
    update_memory_overhead(db, ref)
    update_platform_version(db, ref)
    call.pool.operations.refresh("VM", ref)
    return ref


@rpc("VM.destroy(self: ref VM)")
async def destroy(call: Call, vm: str) -> None:
    """Remove the record and what belongs to it; the disks stay."""
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "destroy")):
        remove_vm(call, vm)


def remove_vm(call: Call, vm: str) -> None:
    db = call.pool.db
    record = db.record("VM", vm)
    for child in record["children"]:
        db.set("VM", child, parent=record["parent"])
    vdis = [db.get("VBD", vbd, "VDI") for vbd in record["VBDs"]]
    for vtpm in record["VTPMs"]:
        vtpms.remove(db, vtpm)
    for cls, field in (("VBD", "VBDs"), ("VIF", "VIFs"), ("console", "consoles")):
        for ref in record[field]:
            db.destroy(cls, ref)
    for cls, field in (("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")):
        if db.exists(cls, record[field]):
            db.destroy(cls, record[field])
    db.destroy("VM", vm)
    for vdi in vdis:
        call.pool.operations.refresh("VDI", vdi)
    call.pool.operations.refresh("VM_appliance", record["appliance"])


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
    call.pool.operations.refresh_vm(vm)


@rpc("VM.assert_operation_valid(self: ref VM, op: vm_operations)")
def assert_operation_valid(call: Call, vm: str, op: str) -> None:
    check_vm(call.pool.db, vm, op)


# -- templates ----------------------------------------------------------------------------------


@rpc("VM.set_is_a_template(self: ref VM, value: bool)", asynchronous=False)
async def set_is_a_template(call: Call, vm: str, value: bool) -> None:
    if value:
        async with call.pool.operations.hold(call.task, Claim("VM", vm, "make_into_template")):
            _make_template(call, vm)
    else:
        make_vm(call, vm)
    call.pool.operations.refresh("VM", vm)


@rpc("VM.set_is_default_template(vm: ref VM, value: bool)")
async def set_is_default_template(call: Call, vm: str, value: bool) -> None:
    db = call.pool.db
    if value and not db.get("VM", vm, "is_a_template"):
        async with call.pool.operations.hold(call.task, Claim("VM", vm, "make_into_template")):
            _make_template(call, vm)
    # Older clients look at the key.
    db.put("VM", vm, "other_config", "default_template", str(value).lower())
    db.set("VM", vm, is_default_template=value)
    call.pool.operations.refresh("VM", vm)


def make_vm(call: Call, vm: str) -> None:
    """Make a VM of a template; the moment counts as its installation."""
    db = call.pool.db
    metrics = db.get("VM", vm, "metrics")
    if db.exists("VM_metrics", metrics):
        db.set("VM_metrics", metrics, install_time=call.pool.clock.now())
    db.set("VM", vm, is_a_template=False)


def _make_template(call: Call, vm: str) -> None:
    db = call.pool.db
    record = db.record("VM", vm)
    ha_enabled = db.get("pool", next(db.select("pool")), "ha_enabled")
    if ha_enabled and record["ha_always_run"] and record["ha_restart_priority"] == "restart":
        raise ApiError("VM_IS_PROTECTED", vm)
    if db.exists("VM_metrics", record["metrics"]):
        db.destroy("VM_metrics", record["metrics"])
    db.set("VM", vm, ha_always_run=False, metrics=NULL, is_a_template=True)


# -- devices ------------------------------------------------------------------------------------


@rpc("VM.get_allowed_VBD_devices(vm: ref VM)", asynchronous=False)
def get_allowed_vbd_devices(call: Call, vm: str) -> list[str]:
    return free_devices(call.pool.db, vm)


@rpc("VM.get_allowed_VIF_devices(vm: ref VM)", asynchronous=False)
def get_allowed_vif_devices(call: Call, vm: str) -> list[str]:
    db = call.pool.db
    taken = {db.get("VIF", vif, "device") for vif in db.get("VM", vm, "VIFs")}
    return [str(n) for n in range(LAST_DEVICE + 1) if str(n) not in taken]
