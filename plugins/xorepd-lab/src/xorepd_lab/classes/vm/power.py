"""VM: starting and stopping.

Source: xapi: ocaml/xapi/message_forwarding.ml, xapi_vm.ml, xapi_xenops.ml;
ocaml/xenopsd/lib/xenops_server.ml (VM_shutdown_domain).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.operations import QUICKLY_S, Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.vm.domain import (
    announce,
    await_tools,
    enter,
    host_text,
    leave,
    nap_unless_cancelled,
)
from xorepd_lab.classes.vm.settings import ensure_bios_strings
from xorepd_lab.guests import agent as guest_agent
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.rules import placement
from xorepd_lab.rules.placement import choose_host, is_live
from xorepd_lab.rules.vm_rules import has_tools

BUILD_S = 1.0
"""What building or restoring a domain takes; order of a second, not measured."""
SHUTDOWN_S = 2.0
"""What a guest of the lab takes to shut down."""
ACKNOWLEDGE_S = 60.0
"""How long a guest has to acknowledge a request."""
SHUTDOWN_TIMEOUT_S = 1200.0
DEVICE_MODEL = "qemu-upstream-compat"
UEFI_DEVICE_MODEL = "qemu-upstream-uefi"

INTERRUPTED_BY_REBOOT = {"clean_shutdown", "clean_reboot", "pool_migrate", "call_plugin", "suspend"}
INTERRUPTED_BY_SHUTDOWN = INTERRUPTED_BY_REBOOT | {"hard_reboot", "shutdown"}


@rpc("VM.start(vm: ref VM, start_paused: bool, force: bool)")
async def start(call: Call, vm: str, start_paused: bool, force: bool) -> None:
    async with (
        call.pool.operations.hold(call.task, Claim("VM", vm, "start")),
        devices_held(call, vm),
    ):
        prepare(call, vm)
        host = choose_host(call.pool.db, vm)
        await _start(call, vm, host, start_paused)
    announce(call, vm, "VM_STARTED", f"started on host: {host_text(call, host)}")


@rpc("VM.start_on(vm: ref VM, host: ref host, start_paused: bool, force: bool)")
async def start_on(call: Call, vm: str, host: str, start_paused: bool, force: bool) -> None:
    db = call.pool.db
    if "evacuate" in db.get("host", host, "current_operations").values():
        raise ApiError("HOST_EVACUATE_IN_PROGRESS", host)
    async with (
        call.pool.operations.hold(call.task, Claim("VM", vm, "start_on")),
        devices_held(call, vm),
    ):
        prepare(call, vm)
        check_host(call, vm, host)
        await _start(call, vm, host, start_paused)
    announce(call, vm, "VM_STARTED", f"started on host: {host_text(call, host)}")


async def _start(call: Call, vm: str, host: str, paused: bool) -> None:
    async with reserved(call, vm, host, "vm_start"):
        await nap_unless_cancelled(call, BUILD_S)
        boot(call, vm, host, paused)
    await call.pool.clock.nap(call.pool.db.get("VM", vm, "start_delay"))


@rpc("VM.clean_shutdown(vm: ref VM)")
async def clean_shutdown(call: Call, vm: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "clean_shutdown")):
        await _shut_down(call, vm, SHUTDOWN_TIMEOUT_S)
    announce(call, vm, "VM_SHUTDOWN", "shutdown")


@rpc("VM.hard_shutdown(vm: ref VM)")
async def hard_shutdown(call: Call, vm: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "hard_shutdown")):
        await _interrupt(call, vm, INTERRUPTED_BY_SHUTDOWN)
        await _pull_the_plug(call, vm)
    announce(call, vm, "VM_SHUTDOWN", "shutdown forcibly")


@rpc("VM.shutdown(vm: ref VM)")
async def shutdown(call: Call, vm: str) -> None:
    """Shut down cleanly, by force when that fails; a suspended VM loses its memory."""
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "shutdown")):
        patience = float(db.get("VM", vm, "shutdown_delay")) or SHUTDOWN_TIMEOUT_S
        running = db.get("VM", vm, "power_state") == "Running"
        if not (running and await _obeys(call, vm, patience)):
            await _pull_the_plug(call, vm)
    announce(call, vm, "VM_SHUTDOWN", "shutdown")


@rpc("VM.clean_reboot(vm: ref VM)")
async def clean_reboot(call: Call, vm: str) -> None:
    async with (
        call.pool.operations.hold(call.task, Claim("VM", vm, "clean_reboot")),
        devices_held(call, vm),
    ):
        await _ask_guest(call, vm, SHUTDOWN_TIMEOUT_S)
        _reboot(call, vm)
    announce(call, vm, "VM_REBOOTED", "rebooted cleanly")


@rpc("VM.hard_reboot(vm: ref VM)")
async def hard_reboot(call: Call, vm: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "hard_reboot")):
        await _interrupt(call, vm, INTERRUPTED_BY_REBOOT)
        async with devices_held(call, vm):
            if call.pool.db.get("VM", vm, "power_state") == "Halted":
                # What was interrupted had come that far.
                boot(call, vm, choose_host(call.pool.db, vm), paused=False)
            else:
                _reboot(call, vm)
    announce(call, vm, "VM_REBOOTED", "rebooted forcibly")


@rpc("VM.pause(vm: ref VM)")
async def pause(call: Call, vm: str) -> None:
    await _switch(call, vm, "pause", "Paused", "VM_PAUSED", "paused")


@rpc("VM.unpause(vm: ref VM)")
async def unpause(call: Call, vm: str) -> None:
    await _switch(call, vm, "unpause", "Running", "VM_UNPAUSED", "unpaused")


@rpc("VM.power_state_reset(vm: ref VM)")
def power_state_reset(call: Call, vm: str) -> None:
    """Declare a VM halted whose host is gone; no operation is held and none can prevent it."""
    db = call.pool.db
    record = db.record("VM", vm)
    if record["is_control_domain"]:
        raise ApiError("CANNOT_RESET_CONTROL_DOMAIN", vm)
    if record["power_state"] in ("Running", "Paused"):
        if record["resident_on"] == call.host:
            raise ApiError("DOMAIN_EXISTS", vm)
        if db.exists("host", record["resident_on"]) and is_live(db, record["resident_on"]):
            raise ApiError("HOST_IS_LIVE", record["resident_on"])
    db.set("VM", vm, current_operations={})
    halt(call, vm)


# -- shared with suspending, migrating and the building of a lab --------------------------------


@asynccontextmanager
async def devices_held(call: Call, vm: str, cls: str = "VBD VIF") -> AsyncIterator[None]:
    """Hold the VBDs and VIFs of a VM for `attach`, so that nobody takes its disks meanwhile.

    Args:
        cls: `VBD`, `VIF` or both.
    """
    db, hold = call.pool.db, call.pool.operations.hold
    vbds = [Claim("VBD", vbd, "attach") for vbd in db.get("VM", vm, "VBDs") if "VBD" in cls]
    vifs = [Claim("VIF", vif, "attach") for vif in db.get("VM", vm, "VIFs") if "VIF" in cls]
    try:
        async with hold(call.task, *vbds, patience_s=QUICKLY_S), hold(call.task, *vifs):
            yield
    finally:
        if db.exists("VM", vm):
            call.pool.operations.refresh_vm(vm)


@asynccontextmanager
async def reserved(call: Call, vm: str, host: str, operation: str) -> AsyncIterator[None]:
    """Reserve a host's memory for a VM that is about to get there.

    Args:
        operation: What the host shows as going on: `vm_start`, `vm_resume` or `vm_migrate`.
    """
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("host", host, operation)):
        db.set("VM", vm, scheduled_to_be_resident_on=host)
        try:
            yield
        finally:
            if db.exists("VM", vm):
                db.set("VM", vm, scheduled_to_be_resident_on=NULL)


def check_host(call: Call, vm: str, host: str) -> None:
    """Raise what keeps a VM from running on a host."""
    placement.check_host(call.pool.db, vm, host)


def prepare(call: Call, vm: str) -> None:
    """Fill in what a VM must have before a host is chosen."""
    db = call.pool.db
    record = db.record("VM", vm)
    if record["domain_type"] == "unspecified":
        db.set("VM", vm, domain_type="hvm" if record["HVM_boot_policy"] else "pv")
    placement.update_memory_overhead(db, vm)
    ensure_bios_strings(db, vm)


def boot(call: Call, vm: str, host: str, paused: bool, tools_at_once: bool = False) -> None:
    """Run a halted VM on a host at once; its tools are seen some time later, or now if so told."""
    db = call.pool.db
    record = db.record("VM", vm)
    db.set(
        "VM",
        vm,
        platform=_with_device_model(record),
        ha_always_run=record["ha_always_run"] or record["ha_restart_priority"] == "restart",
    )
    guest_agent.drop_report(db, vm)
    enter(call, vm, host, paused)
    if tools_at_once:
        guest_agent.report_tools(call.pool, vm)
    elif not paused:
        await_tools(call, vm)


def halt(call: Call, vm: str) -> None:
    """Make a VM halted at once, as when its domain dies."""
    leave(call, vm)


def _reboot(call: Call, vm: str) -> None:
    host = call.pool.db.get("VM", vm, "resident_on")
    leave(call, vm)
    guest_agent.drop_report(call.pool.db, vm)
    enter(call, vm, host, paused=False)
    await_tools(call, vm)


async def _switch(call: Call, vm: str, operation: str, state: str, name: str, text: str) -> None:
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, operation)):
        db.set("VM", vm, power_state=state)
        if state == "Running" and not has_tools(db, vm):
            await_tools(call, vm)  # it was started paused
    announce(call, vm, name, text)
    call.pool.operations.refresh_vm(vm)


async def _shut_down(call: Call, vm: str, patience_s: float) -> None:
    call.pool.db.set("VM", vm, ha_always_run=False)
    await _ask_guest(call, vm, patience_s)
    leave(call, vm)
    await call.pool.clock.nap(call.pool.db.get("VM", vm, "shutdown_delay"))


async def _obeys(call: Call, vm: str, patience_s: float) -> bool:
    """Shut down cleanly; tell whether that worked, whatever was in its way."""
    try:
        await _shut_down(call, vm, patience_s)
    except ApiError:
        return False
    return True


async def _ask_guest(call: Call, vm: str, patience_s: float) -> None:
    """Ask the guest to shut down and wait until it has.

    Raises:
        ApiError: VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT [vm]; VM_SHUTDOWN_TIMEOUT [vm, seconds];
            TASK_CANCELLED.
    """
    db = call.pool.db
    if guest_agent.behaves(db, vm, "deaf") or not guest_agent.has_drivers(db, vm):
        await nap_unless_cancelled(call, min(ACKNOWLEDGE_S, patience_s))
        raise ApiError("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", vm)
    if guest_agent.behaves(db, vm, "stuck"):
        await nap_unless_cancelled(call, patience_s)
        # As OCaml writes floats.
        raise ApiError("VM_SHUTDOWN_TIMEOUT", vm, f"{patience_s:g}.")
    await nap_unless_cancelled(call, SHUTDOWN_S)


async def _pull_the_plug(call: Call, vm: str) -> None:
    db = call.pool.db
    db.set("VM", vm, ha_always_run=False)
    state, image = db.get("VM", vm, "power_state"), db.get("VM", vm, "suspend_VDI")
    if state == "Halted":
        return
    if state == "Suspended":
        await destroy_quietly(call, image)
        leave(call, vm)
        return
    leave(call, vm)
    await call.pool.clock.nap(db.get("VM", vm, "shutdown_delay"))


async def destroy_quietly(call: Call, vdi: str) -> None:
    """Destroy a VDI if that is possible."""
    try:
        if call.pool.db.exists("VDI", vdi):
            await perform(call, "VDI.destroy", vdi)
    except ApiError as error:
        call.pool.log.warning("vdi.left", vdi=vdi, error=str(error))


async def _interrupt(call: Call, vm: str, operations: set[str]) -> None:
    """Cancel what else is done to a VM and wait for its end."""
    db = call.pool.db
    current: dict[str, str] = db.get("VM", vm, "current_operations")
    tasks = [task for task, operation in current.items() if operation in operations]
    for task in tasks:
        if db.exists("task", task):
            call.pool.tasks.cancel(task, call.task)
    while _still(db, vm, tasks):
        await db.changed()


def _still(db: Registry, vm: str, tasks: list[str]) -> bool:
    return db.exists("VM", vm) and any(
        task in db.get("VM", vm, "current_operations") for task in tasks
    )


def _with_device_model(vm: dict[str, Any]) -> dict[str, str]:
    """Return the platform with the device model that an HVM guest needs."""
    if vm["domain_type"] == "pv" or "device-model" in vm["platform"]:
        return dict(vm["platform"])
    uefi = vm["HVM_boot_params"].get("firmware") == "uefi"
    return {"device-model": UEFI_DEVICE_MODEL if uefi else DEVICE_MODEL, **vm["platform"]}
