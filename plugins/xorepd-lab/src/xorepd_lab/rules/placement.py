"""Which host can run a VM: memory, processors, storage, networks.

Memory is counted by what guests may be ballooned down to. A VM takes, in MiB,

    dynamic_min + overhead,   overhead = 2 + shadow        (HVM)
                                         1 + shadow        (PV)
                              shadow   = (256 per vCPU + 2 per MiB of static_max) pages x multiplier

Source: xapi: ocaml/xapi/xapi_vm_helpers.ml (assert_can_boot_here, choose_host), memory_check.ml,
vm_memory_constraints.ml, xapi_network_attach_helpers.ml, ocaml/xapi-idl/memory/memory.ml.
"""

from typing import Any

from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.rules.storage_rules import hosts_of

MIB = 1 << 20
PAGES_PER_MIB = 256
PAGES_PER_VCPU = 256
EXTRA_PAGES_PER_VCPU = 38
APPROXIMATE_VCPUS = 64
"""What `VM.maximise_memory` reckons with when the number may still change."""


def overhead_bytes(vm: dict[str, Any]) -> int:
    """Return the memory that a VM takes beside its own."""
    static_max = -(-vm["memory_static_max"] // MIB)
    vcpus = vm["VCPUs_max"]
    multiplier = vm["HVM_shadow_multiplier"] if vm["domain_type"] != "pv" else 1.0
    shadow = max(1, int(_mib(PAGES_PER_VCPU * vcpus + 2 * static_max) * multiplier))
    extra = 1 if vm["domain_type"] == "pv" else 2
    return (extra + shadow + _mib(EXTRA_PAGES_PER_VCPU * vcpus)) * MIB


def update_memory_overhead(db: Registry, vm: str) -> None:
    db.set("VM", vm, memory_overhead=overhead_bytes(db.record("VM", vm)))


def needed_bytes(vm: dict[str, Any]) -> int:
    """Return the memory that must be free on a host for a VM to start there."""
    return -(-int(vm["memory_dynamic_min"]) // MIB) * MIB + overhead_bytes(vm)


def free_bytes(db: Registry, host: str, but: str = NULL) -> int:
    """Return the memory of a host that no VM has, or is about to get.

    Args:
        but: A VM whose reservation is not counted.
    """
    metrics = db.record("host_metrics", db.get("host", host, "metrics"))
    here = list(db.get("host", host, "resident_VMs"))
    coming = [vm for vm in db.select("VM", scheduled_to_be_resident_on=host) if vm != but]
    used = sum(
        int(db.get("VM", vm, "memory_dynamic_min")) + int(db.get("VM", vm, "memory_overhead"))
        for vm in (*here, *coming)
    )
    overhead = db.get("host", host, "memory_overhead")
    return max(0, int(metrics["memory_total"]) - int(overhead) - used)


def update_free_memory(db: Registry, host: str) -> None:
    """Write what a host reports as its free memory."""
    metrics = db.get("host", host, "metrics") if db.exists("host", host) else NULL
    if db.exists("host_metrics", metrics):
        db.set("host_metrics", metrics, memory_free=free_bytes(db, host))


def maximise_memory(vm: dict[str, Any], total: int, approximate: bool) -> int:
    """Return the largest static_max, in whole MiB, that fits into so much free memory."""
    if approximate:
        vm = {**vm, "VCPUs_max": APPROXIMATE_VCPUS}

    def fits(mib: int) -> bool:
        trial = {**vm, "memory_static_max": mib * MIB, "memory_dynamic_min": mib * MIB}
        return needed_bytes(trial) <= total

    low, high = 0, max(0, total // MIB)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low * MIB


def check_memory_order(
    static_min: int, dynamic_min: int, dynamic_max: int, static_max: int
) -> None:
    """Raise MEMORY_CONSTRAINT_VIOLATION_ORDER [] unless each is at most the next."""
    if not static_min <= dynamic_min <= dynamic_max <= static_max:
        raise ApiError("MEMORY_CONSTRAINT_VIOLATION_ORDER")


def check_record(vm: dict[str, Any]) -> None:
    """Raise what is wrong with a VM's record itself; `VM.create` has stored it unchecked."""
    most, first = vm["VCPUs_max"], vm["VCPUs_at_startup"]
    if most < 1:
        raise ApiError("INVALID_VALUE", "VCPUs_max", str(most))
    if first < 1:
        raise ApiError("INVALID_VALUE", "VCPUs-at-startup", str(first))
    if first > most:
        text = "value greater than VCPUs-max"
        raise ApiError("VALUE_NOT_SUPPORTED", "VCPUs-at-startup", str(first), text)
    # The dynamic limits are forgiven, a target between the static ones can always be found.
    if not 0 <= vm["memory_static_min"] <= vm["memory_static_max"]:
        raise ApiError("MEMORY_CONSTRAINT_VIOLATION")
    if vm["HVM_shadow_multiplier"] < 1.0:
        text = f"{vm['HVM_shadow_multiplier']:g}"
        raise ApiError("INVALID_VALUE", "HVM_shadow_multiplier", text)
    check_actions_after_crash(vm)


def check_actions_after_crash(vm: dict[str, Any]) -> None:
    action = vm["actions_after_crash"]
    field = "VM.actions_after_crash"
    if action == "rename_restart":
        text = "option would leak a domain; VMs and not domains are managed by this API"
        raise ApiError("VALUE_NOT_SUPPORTED", field, action, text)
    if action.startswith("coredump") and vm["domain_type"] != "pv":
        text = "cannot invoke a coredump of an HVM, PVH or PV-in-PVH domain"
        raise ApiError("VALUE_NOT_SUPPORTED", field, action, text)


def check_host(
    db: Registry, vm_ref: str, host: str, memory: bool = True, storage: bool = True
) -> None:
    """Raise what keeps a VM from running on a host."""
    vm = db.record("VM", vm_ref)
    check_record(vm)
    if not is_live(db, host):
        raise ApiError("HOST_NOT_LIVE")
    welcome = vm["is_control_domain"] or vm["resident_on"] == host
    if not welcome and not db.get("host", host, "enabled"):
        raise ApiError("HOST_DISABLED", host)
    if storage:
        check_storage(db, vm_ref, host)
    check_networks(db, vm_ref, host)
    if memory:
        check_memory(db, vm_ref, host)
    processors = int(db.get("host", host, "cpu_info").get("cpu_count", "1"))
    unrestricted = vm["platform"].get("vcpu-unrestricted", "").lower() in ("1", "true")
    if vm["VCPUs_max"] > processors and not unrestricted:
        raise ApiError("HOST_NOT_ENOUGH_PCPUS", str(vm["VCPUs_max"]), str(processors))


def check_storage(db: Registry, vm: str, host: str) -> None:
    """Raise VM_REQUIRES_SR [vm, sr] for the first SR of the VM that the host does not see."""
    for sr in required_srs(db, vm):
        if host not in hosts_of(db, sr):
            raise ApiError("VM_REQUIRES_SR", vm, sr)


def required_srs(db: Registry, vm: str) -> list[str]:
    """Return the SRs of a VM's disks and, while it is suspended, of its memory."""
    record = db.record("VM", vm)
    vdis = [db.get("VBD", vbd, "VDI") for vbd in record["VBDs"] if not db.get("VBD", vbd, "empty")]
    if record["power_state"] == "Suspended" and record["suspend_VDI"] != NULL:
        vdis.append(record["suspend_VDI"])
    return [str(db.get("VDI", vdi, "SR")) for vdi in vdis]


def check_networks(db: Registry, vm: str, host: str) -> None:
    """Raise VM_REQUIRES_NETWORK [vm, network] for a network that the host is not on."""
    for vif in db.get("VM", vm, "VIFs"):
        network = db.get("VIF", vif, "network")
        if not sees_network(db, network, host):
            raise ApiError("VM_REQUIRES_NETWORK", vm, network)


def sees_network(db: Registry, network: str, host: str) -> bool:
    """Tell whether a host can give a VM this network.

    One without PIFs is on the host where its first VM runs.
    """
    record = db.record("network", network)
    if record["PIFs"]:
        return host in [db.get("PIF", pif, "host") for pif in record["PIFs"]]
    if record["other_config"].get("assume_network_is_shared") == "true" or not record["managed"]:
        return True
    vms = [db.record("VM", db.get("VIF", vif, "VM")) for vif in record["VIFs"]]
    there = {vm["resident_on"] for vm in vms if vm["power_state"] == "Running"}
    return not there or host in there


def check_memory(db: Registry, vm: str, host: str) -> None:
    """Raise HOST_NOT_ENOUGH_FREE_MEMORY [needed, available], in bytes."""
    needed, free = needed_bytes(db.record("VM", vm)), free_bytes(db, host, but=vm)
    if needed > free:
        raise ApiError("HOST_NOT_ENOUGH_FREE_MEMORY", str(needed), str(free))


def is_live(db: Registry, host: str) -> bool:
    metrics = db.get("host", host, "metrics")
    return db.exists("host_metrics", metrics) and bool(db.get("host_metrics", metrics, "live"))


def possible_hosts(db: Registry, vm: str, memory: bool = True) -> list[str]:
    """Return the hosts that can run a VM."""
    reserved = str(db.get("VM", vm, "scheduled_to_be_resident_on"))
    if reserved != NULL:
        return [reserved]

    def can(host: str) -> bool:
        try:
            check_host(db, vm, host, memory)
        except ApiError:
            return False
        return True

    return [host for host in db.refs("host") if can(host)]


def choose_host(db: Registry, vm: str) -> str:
    """Return where a VM shall run: its affinity if it can, else the host with most free memory.

    When no host has the memory, the check is left to the host: the VM is sent there all the same.

    Raises:
        ApiError: NO_HOSTS_AVAILABLE [], whatever each single host said.
    """
    affinity = db.get("VM", vm, "affinity")
    found = [
        host
        for host in possible_hosts(db, vm) or possible_hosts(db, vm, memory=False)
        if "evacuate" not in db.get("host", host, "current_operations").values()
    ]
    if not found:
        raise ApiError("NO_HOSTS_AVAILABLE")
    if affinity in found:
        return str(affinity)
    return max(found, key=lambda host: free_bytes(db, host))


def _mib(pages: int) -> int:
    return -(-pages // PAGES_PER_MIB)
