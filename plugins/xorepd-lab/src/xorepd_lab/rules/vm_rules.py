"""Which operation a VM takes now, and the error that says why not.

The order of the checks is part of the behaviour: the first hit is what the client sees.

Source: xapi: ocaml/xapi/xapi_vm_lifecycle.ml, xapi_vm_appliance_lifecycle.ml.
"""

from typing import Any

from xorepd_lab.model.datamodel import VM_OPERATIONS
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import words

ANY_STATE = "Halted Paused Suspended Running"
POWER_STATES: dict[str, str] = {
    operation: states
    for operations, states in (
        (
            "start start_on provision make_into_template changing_NVRAM changing_VCPUs"
            " changing_static_range changing_memory_limits changing_shadow_memory create_vtpm",
            "Halted",
        ),
        ("clone copy", "Halted"),
        ("create_template destroy export", "Halted Suspended"),
        ("resume resume_on csvm", "Suspended"),
        ("unpause", "Paused"),
        (
            "suspend pause clean_shutdown clean_reboot pool_migrate call_plugin send_sysrq"
            " send_trigger data_source_op snapshot_with_quiesce changing_VCPUs_live"
            " changing_memory_live awaiting_memory_live changing_shadow_memory_live sysprep",
            "Running",
        ),
        ("hard_reboot", "Paused Running"),
        ("hard_shutdown checkpoint shutdown get_boot_record", "Paused Suspended Running"),
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
    "clone", "copy", "export", "metadata_export", "provision", "changing_NVRAM", "changing_VCPUs",
    "changing_static_range", "changing_memory_limits", "changing_dynamic_range",
    "changing_shadow_memory",
}  # fmt: skip
NOT_OF_DEFAULT_TEMPLATES = {"destroy", "migrate_send"}
OF_SNAPSHOTS = {
    "revert", "clone", "copy", "export", "destroy", "hard_shutdown", "metadata_export",
}  # fmt: skip
OF_CONTROL_DOMAINS = {
    "data_source_op", "changing_memory_live", "awaiting_memory_live", "metadata_export",
    "changing_dynamic_range", "changing_memory_limits", "changing_static_range", "start",
    "start_on", "changing_VCPUs", "destroy",
}  # fmt: skip
MOVES_MEMORY = {"suspend", "checkpoint", "pool_migrate", "migrate_send"}
"""What needs the guest to stand still."""
NEEDED_FEATURES = {
    "clean_shutdown": ("feature-shutdown", "feature-poweroff"),
    "clean_reboot": ("feature-shutdown", "feature-reboot"),
    "changing_VCPUs_live": ("feature-vcpu-hotplug",),
}
"""One of these a guest without drivers must announce."""
NEVER_OFFERED = set(
    words(
        "create_template power_state_reset csvm get_boot_record send_sysrq send_trigger"
        " query_services shutdown call_plugin changing_memory_live awaiting_memory_live"
        " changing_memory_limits changing_shadow_memory_live changing_VCPUs"
        " assert_operation_valid data_source_op update_allowed_operations import reverting"
    )
)
OFFERED = tuple(name for name in VM_OPERATIONS.split() if name not in NEVER_OFFERED)
NEWER_OPERATIONS = {"sysprep"}
"""What pools of XCP-ng 8.3 do not know."""

APPLIANCE_OPERATIONS = {
    "start": ("Halted", "There are no halted VMs in this appliance."),
    "clean_shutdown": ("Running", "There are no running VMs in this appliance."),
    "hard_shutdown": ("Paused Running Suspended", "All VMs in this appliance are halted."),
    "shutdown": ("Paused Running Suspended", "All VMs in this appliance are halted."),
}
"""In which state at least one member must be, and what is said when none is."""


def check_vm(db: Registry, ref: str, operation: str, strict: bool = True) -> None:
    """Raise what stands in the way of an operation on a VM.

    Args:
        strict: Insist on what the guest must announce for the operation; `force` does without.
    """
    vm = db.record("VM", ref)
    blocked = vm["blocked_operations"].get(operation)
    if blocked is not None:
        raise ApiError("OPERATION_BLOCKED", ref, blocked)
    check_power_state(ref, vm["power_state"], _states(db, vm, operation))
    _check_concurrency(ref, vm["current_operations"], operation)
    _check_kind(ref, vm, operation)
    if operation in MOVES_MEMORY and strict and _is_immobile(db, vm):
        raise ApiError("VM_IS_IMMOBILE", ref)
    if vm["is_control_domain"]:
        if operation in ("changing_VCPUs", "destroy") and vm["domid"] == 0:
            raise ApiError("OPERATION_NOT_ALLOWED", "This operation is not allowed on dom0")
        if operation not in OF_CONTROL_DOMAINS:
            text = "This operation is not allowed on a control domain"
            raise ApiError("OPERATION_NOT_ALLOWED", text)
    _check_features(db, ref, vm, operation, strict)
    if operation == "snapshot_with_quiesce":
        raise ApiError("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", ref)
    _check_attachments(db, ref, vm, operation)


def check_power_state(ref: str, actual: str, allowed: str) -> None:
    """Raise VM_BAD_POWER_STATE [vm, allowed states, actual state] unless it is an allowed one."""
    if actual not in allowed.split():
        expected = ", ".join(allowed.lower().split())
        raise ApiError("VM_BAD_POWER_STATE", ref, expected, actual.lower())


def has_tools(db: Registry, ref: str) -> bool:
    """Tell whether the guest's drivers have announced their version."""
    metrics = db.get("VM", ref, "guest_metrics")
    return db.exists("VM_guest_metrics", metrics) and {"major", "minor"} <= set(
        db.get("VM_guest_metrics", metrics, "PV_drivers_version")
    )


def guest_announces(db: Registry, vm: str) -> dict[str, str]:
    """Return what a guest says of itself: `VM_guest_metrics.other`."""
    metrics = db.get("VM", vm, "guest_metrics")
    if not db.exists("VM_guest_metrics", metrics):
        return {}
    announced: dict[str, str] = db.get("VM_guest_metrics", metrics, "other")
    return announced


def allowed_vm_operations(db: Registry, ref: str) -> list[str]:
    return [
        name
        for name in OFFERED
        if not (db.release == "8.3" and name in NEWER_OPERATIONS) and _passes(db, ref, name)
    ]


def check_appliance(db: Registry, ref: str, operation: str) -> None:
    """Raise what stands in the way of an operation on a VM_appliance."""
    appliance = db.record("VM_appliance", ref)
    for task, running in appliance["current_operations"].items():
        raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VM_appliance", ref, running, task)
    if not appliance["VMs"]:
        raise ApiError("OPERATION_NOT_ALLOWED", "Appliance has no VMs.")
    states, complaint = APPLIANCE_OPERATIONS[operation]
    if not any(db.get("VM", vm, "power_state") in states.split() for vm in appliance["VMs"]):
        raise ApiError("OPERATION_NOT_ALLOWED", complaint)


def allowed_appliance_operations(db: Registry, ref: str) -> list[str]:
    def passes(operation: str) -> bool:
        try:
            check_appliance(db, ref, operation)
        except ApiError:
            return False
        return True

    return [operation for operation in APPLIANCE_OPERATIONS if passes(operation)]


def _states(db: Registry, vm: dict[str, Any], operation: str) -> str:
    states = POWER_STATES.get(operation, ANY_STATE)
    if operation in ("clone", "copy") and (vm["is_a_snapshot"] or _clones_suspended(db)):
        return f"{states} Suspended"
    if vm["is_control_domain"] and operation in (
        "changing_VCPUs",
        "changing_static_range",
        "changing_memory_limits",
    ):
        return f"{states} Running"
    return states


def _clones_suspended(db: Registry) -> bool:
    config = db.get("pool", next(db.select("pool")), "other_config")
    return bool(config.get("allow_clone_suspended_vm") == "true")


def _check_concurrency(ref: str, current: dict[str, str], wanted: str) -> None:
    if not current or _together(list(current.values()), wanted):
        return
    tasks, running = list(current), list(current.values())
    if len(current) == 1:
        raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VM", ref, running[0], tasks[0])
    listed = [f"{{{','.join(names)}}}" for names in (running, tasks)]
    raise ApiError("OTHER_OPERATION_IN_PROGRESS", "VM", ref, *listed)


def _together(running: list[str], wanted: str) -> bool:
    if wanted == "hard_shutdown":
        return wanted not in running
    if wanted == "hard_reboot":
        return not HARD.intersection(running)
    if running == ["migrate_send"] and wanted in DURING_MIGRATION:
        return True
    return any(wanted in group and group.issuperset(running) for group in TOGETHER)


def _check_kind(ref: str, vm: dict[str, Any], operation: str) -> None:
    if vm["is_a_snapshot"]:
        if operation not in OF_SNAPSHOTS:
            raise ApiError("VM_IS_SNAPSHOT", ref, operation)
    elif vm["is_a_template"]:
        default = vm["is_default_template"] or _is_true(vm["other_config"], "default_template")
        if operation not in OF_TEMPLATES and (default or operation not in NOT_OF_DEFAULT_TEMPLATES):
            raise ApiError("VM_IS_TEMPLATE", ref, operation)
    elif operation == "provision":
        raise ApiError("ONLY_PROVISION_TEMPLATE")
    if operation == "revert" and not vm["is_a_snapshot"]:
        raise ApiError("ONLY_REVERT_SNAPSHOT")


def _is_true(config: dict[str, str], key: str) -> bool:
    return config.get(key, "").lower() in ("1", "true")


def _is_immobile(db: Registry, vm: dict[str, Any]) -> bool:
    # What was true when the VM started counts, as its metrics have kept it.
    if db.exists("VM_metrics", vm["metrics"]):
        metrics = db.record("VM_metrics", vm["metrics"])
        return bool(metrics["nomigrate"] or metrics["nested_virt"])
    return _is_true(vm["platform"], "nomigrate") or _is_true(vm["platform"], "nested-virt")


def _check_features(
    db: Registry, ref: str, vm: dict[str, Any], operation: str, strict: bool
) -> None:
    live = vm["power_state"] in ("Running", "Paused")
    if not live:
        return
    implied = has_tools(db, ref) or _booted_pv(db, vm)
    announced = guest_announces(db, ref)
    if operation in MOVES_MEMORY:
        reason = announced.get("data-cant-suspend-reason")
        if reason is not None:
            raise ApiError("VM_NON_SUSPENDABLE", ref, reason)
        if strict and not implied and announced.get("feature-suspend") != "1":
            raise ApiError("VM_LACKS_FEATURE", ref)
    elif operation in NEEDED_FEATURES and strict and not implied:
        needed = NEEDED_FEATURES[operation]
        if not any(announced.get(feature) == "1" for feature in needed):
            raise ApiError("VM_LACKS_FEATURE", ref)


def _booted_pv(db: Registry, vm: dict[str, Any]) -> bool:
    if not db.exists("VM_metrics", vm["metrics"]):
        return False
    return db.get("VM_metrics", vm["metrics"], "current_domain_type") in ("pv", "pv_in_pvh", "pvh")


def _check_attachments(db: Registry, ref: str, vm: dict[str, Any], operation: str) -> None:
    """Check what hangs on the VM: disks that forget, USB devices, an appliance, a VTPM."""
    if operation in ("checkpoint", "snapshot", "suspend") and any(_forgets(db, vm)):
        raise ApiError("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")
    if operation in MOVES_MEMORY | {"snapshot"} and vm["VUSBs"]:
        raise ApiError("VM_HAS_VUSBS", ref)
    if operation == "make_into_template" and db.exists("VM_appliance", vm["appliance"]):
        raise ApiError("VM_IS_PART_OF_AN_APPLIANCE", ref, vm["appliance"])
    if operation == "make_into_template" and db.exists("VMSS", vm["snapshot_schedule"]):
        raise ApiError("VM_ASSIGNED_TO_SNAPSHOT_SCHEDULE", ref, vm["snapshot_schedule"])
    if operation == "query_services" and not _is_true(vm["other_config"], "is_system_domain"):
        raise ApiError("NOT_SYSTEM_DOMAIN", ref)
    if operation == "create_vtpm" and vm["VTPMs"]:
        raise ApiError("VTPM_MAX_AMOUNT_REACHED", str(len(vm["VTPMs"])))


def _forgets(db: Registry, vm: dict[str, Any]) -> list[bool]:
    """Tell of each disk whether it forgets at boot; XAPI looks at `sm_config` as well."""
    vdis = [db.record("VDI", vdi) for vdi in _vdis(db, vm) if db.exists("VDI", vdi)]
    return ["reset" in (vdi["on_boot"], vdi["sm_config"].get("on_boot")) for vdi in vdis]


def _vdis(db: Registry, vm: dict[str, Any]) -> list[str]:
    return [str(db.get("VBD", vbd, "VDI")) for vbd in vm["VBDs"]]


def _passes(db: Registry, ref: str, operation: str) -> bool:
    try:
        check_vm(db, ref, operation)
    except ApiError:
        return False
    return True
