"""Which operation a VBD or a VIF takes now, and the error that says why not.

Source: xapi: ocaml/xapi/xapi_vbd_helpers.ml, xapi_vif_helpers.ml (valid_operations).
"""

from collections.abc import Callable
from typing import Any

from xorepd_lab.model.datamodel import ENUMS
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.rules.vm_rules import check_power_state, has_tools

PLUGS = {"plug", "unplug", "unplug_force"}
USES = {"attach", "plug", "insert"}
"""What gives the VM a disk."""
VM_GOES_AWAY = {"clean_shutdown", "hard_shutdown", "suspend", "pause"}
HARMLESS_TO_VBDS = {"mirror", "copy"}
CD_TEXT = "HVM CDROMs cannot be hotplugged/unplugged, only inserted or ejected"


def check_vbd(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on a VBD."""
    _check_vbd(db, ref, operation)
    vbd = db.record("VBD", ref)
    if operation in USES and not vbd["empty"] and not vbd["currently_attached"]:
        check_sharing(db, ref)


def check_vif(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on a VIF."""
    vif = db.record("VIF", ref)
    vm = db.record("VM", vif["VM"])
    if vif["current_operations"]:
        listed = (vif["current_operations"].values(), vif["current_operations"])
        texts = [f"{{{'; '.join(names)}}}" for names in listed]
        raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VIF", ref, *texts)
    if operation not in PLUGS:
        return
    if operation == "plug" and vm["is_control_domain"]:
        raise ApiError("OPERATION_NOT_ALLOWED", "Control domain does not support hotplug")
    _check_plugged(ref, vif, vm, operation)
    _check_vm_stays(vif["VM"], vm)
    _check_hotplug(db, vif["VM"], vm, "VIF")


def check_sharing(db: Registry, ref: str) -> None:
    """Raise VDI_IN_USE [vdi] when another VM uses the disk; control domains do not count."""
    vbd = db.record("VBD", ref)
    vdi = db.record("VDI", vbd["VDI"])
    others = [other for other in vdi["VBDs"] if other != ref and _is_used(db, other)]
    writes = vbd["mode"] == "RW"
    written = any(db.get("VBD", other, "mode") == "RW" for other in others)
    exempt = vdi["sharable"] or db.get("VM", vbd["VM"], "is_control_domain")
    if not exempt and (written or (writes and others)):
        raise ApiError("VDI_IN_USE", vbd["VDI"])
    if writes and vdi["read_only"]:
        raise ApiError("VDI_READONLY", vbd["VDI"])


def allowed_vbd_operations(db: Registry, ref: str) -> list[str]:
    # Sharing is not looked at here: XAPI spares itself the cost.
    return _allowed(db, ref, "VBD", "vbd_operations", _check_vbd)


def allowed_vif_operations(db: Registry, ref: str) -> list[str]:
    return _allowed(db, ref, "VIF", "vif_operations", check_vif)


def _check_vbd(db: Registry, ref: str, operation: str) -> None:
    vbd = db.record("VBD", ref)
    vm = db.record("VM", vbd["VM"])
    for task, running in vbd["current_operations"].items():
        raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VBD", ref, running, task)
    if operation in ("unplug", "unplug_force") and not vbd["unpluggable"]:
        raise ApiError("VBD_NOT_UNPLUGGABLE", ref)
    if operation in ("insert", "eject"):
        _check_media(ref, vbd, operation)
    if operation in PLUGS:
        _check_plugged(ref, vbd, vm, operation)
    elif operation in ("pause", "unpause"):
        allowed = "Running" if vm["power_state"] != "Paused" else "Running Paused"
        check_power_state(vbd["VM"], vm["power_state"], allowed)
    if operation in ("plug", "unplug"):
        _check_vm_stays(vbd["VM"], vm)
    if operation in PLUGS and not vm["is_control_domain"]:
        _check_hotplug(db, vbd["VM"], vm, "VBD")
        if vm["domain_type"] == "hvm" and vbd["type"] == "CD":
            raise ApiError("OPERATION_NOT_ALLOWED", CD_TEXT)
    if operation in ("insert", "eject") and vm["power_state"] == "Suspended":
        check_power_state(vbd["VM"], "Suspended", "Halted Running")
    if not vbd["empty"]:
        _check_vdi(db, ref, vbd["VDI"], operation)


def _check_media(ref: str, vbd: dict[str, Any], operation: str) -> None:
    if vbd["type"] != "CD":
        raise ApiError("VBD_NOT_REMOVABLE_MEDIA", ref)
    if operation == "eject" and vbd["empty"]:
        raise ApiError("VBD_IS_EMPTY", ref)
    if operation == "insert" and not vbd["empty"]:
        raise ApiError("VBD_NOT_EMPTY", ref)


def _check_plugged(ref: str, device: dict[str, Any], vm: dict[str, Any], operation: str) -> None:
    check_power_state(device["VM"], vm["power_state"], "Running")
    if operation == "plug" and device["currently_attached"]:
        raise ApiError("DEVICE_ALREADY_ATTACHED", ref)
    if operation != "plug" and not device["currently_attached"]:
        raise ApiError("DEVICE_ALREADY_DETACHED", ref)


def _check_vm_stays(ref: str, vm: dict[str, Any]) -> None:
    for operation in vm["current_operations"].values():
        if operation in VM_GOES_AWAY:
            text = f"Current operation on VM:{ref} is {operation}"
            raise ApiError("OPERATION_NOT_ALLOWED", text)


def _check_hotplug(db: Registry, ref: str, vm: dict[str, Any], kind: str) -> None:
    """Check that an HVM guest has drivers for hotplug, or says that it needs none."""
    if vm["domain_type"] != "hvm":
        return
    claim, detected = "unspecified", False
    if db.exists("VM_guest_metrics", vm["guest_metrics"]):
        metrics = db.record("VM_guest_metrics", vm["guest_metrics"])
        claim, detected = metrics[f"can_use_hotplug_{kind.lower()}"], metrics["PV_drivers_detected"]
    if claim == "no":
        text = f"VM states it does not support {kind} hotplug."
        raise ApiError("OPERATION_NOT_ALLOWED", text)
    if claim != "yes" and not detected and not has_tools(db, ref):
        raise ApiError("VM_MISSING_PV_DRIVERS", ref)


def _check_vdi(db: Registry, ref: str, vdi_ref: str, operation: str) -> None:
    vdi = db.record("VDI", vdi_ref)
    if not vdi["managed"]:
        raise ApiError("VDI_NOT_MANAGED", ref)
    if operation not in USES:
        return
    for task, running in vdi["current_operations"].items():
        if running not in HARMLESS_TO_VBDS:
            raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VDI", vdi_ref, running, task)


def _is_used(db: Registry, ref: str) -> bool:
    """Tell whether a VBD keeps others from its disk: used by a VM that is neither suspended nor a
    control domain.
    """
    vbd = db.record("VBD", ref)
    if not vbd["currently_attached"] and not vbd["current_operations"]:
        return False
    vm = db.record("VM", vbd["VM"])
    return not vm["is_control_domain"] and vm["power_state"] != "Suspended"


def _allowed(
    db: Registry, ref: str, cls: str, enum: str, check: Callable[[Registry, str, str], None]
) -> list[str]:
    if not db.exists("VM", db.get(cls, ref, "VM")):
        return []
    names = []
    for name in ENUMS[enum].split():
        try:
            check(db, ref, name)
        except ApiError:
            continue
        names.append(name)
    return names
