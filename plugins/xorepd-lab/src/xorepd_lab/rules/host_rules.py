"""Which operation is allowed on a host or on the pool now, and the error that says why not.

Source: xapi: ocaml/xapi/xapi_host_helpers.ml (valid_operations), xapi_pool_helpers.ml.
"""

from xorepd_lab.model.datamodel import HOST_OPERATIONS
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.registry import Registry

CREATING = {"provision", "vm_resume", "vm_migrate"}
REMOVING = {"evacuate", "reboot", "shutdown"}
EXCLUSIVE = {
    "reboot": {"shutdown", "apply_updates"},
    "shutdown": {"reboot", "apply_updates"},
    "apply_updates": {"reboot", "shutdown", "enable"},
    "provision": {"provision"},
}
NEED_DISABLED = {"reboot", "shutdown", "apply_updates"}
POOL_IN_PROGRESS = {
    "ha_enable": "HA_ENABLE_IN_PROGRESS",
    "ha_disable": "HA_DISABLE_IN_PROGRESS",
    "cluster_create": "CLUSTER_CREATE_IN_PROGRESS",
    "designate_new_master": "DESIGNATE_NEW_MASTER_IN_PROGRESS",
}


def check_host_operation(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on a host."""
    host = db.record("host", ref)
    for task, running in host["current_operations"].items():
        clash = (operation in CREATING and running in REMOVING) or (
            operation in REMOVING and running in CREATING
        )
        if clash or operation in EXCLUSIVE.get(running, ()):
            raise ApiError("OTHER_OPERATION_IN_PROGRESS", "host", ref, running, task)
    if operation in NEED_DISABLED and host["enabled"]:
        raise ApiError("HOST_NOT_DISABLED")
    if operation == "power_on":
        if db.get("host_metrics", host["metrics"], "live"):
            raise ApiError("HOST_IS_LIVE", ref)
        raise ApiError("HOST_POWER_ON_MODE_DISABLED")


def allowed_host_operations(db: Registry, ref: str) -> list[str]:
    return [name for name in HOST_OPERATIONS.split() if _passes(db, ref, name)]


def _passes(db: Registry, ref: str, operation: str) -> bool:
    try:
        check_host_operation(db, ref, operation)
    except ApiError:
        return False
    return True


def check_pool_operation(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on the pool; none waits for another."""
    pool = db.record("pool", ref)
    for running in pool["current_operations"].values():
        raise ApiError(POOL_IN_PROGRESS[running])
    if operation == "ha_enable" and pool["ha_enabled"]:
        raise ApiError("HA_IS_ENABLED")
    if operation == "ha_disable" and not pool["ha_enabled"]:
        raise ApiError("HA_NOT_ENABLED")


def allowed_pool_operations(db: Registry, ref: str) -> list[str]:
    pool = db.record("pool", ref)
    if pool["current_operations"]:
        return []
    return [
        name
        for name in POOL_IN_PROGRESS
        if name != ("ha_enable" if pool["ha_enabled"] else "ha_disable")
    ]
