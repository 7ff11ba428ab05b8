"""PBD: how a host reaches an SR.

Source: xapi: ocaml/xapi/xapi_pbd.ml, message_forwarding.ml (module PBD).
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.generics import create_arguments
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import ApiError


@rpc("PBD.create(args: record PBD)")
async def create(call: Call, record: dict[str, Any]) -> str:
    fields = create_arguments("PBD", record)
    db, sr, host = call.pool.db, fields["SR"], fields["host"]
    db.row("host", host)
    async with call.pool.operations.hold(call.task, Claim("SR", sr, "pbd_create")):
        for pbd in db.select("PBD", SR=sr, host=host):
            raise ApiError("PBD_EXISTS", sr, host, pbd)
        _check_device_config(fields["device_config"])
        # Accepted and forgotten, as the real one does.
        return db.create("PBD", **(fields | {"other_config": {}}))


@rpc("PBD.destroy(self: ref PBD)")
async def destroy(call: Call, pbd: str) -> None:
    db = call.pool.db
    sr = db.get("PBD", pbd, "SR")
    async with call.pool.operations.hold(call.task, Claim("SR", sr, "pbd_destroy")):
        if db.get("PBD", pbd, "currently_attached"):
            raise ApiError("OPERATION_NOT_ALLOWED", "PBD is currently attached")
        db.destroy("PBD", pbd)


@rpc("PBD.set_device_config(self: ref PBD, value: map string string)")
def set_device_config(call: Call, pbd: str, value: dict[str, str]) -> None:
    _check_device_config(value)
    call.pool.db.set("PBD", pbd, device_config=value)


@rpc("PBD.plug(self: ref PBD)")
async def plug(call: Call, pbd: str) -> None:
    record = call.pool.db.record("PBD", pbd)
    async with call.pool.operations.hold(call.task, Claim("SR", record["SR"], "plug")):
        call.pool.life.check_reachable(record["host"])
        _check_sharing(call, record)
        await call.pool.storage.attach(record["SR"])
        set_plugged(call, pbd, plugged=True)


@rpc("PBD.unplug(self: ref PBD)")
async def unplug(call: Call, pbd: str) -> None:
    record = call.pool.db.record("PBD", pbd)
    async with call.pool.operations.hold(call.task, Claim("SR", record["SR"], "unplug")):
        call.pool.life.check_reachable(record["host"])
        used = _in_use(call, record)
        if used:
            raise ApiError("VDI_IN_USE", *used)
        set_plugged(call, pbd, plugged=False)


def set_plugged(call: Call, pbd: str, plugged: bool) -> None:
    """Note whether the host sees the SR, and compute what follows from it anew."""
    pool, db = call.pool, call.pool.db
    db.set("PBD", pbd, currently_attached=plugged)
    sr = db.get("PBD", pbd, "SR")
    if db.exists("SR", sr):
        pool.operations.refresh("SR", sr)
        for vdi in db.get("SR", sr, "VDIs"):
            pool.operations.refresh("VDI", vdi)


def _check_sharing(call: Call, record: dict[str, Any]) -> None:
    """Raise SR_NOT_SHARABLE when another host has a local SR already."""
    db = call.pool.db
    if db.get("SR", record["SR"], "shared"):
        return
    for other in db.select("PBD", SR=record["SR"], currently_attached=True):
        if db.get("PBD", other, "host") != record["host"]:
            raise ApiError("SR_NOT_SHARABLE", record["SR"], db.get("PBD", other, "host"))


def _in_use(call: Call, record: dict[str, Any]) -> list[str]:
    """Return the SR's VDIs that VMs on the host have attached, the control domain included."""
    db = call.pool.db
    found = []
    for vm in db.get("host", record["host"], "resident_VMs"):
        for vbd in map(db.record, ["VBD"] * 255, db.get("VM", vm, "VBDs")):
            used = vbd["currently_attached"] and not vbd["empty"]
            if used and db.get("VDI", vbd["VDI"], "SR") == record["SR"]:
                found.append(vbd["VDI"])
    return found


def _check_device_config(config: dict[str, str]) -> None:
    if "SRmaster" in config:
        raise ApiError(
            "VALUE_NOT_SUPPORTED",
            "SRmaster",
            config["SRmaster"],
            "This key is for internal use only",
        )
