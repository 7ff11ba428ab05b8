"""VDI: the setters that do more than write a field.

Source: xapi: ocaml/xapi/xapi_vdi.ml, message_forwarding.ml (module VDI), sm.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import ApiError, internal_error
from xorepd_lab.rules.storage_rules import check_plugged, check_served

SM_SESSION = "_sm_session"
"""Key of a session's `other_config` that holds the SR whose driver it belongs to."""
OF_DRIVERS = {
    "sharable": "bool",
    "read_only": "bool",
    "managed": "bool",
    "missing": "bool",
    "virtual_size": "int",
    "physical_utilisation": "int",
    "is_a_snapshot": "bool",
    "snapshot_of": "ref VDI",
    "snapshot_time": "datetime",
    "metadata_of_pool": "ref pool",
    "cbt_enabled": "bool",
}
"""Fields that drivers set through the API. Source: xapi: ocaml/xapi/message_forwarding.ml."""


@rpc("VDI.set_name_label(self: ref VDI, value: string)")
def set_name_label(call: Call, vdi: str, value: str) -> None:
    _tell_driver(call, vdi, name_label=value)


@rpc("VDI.set_name_description(self: ref VDI, value: string)")
def set_name_description(call: Call, vdi: str, value: str) -> None:
    _tell_driver(call, vdi, name_description=value)


def _tell_driver(call: Call, vdi: str, **fields: str) -> None:
    """Write fields that the driver is told of afterwards, which it may not like."""
    db = call.pool.db
    sr = db.get("VDI", vdi, "SR")
    check_plugged(db, sr)
    db.set("VDI", vdi, **fields)
    if sr in call.pool.storage.repositories:
        check_known(call, vdi)


def check_known(call: Call, vdi: str) -> None:
    """Raise what asking the driver about a VDI ends with of which it has no file."""
    repository, uuid = call.pool.storage.of_vdi(vdi)
    try:
        repository.check_file(vdi)
    except ApiError as error:
        text = f"Storage_interface.Storage_error ([S(Vdi_does_not_exist);S({uuid})])"
        raise internal_error(text) from error


def _declare_setters_of_drivers() -> None:
    """Declare the setters that only a storage driver's own session may use."""

    def declare(name: str, kind: str) -> None:
        @rpc(f"VDI.set_{name}(self: ref VDI, value: {kind})", asynchronous=False)
        def setter(call: Call, vdi: str, value: Any) -> None:
            db = call.pool.db
            sr = db.get("VDI", vdi, "SR")
            if db.get("session", call.session, "other_config").get(SM_SESSION) != sr:
                raise ApiError("PERMISSION_DENIED", "")
            db.set("VDI", vdi, **{name: value})
            call.pool.operations.refresh("VDI", vdi)

    for name, kind in OF_DRIVERS.items():
        declare(name, kind)


_declare_setters_of_drivers()


@rpc("VDI.set_allow_caching(self: ref VDI, value: bool)")
def set_allow_caching(call: Call, vdi: str, value: bool) -> None:
    _check_halted(call, vdi)
    call.pool.db.set("VDI", vdi, allow_caching=value)


@rpc("VDI.set_on_boot(self: ref VDI, value: on_boot)")
async def set_on_boot(call: Call, vdi: str, value: str) -> None:
    _check_halted(call, vdi)
    db = call.pool.db
    sr = db.get("VDI", vdi, "SR")
    claims = (Claim("SR", sr, "vdi_set_on_boot"), Claim("VDI", vdi, "set_on_boot"))
    async with call.pool.operations.hold(call.task, *claims):
        check_served(db, vdi)
        db.set("VDI", vdi, on_boot=value)


def _check_halted(call: Call, vdi: str) -> None:
    """Raise VM_BAD_POWER_STATE unless every VM with the disk, attached or not, is halted."""
    db = call.pool.db
    for vbd in db.get("VDI", vdi, "VBDs"):
        vm = db.get("VBD", vbd, "VM")
        state = db.get("VM", vm, "power_state")
        if state != "Halted":
            raise ApiError("VM_BAD_POWER_STATE", vm, "halted", state.lower())
