"""VBD: a disk or drive of a VM. Creating and destroying one only writes records.

Source: xapi: ocaml/xapi/xapi_vbd.ml, xapi_vbd_helpers.ml, message_forwarding.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.generics import create_arguments
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.storage.attachments import activate, check_attach, deactivate
from xorepd_lab.guests import agent as guest_agent
from xorepd_lab.model.failures import NULL, ApiError, incompatible_type
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import words
from xorepd_lab.rules.device_numbers import is_integer, linux_name, possible_devices, read_device
from xorepd_lab.rules.device_rules import check_vbd
from xorepd_lab.rules.vm_rules import check_power_state

ATTACHABLE_TYPES = words("system user ephemeral suspend crashdump metadata rrd pvs_cache")
LAST_USERDEVICE = 254
"""Of those that `autodetect` gives; whoever asks for a higher number gets it."""
MIGRATIONS = ("migrate_send", "pool_migrate")
HOTPLUG_S = 0.5
"""Order of a second in reality; not measured."""


@rpc("VBD.create(args: record VBD)")
def create(call: Call, record: dict[str, Any]) -> str:
    fields = create_arguments("VBD", record)
    db = call.pool.db
    vm = db.record("VM", fields["VM"])
    vdi = NULL if fields["empty"] else fields["VDI"]
    if not fields["empty"] and db.get("VDI", vdi, "type") not in ATTACHABLE_TYPES:
        raise incompatible_type(vdi, db.get("VDI", vdi, "type"))
    if fields["type"] == "CD" and fields["mode"] != "RO":
        raise ApiError("VBD_CDS_MUST_BE_READONLY")
    if fields["type"] != "CD" and fields["empty"]:
        raise ApiError("VBD_NOT_REMOVABLE_MEDIA", "in constructor")
    if fields["mode"] == "RW" and db.get("VDI", vdi, "read_only"):
        raise ApiError("VDI_READONLY", vdi)
    for task, operation in vm["current_operations"].items():
        if operation in MIGRATIONS:
            raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VM", fields["VM"], operation, task)
    fields["userdevice"] = _check_userdevice(db, fields["VM"], fields["userdevice"], fields["type"])
    if vm["power_state"] != "Suspended":
        fields.update(currently_attached=False, device="")
    ref = db.create("VBD", **{**fields, "VDI": vdi})
    call.pool.operations.refresh_vbd(ref)
    return ref


@rpc("VBD.destroy(self: ref VBD)")
def destroy(call: Call, vbd: str) -> None:
    db = call.pool.db
    record = db.record("VBD", vbd)
    if record["currently_attached"] and db.exists("VM", record["VM"]):
        vm_uuid = db.get("VM", record["VM"], "uuid")
        text = f"VBD '{record['uuid']}' still attached to '{vm_uuid}'"
        raise ApiError("OPERATION_NOT_ALLOWED", text)
    db.destroy("VBD", vbd)
    call.pool.operations.refresh("VDI", record["VDI"])


@rpc("VBD.plug(self: ref VBD)")
async def plug(call: Call, vbd: str) -> None:
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VBD", vbd, "plug")):
        record = db.record("VBD", vbd)
        vm = db.record("VM", record["VM"])
        hvm = vm["domain_type"] == "hvm" and not vm["is_control_domain"]
        if hvm and record["type"] != "CD" and record["mode"] == "RO":
            raise ApiError("DISK_VBD_MUST_BE_READWRITE_FOR_HVM", vbd)
        await call.pool.clock.nap(HOTPLUG_S)
        attach(call, vbd)
    call.pool.operations.refresh_vbd(vbd)


@rpc("VBD.unplug(self: ref VBD)")
async def unplug(call: Call, vbd: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VBD", vbd, "unplug")):
        await call.pool.clock.nap(HOTPLUG_S)
        vm = call.pool.db.get("VBD", vbd, "VM")
        if guest_agent.behaves(call.pool.db, vm, "holds-disks"):
            text = "Device is in use by the guest"
            raise ApiError("DEVICE_DETACH_REJECTED", "VBD", vbd, text)
        detach(call, vbd)
    call.pool.operations.refresh_vbd(vbd)


@rpc("VBD.unplug_force(self: ref VBD)")
async def unplug_force(call: Call, vbd: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VBD", vbd, "unplug_force")):
        detach(call, vbd)
    call.pool.operations.refresh_vbd(vbd)


@rpc("VBD.assert_attachable(self: ref VBD)")
def assert_attachable(call: Call, vbd: str) -> None:
    check_vbd(call.pool.db, vbd, "attach")


@rpc("VBD.set_mode(self: ref VBD, value: vbd_mode)")
def set_mode(call: Call, vbd: str, value: str) -> None:
    db = call.pool.db
    vm = db.get("VBD", vbd, "VM")
    check_power_state(vm, db.get("VM", vm, "power_state"), "Halted")
    db.set("VBD", vbd, mode=value)


@rpc("VBD.insert(vbd: ref VBD, vdi: ref VDI)")
async def insert(call: Call, vbd: str, vdi: str) -> None:
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VBD", vbd, "insert")):
        if not db.get("VDI", vdi, "managed"):
            raise ApiError("VDI_NOT_MANAGED", vdi)
        host, mode = (
            db.get("VM", db.get("VBD", vbd, "VM"), "resident_on"),
            db.get("VBD", vbd, "mode"),
        )
        if host != NULL:
            await call.pool.clock.nap(HOTPLUG_S)
            check_attach(call.pool, vdi, host, mode)
            activate(call.pool, vdi, mode, host)
        db.set("VBD", vbd, empty=False, VDI=vdi)
    call.pool.operations.refresh_vbd(vbd)


@rpc("VBD.eject(vbd: ref VBD)")
async def eject(call: Call, vbd: str) -> None:
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VBD", vbd, "eject")):
        vdi = db.get("VBD", vbd, "VDI")
        if db.get("VM", db.get("VBD", vbd, "VM"), "resident_on") != NULL:
            await call.pool.clock.nap(HOTPLUG_S)
        db.set("VBD", vbd, empty=True, VDI=NULL)
        deactivate(call.pool, vdi)
    call.pool.operations.refresh("VBD", vbd)
    call.pool.operations.refresh("VDI", vdi)


def free_devices(db: Registry, vm: str) -> list[str]:
    """Return the numbers that no disk of the VM has, lowest first."""
    used = _used_devices(db, vm)
    numbers = (str(number) for number in range(LAST_USERDEVICE + 1))
    return [number for number in numbers if not possible_devices(number) & used]


def attach(call: Call, vbd: str) -> None:
    """Give a VM's domain its disk. The VM has its host already."""
    db = call.pool.db
    record = db.record("VBD", vbd)
    if not record["empty"]:
        host = db.get("VM", record["VM"], "resident_on")
        check_attach(call.pool, record["VDI"], host, record["mode"])
        activate(call.pool, record["VDI"], record["mode"], host)
    db.set("VBD", vbd, currently_attached=True, device=linux_name(record["userdevice"]))


def detach(call: Call, vbd: str) -> None:
    """Take the disk away; of a suspended VM the host had let go of it before."""
    db = call.pool.db
    record = db.record("VBD", vbd)
    if record["currently_attached"]:
        db.set("VBD", vbd, currently_attached=False, device="")
        deactivate(call.pool, record["VDI"])


def let_go(call: Call, vbd: str) -> None:
    """Let the host release a disk of a VM that is suspended; on paper it stays attached."""
    deactivate(call.pool, call.pool.db.get("VBD", vbd, "VDI"))


def _check_userdevice(db: Registry, vm: str, userdevice: str, kind: str) -> str:
    """Return the device that a new VBD gets.

    Raises:
        ApiError: INVALID_DEVICE [device], DEVICE_ALREADY_EXISTS [device].
    """
    if userdevice == "autodetect":
        free = free_devices(db, vm)
        if not free:
            raise ApiError("INVALID_DEVICE", userdevice)
        return free[0]
    # Any integer passes, even one that is no device.
    known = read_device(userdevice, hvm=False) is not None
    if not known and (kind == "Floppy" or not is_integer(userdevice)):
        raise ApiError("INVALID_DEVICE", userdevice)
    if possible_devices(userdevice) & _used_devices(db, vm):
        raise ApiError("DEVICE_ALREADY_EXISTS", userdevice)
    return userdevice


def _used_devices(db: Registry, vm: str) -> set[Any]:
    records = [db.record("VBD", vbd) for vbd in db.get("VM", vm, "VBDs")]
    texts = {text for record in records for text in (record["userdevice"], record["device"])}
    return {device for text in texts for device in possible_devices(text)}
