"""Which operation is allowed on a VDI or an SR now, and the error that says why not.

The order of the checks is part of the behaviour: the first hit is what the client sees.

Source: xapi: ocaml/xapi/xapi_vdi.ml (check_operation_error), xapi_sr_operations.ml.
"""

from collections.abc import Callable

from xorepd_lab.model.datamodel import SR_OPERATIONS
from xorepd_lab.model.failures import ApiError, incompatible_type
from xorepd_lab.model.registry import Registry

WHILE_ATTACHED = {
    "snapshot", "clone", "resize_online", "mirror", "enable_cbt", "disable_cbt", "data_destroy",
    "blocked", "revert_to",
}  # fmt: skip
NEED_DATA = {
    "clone", "copy", "snapshot", "resize", "resize_online", "mirror", "enable_cbt", "disable_cbt",
    "set_on_boot", "revert_to", "revert_from",
}  # fmt: skip
NOT_WHILE_TRACKED = {"mirror", "set_on_boot"}
TRACKABLE_TYPES = {"user", "system"}
OFFERED_VDI_OPERATIONS = (
    "clone", "copy", "resize", "resize_online", "snapshot", "destroy", "forget", "update",
    "generate_config",
)  # fmt: skip
"""All that existed before changed-block tracking; what came later is never listed.

Source: xapi: ocaml/xapi/xapi_globs.ml (pre_ely_vdi_operations)."""
VDI_FEATURES = {
    "snapshot": "VDI_SNAPSHOT",
    "clone": "VDI_CLONE",
    "revert_to": "VDI_CLONE",
    "revert_from": "VDI_CLONE",
    "resize": "VDI_RESIZE",
    "resize_online": "VDI_RESIZE_ONLINE",
    "destroy": "VDI_DELETE",
    "update": "VDI_UPDATE",
    "generate_config": "VDI_GENERATE_CONFIG",
    "mirror": "VDI_MIRROR",
    "set_on_boot": "VDI_RESET_ON_BOOT",
    "enable_cbt": "VDI_CONFIG_CBT",
    "disable_cbt": "VDI_CONFIG_CBT",
    "data_destroy": "VDI_CONFIG_CBT",
    "list_changed_blocks": "VDI_CONFIG_CBT",
}
SR_FEATURES = {
    "vdi_create": "VDI_CREATE",
    "vdi_destroy": "VDI_DELETE",
    "vdi_snapshot": "VDI_SNAPSHOT",
    "vdi_resize": "VDI_RESIZE",
    "vdi_introduce": "VDI_INTRODUCE",
    "vdi_mirror": "VDI_MIRROR",
    "vdi_enable_cbt": "VDI_CONFIG_CBT",
    "vdi_disable_cbt": "VDI_CONFIG_CBT",
    "vdi_data_destroy": "VDI_CONFIG_CBT",
    "vdi_list_changed_blocks": "VDI_CONFIG_CBT",
    "vdi_set_on_boot": "VDI_RESET_ON_BOOT",
    "vdi_revert": "VDI_REVERT",
    "update": "SR_UPDATE",
}
"""Clones are not among them: xapi makes them itself where the driver cannot."""


def in_progress(cls: str, ref: str, current: dict[str, str]) -> ApiError:
    task, operation = next(iter(current.items()))
    return ApiError("OTHER_OPERATION_IN_PROGRESS", cls, ref, operation, task)


def check_vdi(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on a VDI."""
    vdi = db.record("VDI", ref)
    others = {t: op for t, op in vdi["current_operations"].items() if op != "copy"}
    if others and not (operation == "destroy" and "mirror" in others.values()):
        raise in_progress("VDI", ref, others)
    if operation == "resize":
        check_plugged(db, vdi["SR"])
    _check_vbds(db, ref, operation)
    feature = VDI_FEATURES.get(operation)
    if feature and feature not in features(db, vdi["SR"]):
        raise ApiError("SR_OPERATION_NOT_SUPPORTED", vdi["SR"])
    if vdi["type"] == "cbt_metadata" and operation in NEED_DATA:
        raise incompatible_type(ref, vdi["type"])
    if vdi["cbt_enabled"] and operation in NOT_WHILE_TRACKED:
        raise ApiError("VDI_CBT_ENABLED", ref)
    _check_vdi_itself(db, ref, operation)


def _check_vbds(db: Registry, ref: str, operation: str) -> None:
    busy = [db.record("VBD", vbd) for vbd in db.get("VDI", ref, "VBDs")]
    attached = [vbd for vbd in busy if vbd["currently_attached"]]
    if operation == "copy":
        attached = [vbd for vbd in attached if vbd["mode"] == "RW"]
    elif operation == "list_changed_blocks":
        # The disks of a checkpoint count as attached although nobody uses them.
        attached = [vbd for vbd in attached if not _is_of_snapshot(db, vbd["VM"])]
    if attached and operation not in WHILE_ATTACHED:
        raise ApiError("VDI_IN_USE", ref, operation)
    for vbd in busy:
        # data_destroy waits by itself for VBDs to go.
        if vbd["current_operations"] and operation != "data_destroy":
            raise in_progress("VDI", ref, vbd["current_operations"])


def _is_of_snapshot(db: Registry, vm: str) -> bool:
    return db.exists("VM", vm) and bool(db.get("VM", vm, "is_a_snapshot"))


def _check_vdi_itself(db: Registry, ref: str, operation: str) -> None:
    vdi = db.record("VDI", ref)
    reset = vdi["on_boot"] == "reset"
    match operation:
        case "forget" if vdi["type"] == "rrd":
            raise ApiError("VDI_HAS_RRDS", ref)
        case "destroy" | "revert_from":
            _check_destroy(db, ref)
        case "revert_to" if not vdi["is_a_snapshot"]:
            raise ApiError("REVERT_ONLY_ALLOWED_ON_SNAPSHOT")
        case "data_destroy":
            if not vdi["is_a_snapshot"]:
                raise ApiError("OPERATION_NOT_ALLOWED", f"VDI is not a snapshot: {ref}")
            if not vdi["cbt_enabled"]:
                raise ApiError("VDI_NO_CBT_METADATA", ref)
            _check_destroy(db, ref)
        case "snapshot" if vdi["sharable"]:
            raise ApiError("VDI_IS_SHARABLE", ref)
        case "snapshot" | "copy" if reset:
            raise ApiError("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
        case "snapshot" if "copy" in vdi["current_operations"].values():
            text = "Snapshot operation not allowed during copy."
            raise ApiError("OPERATION_NOT_ALLOWED", text)
        case "enable_cbt" | "disable_cbt":
            if vdi["is_a_snapshot"]:
                raise ApiError("OPERATION_NOT_ALLOWED", f"VDI is a snapshot: {ref}")
            if vdi["type"] not in TRACKABLE_TYPES:
                raise incompatible_type(ref, vdi["type"])
            if reset:
                raise ApiError("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
        case _:
            pass


def _check_destroy(db: Registry, ref: str) -> None:
    vdi = db.record("VDI", ref)
    sr = db.record("SR", vdi["SR"])
    if sr["type"] == "udev":
        raise ApiError("VDI_IS_A_PHYSICAL_DEVICE", ref)
    if sr["is_tools_sr"]:
        raise ApiError("SR_OPERATION_NOT_SUPPORTED", vdi["SR"])
    if vdi["type"] == "rrd":
        raise ApiError("VDI_HAS_RRDS", ref)


def check_sr(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on an SR: one at a time, plugs together."""
    feature = SR_FEATURES.get(operation)
    if feature and feature not in features(db, ref):
        raise ApiError("SR_OPERATION_NOT_SUPPORTED", ref)
    if operation in ("destroy", "forget") and attached_pbds(db, ref):
        raise ApiError("SR_HAS_PBD", ref)
    if operation == "destroy":
        if not db.get("SR", ref, "PBDs"):
            raise ApiError("SR_HAS_NO_PBDS", ref)
        if any(
            vdi["managed"] and vdi["type"] != "rrd"
            for vdi in (db.record("VDI", vdi) for vdi in db.get("SR", ref, "VDIs"))
        ):
            raise ApiError("SR_NOT_EMPTY")
    current = db.get("SR", ref, "current_operations")
    if operation == "plug":
        current = {task: running for task, running in current.items() if running != "plug"}
    if current:
        raise in_progress("SR", ref, current)


def check_plugged(db: Registry, sr: str) -> None:
    """Raise SR_HAS_NO_PBDS when no host sees the SR."""
    db.row("SR", sr)
    if not attached_pbds(db, sr):
        raise ApiError("SR_HAS_NO_PBDS", sr)


def check_served(db: Registry, vdi: str) -> None:
    """Raise what most calls find out only while they hold the VDI: no host, or a base copy."""
    record = db.record("VDI", vdi)
    check_plugged(db, record["SR"])
    if not record["managed"]:
        raise ApiError("VDI_NOT_MANAGED", vdi)


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


def allowed_vdi_operations(db: Registry, ref: str) -> list[str]:
    return [name for name in OFFERED_VDI_OPERATIONS if _passes(check_vdi, db, ref, name)]


def allowed_sr_operations(db: Registry, ref: str) -> list[str]:
    return [name for name in SR_OPERATIONS.split() if _passes(check_sr, db, ref, name)]


def _passes(
    check: Callable[[Registry, str, str], None], db: Registry, ref: str, operation: str
) -> bool:
    try:
        check(db, ref, operation)
    except ApiError:
        return False
    return True
