"""Which operation is allowed on which object now, and the error that says why not.

The order of the checks is part of the behaviour: the first hit is what the client sees.

Source: xapi: ocaml/xapi/xapi_vm_lifecycle.ml, xapi_vdi.ml (check_operation_error),
xapi_sr_operations.ml.
"""

from collections.abc import Callable

from xorepd.lab.datamodel import SR_OPERATIONS, VM_OPERATIONS
from xorepd.lab.failures import ApiError
from xorepd.lab.registry import Registry

ANY_STATE = "Halted Paused Running Suspended"
POWER_STATES: dict[str, str] = {
    operation: states
    for operations, states in (
        (
            "start start_on provision make_into_template changing_NVRAM changing_VCPUs"
            " changing_static_range changing_memory_limits create_vtpm",
            "Halted",
        ),
        ("clone copy", "Halted"),
        ("create_template destroy export", "Halted Suspended"),
        ("resume resume_on csvm", "Suspended"),
        ("unpause", "Paused"),
        ("suspend pause clean_shutdown clean_reboot pool_migrate call_plugin", "Running"),
        ("hard_reboot", "Paused Running"),
        ("hard_shutdown checkpoint shutdown", "Paused Suspended Running"),
        ("migrate_send", "Halted Suspended Running"),
        ("changing_dynamic_range", "Halted Running"),
    )
    for operation in operations.split()
}
"""Power states in which an operation may run; the others may in any."""

TOGETHER = (
    {"clone", "copy", "export"},
    {"snapshot", "checkpoint"},
    {"get_boot_record"},
)
HARD = {"hard_shutdown", "hard_reboot"}
DURING_MIGRATION = {"metadata_export", "clean_shutdown", "clean_reboot"}
OF_TEMPLATES = {
    "clone", "copy", "export", "metadata_export", "provision", "destroy", "migrate_send",
    "changing_NVRAM", "changing_VCPUs", "changing_static_range", "changing_memory_limits",
    "changing_dynamic_range", "changing_shadow_memory", "update_allowed_operations",
    "make_into_template",
}  # fmt: skip
OF_SNAPSHOTS = {
    "revert", "clone", "copy", "export", "destroy", "hard_shutdown", "metadata_export",
    "update_allowed_operations",
}  # fmt: skip
NEED_TOOLS = {"clean_shutdown", "clean_reboot", "suspend", "pool_migrate"}
OFFERED_VM_OPERATIONS = tuple(
    name
    for name in VM_OPERATIONS.split()
    if name not in {"revert", "reverting", "import", "assert_operation_valid", "data_source_op",
                    "snapshot_with_quiesce", "update_allowed_operations"}
)  # fmt: skip

WHILE_ATTACHED = {
    "snapshot", "clone", "resize_online", "mirror", "enable_cbt", "disable_cbt", "data_destroy",
}  # fmt: skip
NEED_DATA = {
    "clone", "copy", "snapshot", "resize", "resize_online", "mirror", "enable_cbt", "disable_cbt",
}  # fmt: skip
VDI_FEATURES = {
    "snapshot": "VDI_SNAPSHOT",
    "clone": "VDI_CLONE",
    "resize": "VDI_RESIZE",
    "resize_online": "VDI_RESIZE_ONLINE",
    "destroy": "VDI_DELETE",
}
SR_FEATURES = {
    "vdi_create": "VDI_CREATE",
    "vdi_destroy": "VDI_DELETE",
    "vdi_snapshot": "VDI_SNAPSHOT",
    "vdi_clone": "VDI_CLONE",
    "vdi_resize": "VDI_RESIZE",
    "vdi_introduce": "VDI_INTRODUCE",
}


def in_progress(cls: str, ref: str, current: dict[str, str]) -> ApiError:
    task, operation = next(iter(current.items()))
    return ApiError("OTHER_OPERATION_IN_PROGRESS", cls, ref, operation, task)


def check_vm(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on a VM."""
    vm = db.record("VM", ref)
    blocked = vm["blocked_operations"].get(operation)
    if blocked is not None:
        raise ApiError("OPERATION_BLOCKED", ref, blocked)
    allowed = POWER_STATES.get(operation, ANY_STATE)
    if vm["is_a_snapshot"] and operation in ("clone", "copy"):
        allowed = "Halted Suspended"
    if vm["power_state"] not in allowed.split():
        expected = ", ".join(allowed.lower().split())
        raise ApiError("VM_BAD_POWER_STATE", ref, expected, vm["power_state"].lower())
    for task, running in vm["current_operations"].items():
        if not _vm_together(running, operation):
            raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VM", ref, running, task)
    if vm["is_a_snapshot"]:
        if operation not in OF_SNAPSHOTS:
            raise ApiError("VM_IS_SNAPSHOT", ref, operation)
    elif vm["is_a_template"] and (
        operation not in OF_TEMPLATES
        or (vm["is_default_template"] and operation in ("destroy", "migrate_send"))
    ):
        raise ApiError("VM_IS_TEMPLATE", ref, operation)
    if vm["is_control_domain"] and operation not in ("data_source_op", "changing_memory_live"):
        raise ApiError("OPERATION_NOT_ALLOWED", "Operations on domain 0 are not allowed")
    if operation in NEED_TOOLS and vm["power_state"] == "Running" and not has_tools(db, ref):
        raise ApiError("VM_LACKS_FEATURE", ref)


def has_tools(db: Registry, ref: str) -> bool:
    metrics = db.get("VM", ref, "guest_metrics")
    return db.exists("VM_guest_metrics", metrics) and bool(
        db.get("VM_guest_metrics", metrics, "PV_drivers_detected")
    )


def _vm_together(running: str, wanted: str) -> bool:
    if wanted == "hard_shutdown":
        return running != "hard_shutdown"
    if wanted == "hard_reboot":
        return running not in HARD
    if running == "migrate_send" and wanted in DURING_MIGRATION:
        return True
    return any(running in group and wanted in group for group in TOGETHER)


def check_vdi(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on a VDI."""
    vdi = db.record("VDI", ref)
    if not vdi["managed"]:
        raise ApiError("VDI_NOT_MANAGED", ref)
    if not attached_pbds(db, vdi["SR"]):
        raise ApiError("SR_HAS_NO_PBDS", vdi["SR"])
    if vdi["type"] == "cbt_metadata" and operation in NEED_DATA:
        raise ApiError("VDI_INCOMPATIBLE_TYPE", ref, vdi["type"])
    feature = VDI_FEATURES.get(operation)
    if feature and feature not in features(db, vdi["SR"]):
        raise ApiError("SR_OPERATION_NOT_SUPPORTED", vdi["SR"])
    others = {t: op for t, op in vdi["current_operations"].items() if op != "copy"}
    if others:
        raise in_progress("VDI", ref, others)
    if operation in WHILE_ATTACHED:
        return
    for vbd in map(db.row, ["VBD"] * len(vdi["VBDs"]), vdi["VBDs"]):
        if vbd.fields["current_operations"]:
            raise in_progress("VBD", vbd.ref, vbd.fields["current_operations"])
        if not vbd.fields["currently_attached"]:
            continue
        if operation == "copy" and vbd.fields["mode"] == "RO":
            continue
        raise ApiError("VDI_IN_USE", ref, operation)


def check_sr(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on an SR: one at a time, plugs apart."""
    current = db.get("SR", ref, "current_operations")
    feature = SR_FEATURES.get(operation)
    if feature and feature not in features(db, ref):
        raise ApiError("SR_OPERATION_NOT_SUPPORTED", ref)
    if current and operation != "plug":
        raise in_progress("SR", ref, current)


def features(db: Registry, sr: str) -> dict[str, int]:
    """Return what the SR's driver can do, by the name of the feature."""
    for driver in db.select("SM", type=db.get("SR", sr, "type")):
        found: dict[str, int] = db.get("SM", driver, "features")
        return found
    return {}


def attached_pbds(db: Registry, sr: str) -> list[str]:
    return list(db.select("PBD", SR=sr, currently_attached=True))


def hosts_of(db: Registry, sr: str) -> list[str]:
    """Return the hosts that see an SR now."""
    return [db.get("PBD", pbd, "host") for pbd in attached_pbds(db, sr)]


def allowed_vm_operations(db: Registry, ref: str) -> list[str]:
    names = OFFERED_VM_OPERATIONS
    if db.get("VM", ref, "is_a_snapshot"):
        names = (*names, "revert")
    return [name for name in names if _passes(check_vm, db, ref, name)]


def allowed_vdi_operations(db: Registry, ref: str) -> list[str]:
    if not db.get("VDI", ref, "managed"):
        return []
    names = [
        "snapshot",
        "clone",
        "copy",
        "resize",
        "destroy",
        "forget",
        "update",
        "generate_config",
    ]
    return [name for name in names if _passes(check_vdi, db, ref, name)]


def allowed_sr_operations(db: Registry, ref: str) -> list[str]:
    return [name for name in SR_OPERATIONS.split() if _passes(check_sr, db, ref, name)]


def allowed_vbd_operations(db: Registry, ref: str) -> list[str]:
    vbd = db.record("VBD", ref)
    if vbd["current_operations"] or not db.exists("VM", vbd["VM"]):
        return []
    names = []
    if vbd["type"] == "CD":
        names.append("insert" if vbd["empty"] else "eject")
    if db.get("VM", vbd["VM"], "power_state") == "Running":
        names += ["unplug", "unplug_force"] if vbd["currently_attached"] else ["plug"]
    else:
        names.append("attach")
    return names


def _passes(
    check: Callable[[Registry, str, str], None], db: Registry, ref: str, operation: str
) -> bool:
    try:
        check(db, ref, operation)
    except ApiError:
        return False
    return True
