"""VBD: a disk or drive of a VM. Creating and destroying one only writes records.

Source: xapi: ocaml/xapi/xapi_vbd.ml, xapi_vbd_helpers.ml.
"""

import re
from typing import Any

from xorepd.lab.attachments import (
    activate,
    check_attach,
    deactivate,
    device_name,
    free_userdevice,
)
from xorepd.lab.dispatch import Call, rpc
from xorepd.lab.failures import NULL, ApiError
from xorepd.lab.generics import create_arguments
from xorepd.lab.schema import words

ATTACHABLE_TYPES = words("system user ephemeral suspend crashdump metadata rrd pvs_cache")
LAST_USERDEVICE = 254

_DISK_NAME = re.compile(r"(?:xvd|hd|sd)[a-z]{1,2}\d*$")


def _check_userdevice(call: Call, vm: str, userdevice: str) -> str:
    if userdevice == "autodetect":
        return free_userdevice(call.pool, vm)
    number = userdevice.isdigit() and int(userdevice) <= LAST_USERDEVICE
    if not number and not _DISK_NAME.match(userdevice):
        raise ApiError("INVALID_DEVICE", userdevice)
    for vbd in call.pool.db.get("VM", vm, "VBDs"):
        if call.pool.db.get("VBD", vbd, "userdevice") == userdevice:
            raise ApiError("DEVICE_ALREADY_EXISTS", userdevice)
    return userdevice


@rpc("VBD.create(args: record VBD)")
def create(call: Call, record: dict[str, Any]) -> str:
    fields = create_arguments("VBD", record)
    db = call.pool.db
    vm = db.record("VM", fields["VM"])
    if "migrate_send" in vm["current_operations"].values():
        raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VM", fields["VM"])
    if fields["type"] == "CD" and fields["mode"] != "RO":
        raise ApiError("VBD_CDS_MUST_BE_READONLY")
    if fields["empty"]:
        if fields["type"] != "CD":
            raise ApiError("VBD_NOT_REMOVABLE_MEDIA", "in constructor")
        fields["VDI"] = NULL
    else:
        vdi = db.record("VDI", fields["VDI"])
        if vdi["type"] not in ATTACHABLE_TYPES:
            raise ApiError("VDI_INCOMPATIBLE_TYPE", fields["VDI"], vdi["type"])
        if fields["mode"] == "RW" and vdi["read_only"]:
            raise ApiError("VDI_READONLY", fields["VDI"])
    fields["userdevice"] = _check_userdevice(call, fields["VM"], fields["userdevice"])
    if vm["power_state"] != "Suspended":
        fields.update(currently_attached=False, device="")
    ref = db.create("VBD", **fields)
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
def plug(call: Call, vbd: str) -> None:
    db = call.pool.db
    record = db.record("VBD", vbd)
    vm = db.record("VM", record["VM"])
    if vm["power_state"] != "Running":
        expected = "running, paused"
        raise ApiError("VM_BAD_POWER_STATE", record["VM"], expected, vm["power_state"].lower())
    if record["currently_attached"]:
        raise ApiError("DEVICE_ALREADY_ATTACHED", record["device"])
    attach(call, vbd)


@rpc("VBD.unplug(self: ref VBD)")
def unplug(call: Call, vbd: str) -> None:
    record = call.pool.db.record("VBD", vbd)
    if not record["currently_attached"]:
        raise ApiError("DEVICE_ALREADY_DETACHED", record["userdevice"])
    detach(call, vbd)


@rpc("VBD.unplug_force(self: ref VBD)")
def unplug_force(call: Call, vbd: str) -> None:
    detach(call, vbd)


@rpc("VBD.set_mode(self: ref VBD, value: vbd_mode)")
def set_mode(call: Call, vbd: str, value: str) -> None:
    record = call.pool.db.record("VBD", vbd)
    if record["currently_attached"]:
        raise ApiError("DEVICE_ALREADY_ATTACHED", record["device"])
    if record["type"] == "CD" and value != "RO":
        raise ApiError("VBD_CDS_MUST_BE_READONLY")
    call.pool.db.set("VBD", vbd, mode=value)


@rpc("VBD.eject(vbd: ref VBD)")
def eject(call: Call, vbd: str) -> None:
    record = call.pool.db.record("VBD", vbd)
    if record["type"] != "CD":
        raise ApiError("VBD_NOT_REMOVABLE_MEDIA", vbd)
    if record["empty"]:
        raise ApiError("VBD_IS_EMPTY", vbd)
    call.pool.db.set("VBD", vbd, empty=True, VDI=NULL)
    call.pool.operations.refresh("VBD", vbd)


@rpc("VBD.insert(vbd: ref VBD, vdi: ref VDI)")
def insert(call: Call, vbd: str, vdi: str) -> None:
    record = call.pool.db.record("VBD", vbd)
    call.pool.db.row("VDI", vdi)
    if record["type"] != "CD":
        raise ApiError("VBD_NOT_REMOVABLE_MEDIA", vbd)
    if not record["empty"]:
        raise ApiError("VBD_NOT_EMPTY", vbd)
    call.pool.db.set("VBD", vbd, empty=False, VDI=vdi)
    call.pool.operations.refresh("VBD", vbd)


def check_sharing(call: Call, vbd: str) -> None:
    """Raise VDI_IN_USE when another VM uses the disk; control domains are exempt on both sides."""
    db = call.pool.db
    record = db.record("VBD", vbd)
    vdi = db.record("VDI", record["VDI"])
    if vdi["sharable"]:
        return
    for other in vdi["VBDs"]:
        if other == vbd or not db.get("VBD", other, "currently_attached"):
            continue
        vm = db.record("VM", db.get("VBD", other, "VM"))
        if vm["is_control_domain"] or vm["power_state"] == "Suspended":
            continue
        if "RW" in (record["mode"], db.get("VBD", other, "mode")):
            raise ApiError("VDI_IN_USE", record["VDI"])


def attach(call: Call, vbd: str) -> None:
    """Give a running VM its disk."""
    db = call.pool.db
    record = db.record("VBD", vbd)
    if not record["empty"]:
        check_sharing(call, vbd)
        check_attach(
            call.pool, record["VDI"], db.get("VM", record["VM"], "resident_on"), record["mode"]
        )
        activate(call.pool, record["VDI"], record["mode"])
    userdevice = record["userdevice"]
    device = device_name(userdevice) if userdevice.isdigit() else userdevice
    db.set("VBD", vbd, currently_attached=True, device=device)
    call.pool.operations.refresh_vbd(vbd)


def detach(call: Call, vbd: str) -> None:
    db = call.pool.db
    record = db.record("VBD", vbd)
    if not record["currently_attached"]:
        return
    db.set("VBD", vbd, currently_attached=False, device="")
    if not record["empty"]:
        deactivate(call.pool, record["VDI"], record["mode"])
    call.pool.operations.refresh_vbd(vbd)
