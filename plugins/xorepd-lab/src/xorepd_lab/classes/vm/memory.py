"""VM: memory and processors.

Source: xapi: ocaml/xapi/xapi_vm.ml, xapi_vm_memory_constraints.ml, message_forwarding.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import ApiError, internal_error
from xorepd_lab.rules.placement import (
    check_memory_order,
    free_bytes,
    update_free_memory,
    update_memory_overhead,
)

VCPU_RULE = "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max"
KIB = 1 << 10


# -- memory -------------------------------------------------------------------------------------


@rpc(
    "VM.set_memory_limits(self: ref VM, static_min: int, static_max: int, dynamic_min: int,"
    " dynamic_max: int)"
)
async def set_memory_limits(
    call: Call, vm: str, static_min: int, static_max: int, dynamic_min: int, dynamic_max: int
) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_memory_limits")):
        check_memory_order(static_min, dynamic_min, dynamic_max, static_max)
        set_sizes(
            call,
            vm,
            memory_static_min=static_min,
            memory_static_max=static_max,
            memory_dynamic_min=dynamic_min,
            memory_dynamic_max=dynamic_max,
            memory_target=dynamic_min,
        )


@rpc("VM.set_memory(self: ref VM, value: int)")
async def set_memory(call: Call, vm: str, value: int) -> None:
    static_min = call.pool.db.get("VM", vm, "memory_static_min")
    await set_memory_limits(call, vm, static_min, value, value, value)


@rpc("VM.set_memory_static_range(self: ref VM, min: int, max: int)")
async def set_memory_static_range(call: Call, vm: str, low: int, high: int) -> None:
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_static_range")):
        record = db.record("VM", vm)
        check_memory_order(low, record["memory_dynamic_min"], record["memory_dynamic_max"], high)
        set_sizes(call, vm, memory_static_min=low, memory_static_max=high)


@rpc("VM.set_memory_static_min(self: ref VM, value: int)", asynchronous=False)
async def set_memory_static_min(call: Call, vm: str, value: int) -> None:
    high = call.pool.db.get("VM", vm, "memory_static_max")
    await set_memory_static_range(call, vm, value, high)


@rpc("VM.set_memory_static_max(self: ref VM, value: int)", asynchronous=False)
async def set_memory_static_max(call: Call, vm: str, value: int) -> None:
    low = call.pool.db.get("VM", vm, "memory_static_min")
    await set_memory_static_range(call, vm, low, value)


@rpc("VM.set_memory_dynamic_range(self: ref VM, min: int, max: int)")
async def set_memory_dynamic_range(call: Call, vm: str, low: int, high: int) -> None:
    """Change what a guest may be ballooned to; a running one feels it at once."""
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_dynamic_range")):
        record = db.record("VM", vm)
        running = record["power_state"] == "Running"
        more = low - record["memory_dynamic_min"]
        if running and more > (free := free_bytes(db, record["resident_on"])):
            # In KiB here, in bytes everywhere else.
            sizes = (str(more // KIB), str(free // KIB))
            raise ApiError("HOST_NOT_ENOUGH_FREE_MEMORY", *sizes)
        check_memory_order(record["memory_static_min"], low, high, record["memory_static_max"])
        set_sizes(call, vm, memory_dynamic_min=low, memory_dynamic_max=high, memory_target=low)
        if running:
            update_free_memory(db, record["resident_on"])


@rpc("VM.set_memory_dynamic_min(self: ref VM, value: int)", asynchronous=False)
async def set_memory_dynamic_min(call: Call, vm: str, value: int) -> None:
    high = call.pool.db.get("VM", vm, "memory_dynamic_max")
    await set_memory_dynamic_range(call, vm, value, high)


@rpc("VM.set_memory_dynamic_max(self: ref VM, value: int)", asynchronous=False)
async def set_memory_dynamic_max(call: Call, vm: str, value: int) -> None:
    low = call.pool.db.get("VM", vm, "memory_dynamic_min")
    await set_memory_dynamic_range(call, vm, low, value)


@rpc("VM.set_HVM_shadow_multiplier(self: ref VM, value: float)", asynchronous=False)
async def set_hvm_shadow_multiplier(call: Call, vm: str, value: float) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_shadow_memory")):
        _check_multiplier(value)
        set_sizes(call, vm, HVM_shadow_multiplier=value)


@rpc("VM.set_shadow_multiplier_live(self: ref VM, multiplier: float)")
async def set_shadow_multiplier_live(call: Call, vm: str, multiplier: float) -> None:
    claim = Claim("VM", vm, "changing_shadow_memory_live")
    async with call.pool.operations.hold(call.task, claim):
        _check_multiplier(multiplier)
        set_sizes(call, vm, HVM_shadow_multiplier=multiplier)


def _check_multiplier(value: float) -> None:
    if value < 1.0:
        raise ApiError("INVALID_VALUE", "multiplier", f"{value:g}")


def set_sizes(call: Call, vm: str, **fields: Any) -> None:
    """Write what a VM's memory overhead depends on, and the overhead."""
    call.pool.db.set("VM", vm, **fields)
    update_memory_overhead(call.pool.db, vm)


# -- processors ---------------------------------------------------------------------------------


@rpc("VM.set_VCPUs_max(self: ref VM, value: int)", asynchronous=False)
async def set_vcpus_max(call: Call, vm: str, value: int) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_VCPUs")):
        if value < max(1, call.pool.db.get("VM", vm, "VCPUs_at_startup")):
            raise ApiError("INVALID_VALUE", VCPU_RULE, str(value))
        set_sizes(call, vm, VCPUs_max=value)


@rpc("VM.set_VCPUs_at_startup(self: ref VM, value: int)", asynchronous=False)
def set_vcpus_at_startup(call: Call, vm: str, value: int) -> None:
    # Unlike VCPUs_max: no operation is held, so any power state will do.
    if call.pool.db.get("VM", vm, "is_control_domain"):
        text = "set_VCPUs_at_startup is not allowed on dom0"
        raise ApiError("OPERATION_NOT_ALLOWED", text)
    if not 0 < value <= call.pool.db.get("VM", vm, "VCPUs_max"):
        raise ApiError("INVALID_VALUE", VCPU_RULE, str(value))
    set_sizes(call, vm, VCPUs_at_startup=value)


@rpc("VM.set_VCPUs_number_live(self: ref VM, nvcpu: int)")
async def set_vcpus_number_live(call: Call, vm: str, nvcpu: int) -> None:
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_VCPUs_live")):
        most = db.get("VM", vm, "VCPUs_max")
        if not 0 < nvcpu <= most:
            raise internal_error(
                f"the maximum number of vcpus configured for this VM is currently: {most}"
            )
        db.set("VM", vm, VCPUs_at_startup=nvcpu)
        db.set("VM_metrics", db.get("VM", vm, "metrics"), VCPUs_number=nvcpu)


@rpc("VM.add_to_VCPUs_params_live(self: ref VM, key: string, value: string)")
async def add_to_vcpus_params_live(call: Call, vm: str, key: str, value: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "changing_VCPUs_live")):
        raise ApiError("NOT_IMPLEMENTED", "add_to_VCPUs_params_live")
