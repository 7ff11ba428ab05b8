"""VM: suspending to disk and resuming.

The memory goes into a VDI of type `suspend`, larger than the memory, which is destroyed at resume.
What is in it differs from one time to the next, and nothing else is resumed from.

Source: xapi: ocaml/xapi/xapi_xenops.ml (suspend, resume), helpers.ml (choose_suspend_sr),
message_forwarding.ml, xapi_vm.ml; ocaml/xenopsd/lib/suspend_image.ml.
"""

import json
from typing import Final
from uuid import UUID

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.vm.domain import (
    announce,
    enter,
    freeze,
    host_text,
    leave,
    nap_unless_cancelled,
)
from xorepd_lab.classes.vm.power import (
    ACKNOWLEDGE_S,
    BUILD_S,
    SHUTDOWN_TIMEOUT_S,
    devices_held,
    reserved,
)
from xorepd_lab.guests import agent as guest_agent
from xorepd_lab.guests import workload as guests
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.rules import placement
from xorepd_lab.rules.storage_rules import hosts_of
from xorepd_lab.rules.vm_rules import check_power_state

SAVE_S = 2.0
EXTRA_BYTES = 100 << 20
SIGNATURE: Final = b"XenSavedDomv2-\n"
PAGES: Final = 64
FRONT: Final = 8 << 20
"""How many pages of an image hold something, and in what part of it: as much as tells one image
from another."""


@rpc("VM.suspend(vm: ref VM)")
async def suspend(call: Call, vm: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "suspend")):
        call.pool.db.set("VM", vm, ha_always_run=False)
        await suspend_here(call, vm)
    announce(call, vm, "VM_SUSPENDED", "suspended")


@rpc("VM.resume(vm: ref VM, start_paused: bool, force: bool)")
async def resume(call: Call, vm: str, start_paused: bool, force: bool) -> None:
    async with (
        call.pool.operations.hold(call.task, Claim("VM", vm, "resume")),
        devices_held(call, vm, "VBD"),
    ):
        host = placement.choose_host(call.pool.db, vm)
        await _resume(call, vm, host, start_paused)
    announce(call, vm, "VM_RESUMED", f"resumed on host: {host_text(call, host)}")


@rpc("VM.resume_on(vm: ref VM, host: ref host, start_paused: bool, force: bool)")
async def resume_on(call: Call, vm: str, host: str, start_paused: bool, force: bool) -> None:
    async with (
        call.pool.operations.hold(call.task, Claim("VM", vm, "resume_on")),
        devices_held(call, vm, "VBD"),
    ):
        placement.check_host(call.pool.db, vm, host)
        await _resume(call, vm, host, start_paused)
    announce(call, vm, "VM_RESUMED", f"resumed on host: {host_text(call, host)}")


async def _resume(call: Call, vm: str, host: str, paused: bool) -> None:
    async with reserved(call, vm, host, "vm_resume"):
        await resume_here(call, vm, host, paused)


async def suspend_here(call: Call, vm: str) -> None:
    """Suspend a running VM; when that fails it runs on and no image is left.

    Raises:
        ApiError: VM_NO_SUSPEND_SR [vm], SR_SUSPEND_SPACE_INSUFFICIENT [sr], VM_FAILED_SUSPEND_-
            ACKNOWLEDGMENT [vm], VM_SUSPEND_TIMEOUT [vm, seconds].
    """
    db = call.pool.db
    image = await _make_image(call, vm)
    db.set("VM", vm, suspend_VDI=image)
    try:
        await _ask_guest(call, vm)
        await call.pool.clock.nap(SAVE_S)
        check_power_state(vm, db.get("VM", vm, "power_state"), "Running")
        await _save(call, image)
    except ApiError:
        db.set("VM", vm, suspend_VDI=NULL)
        await perform(call, "VDI.destroy", image)
        raise
    # What xenopsd knows of the domain: a VM cannot be made suspended without it.
    db.set("VM", vm, last_booted_record=json.dumps({"id": db.get("VM", vm, "uuid")}))
    freeze(call, vm)


async def resume_here(call: Call, vm: str, host: str, paused: bool) -> None:
    """Let a suspended VM go on at a host that was found fit for it.

    Raises:
        ApiError: VM_HAS_NO_SUSPEND_VDI ["VM", vm], and it is halted; INTERNAL_ERROR where the image
            is none, and it stays as it is.
    """
    db = call.pool.db
    record = db.record("VM", vm)
    image = record["suspend_VDI"]
    if image == NULL:
        leave(call, vm)
        raise ApiError("VM_HAS_NO_SUSPEND_VDI", "VM", vm)
    await _check_image(call, image)
    placement.update_memory_overhead(db, vm)
    await call.pool.clock.nap(BUILD_S)
    enter(call, vm, host, paused)
    if record["ha_restart_priority"] == "restart":
        db.set("VM", vm, ha_always_run=True)
    db.set("VM", vm, suspend_VDI=NULL)
    await perform(call, "VDI.destroy", image)


def suspend_sr(call: Call, vm: str) -> str:
    """Return where a VM's memory goes: the first of VM's, pool's and host's choice that its host
    sees.
    """
    db = call.pool.db
    host = db.get("VM", vm, "resident_on")
    wishes = (
        db.get("VM", vm, "suspend_SR"),
        db.get("pool", next(db.select("pool")), "suspend_image_SR"),
        db.get("host", host, "suspend_image_sr"),
    )
    for sr in wishes:
        if db.exists("SR", sr) and host in hosts_of(db, sr):
            return str(sr)
    raise ApiError("VM_NO_SUSPEND_SR", vm)


def image_bytes(static_max: int) -> int:
    """Return the size of the VDI for a VM's memory."""
    return int(static_max * 1.2 * 1.05) + EXTRA_BYTES


async def _make_image(call: Call, vm: str) -> str:
    sr = suspend_sr(call, vm)
    size = image_bytes(call.pool.db.get("VM", vm, "memory_static_max"))
    record = {
        "SR": sr,
        "name_label": "Suspend image",
        "name_description": "Suspend image",
        "virtual_size": size,
        "type": "suspend",
        "sharable": False,
        "read_only": False,
        "other_config": {},
        "sm_config": {
            "vmhint": call.pool.db.get("VM", vm, "uuid"),
            "initial_allocation": str(size),
        },
    }
    try:
        return str(await perform(call, "VDI.create", record))
    except ApiError as error:
        if error.code == "SR_BACKEND_FAILURE_44":
            raise ApiError("SR_SUSPEND_SPACE_INSUFFICIENT", sr) from error
        raise


async def _save(call: Call, image: str) -> None:
    """Write a signature and some pages that no other image has."""
    repository, uuid = call.pool.storage.of_vdi(image)

    def write() -> None:
        with repository.store.open(uuid, writable=True) as disk:
            disk.write(0, SIGNATURE.ljust(guests.PAGE, b"\0"))
            guests.write_random(disk, PAGES, UUID(uuid).int, (guests.PAGE, FRONT))

    await call.pool.in_thread(write)
    await repository.follow(uuid)


async def _check_image(call: Call, image: str) -> None:
    repository, uuid = call.pool.storage.of_vdi(image)

    def read() -> bytes:
        with repository.store.open(uuid) as disk:
            return disk.read(0, guests.PAGE)

    if not (await call.pool.in_thread(read)).startswith(SIGNATURE):
        raise ApiError("INTERNAL_ERROR", f"xenopsd internal error: no saved domain in VDI {uuid}")


async def _ask_guest(call: Call, vm: str) -> None:
    db = call.pool.db
    if guest_agent.behaves(db, vm, "deaf"):
        await nap_unless_cancelled(call, ACKNOWLEDGE_S)
        raise ApiError("VM_FAILED_SUSPEND_ACKNOWLEDGMENT", vm)
    if guest_agent.behaves(db, vm, "stuck"):
        await nap_unless_cancelled(call, SHUTDOWN_TIMEOUT_S)
        raise ApiError("VM_SUSPEND_TIMEOUT", vm, f"{SHUTDOWN_TIMEOUT_S:g}.")
