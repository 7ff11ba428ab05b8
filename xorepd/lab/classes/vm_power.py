"""VM: starting and stopping.

Source: xapi: ocaml/xapi/xapi_vm.ml, xapi_guest_agent.ml, message_forwarding.ml.
"""

from xorepd.lab.classes.vbd import attach, check_sharing, detach
from xorepd.lab.classes.vif import set_attached
from xorepd.lab.classes.vm import check_memory_order
from xorepd.lab.classes.vm_snapshot import disks
from xorepd.lab.dispatch import Call, rpc
from xorepd.lab.failures import NULL, ApiError
from xorepd.lab.operations import Claim
from xorepd.lab.rules import check_vm, hosts_of

BOOT_S = 10.0
"""From start until the guest's tools report, in a guest of the lab."""
SHUTDOWN_S = 2.0


@rpc("VM.start(vm: ref VM, start_paused: bool, force: bool)")
async def start(call: Call, vm: str, start_paused: bool, force: bool) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "start")):
        await boot(call, vm, choose_host(call, vm), paused=start_paused)


@rpc("VM.start_on(vm: ref VM, host: ref host, start_paused: bool, force: bool)")
async def start_on(call: Call, vm: str, host: str, start_paused: bool, force: bool) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "start_on")):
        if not call.pool.db.get("host", host, "enabled"):
            raise ApiError("HOST_DISABLED", host)
        check_host(call, vm, host)
        await boot(call, vm, host, paused=start_paused)


@rpc("VM.clean_shutdown(vm: ref VM)")
async def clean_shutdown(call: Call, vm: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "clean_shutdown")):
        await call.pool.clock.nap(SHUTDOWN_S)
        halt(call, vm)


@rpc("VM.hard_shutdown(vm: ref VM)")
async def hard_shutdown(call: Call, vm: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "hard_shutdown")):
        halt(call, vm)


@rpc("VM.shutdown(vm: ref VM)")
async def shutdown(call: Call, vm: str) -> None:
    """Shut down cleanly, by force when the guest does not react."""
    try:
        check_vm(call.pool.db, vm, "clean_shutdown")
    except ApiError:
        await hard_shutdown(call, vm)
    else:
        await clean_shutdown(call, vm)


@rpc("VM.clean_reboot(vm: ref VM)")
async def clean_reboot(call: Call, vm: str) -> None:
    await _reboot(call, vm, "clean_reboot")


@rpc("VM.hard_reboot(vm: ref VM)")
async def hard_reboot(call: Call, vm: str) -> None:
    await _reboot(call, vm, "hard_reboot")


@rpc("VM.pause(vm: ref VM)")
async def pause(call: Call, vm: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "pause")):
        call.pool.db.set("VM", vm, power_state="Paused")


@rpc("VM.unpause(vm: ref VM)")
async def unpause(call: Call, vm: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "unpause")):
        call.pool.db.set("VM", vm, power_state="Running")


async def _reboot(call: Call, vm: str, operation: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, operation)):
        host = call.pool.db.get("VM", vm, "resident_on")
        halt(call, vm)
        await boot(call, vm, host, paused=False)


def check_host(call: Call, vm: str, host: str) -> None:
    """Raise VM_REQUIRES_SR or VM_REQUIRES_NETWORK when a host lacks what the VM needs."""
    db = call.pool.db
    for _, vdi in disks(db, vm):
        sr = db.get("VDI", vdi, "SR")
        if host not in hosts_of(db, sr):
            raise ApiError("VM_REQUIRES_SR", vm, sr)
    for vif in db.get("VM", vm, "VIFs"):
        network = db.get("VIF", vif, "network")
        pifs = db.get("network", network, "PIFs")
        if pifs and host not in [db.get("PIF", pif, "host") for pif in pifs]:
            raise ApiError("VM_REQUIRES_NETWORK", vm, network)


def choose_host(call: Call, vm: str) -> str:
    """Return the VM's affinity when it can run there, else any host that can."""
    db = call.pool.db
    affinity = db.get("VM", vm, "affinity")
    candidates = sorted(db.refs("host"), key=lambda host: host != affinity)
    failure = ApiError("NO_HOSTS_AVAILABLE")
    for host in candidates:
        if not db.get("host", host, "enabled"):
            continue
        try:
            check_host(call, vm, host)
        except ApiError as error:
            failure = error
        else:
            return host
    raise failure if len(candidates) == 1 else ApiError("NO_HOSTS_AVAILABLE")


async def boot(call: Call, vm: str, host: str, paused: bool) -> None:
    """Run a halted VM on a host; its tools are seen some time later."""
    pool, db = call.pool, call.pool.db
    record = db.record("VM", vm)
    check_memory_order(
        record["memory_static_min"],
        record["memory_dynamic_min"],
        record["memory_dynamic_max"],
        record["memory_static_max"],
    )
    for vbd, _ in disks(db, vm):
        check_sharing(call, vbd)
    domid = 1 + max(db.get("VM", ref, "domid") for ref in db.refs("VM"))
    db.set("VM", vm, resident_on=host, domid=max(1, domid), guest_metrics=NULL)
    if db.exists("VM_guest_metrics", record["guest_metrics"]):
        db.destroy("VM_guest_metrics", record["guest_metrics"])
    attached: list[str] = []
    try:
        for vbd in record["VBDs"]:
            attach(call, vbd)
            attached.append(vbd)
    except ApiError:
        for vbd in attached:
            detach(call, vbd)
        db.set("VM", vm, resident_on=NULL, domid=-1)
        raise
    for vif in record["VIFs"]:
        set_attached(call, vif, attached=True)
    db.set(
        "VM",
        vm,
        power_state="Paused" if paused else "Running",
        ha_always_run=record["ha_restart_priority"] == "restart",
    )
    now = pool.clock.now()
    if db.exists("VM_metrics", record["metrics"]):
        db.set(
            "VM_metrics",
            record["metrics"],
            start_time=now,
            last_updated=now,
            memory_actual=record["memory_dynamic_max"],
            VCPUs_number=record["VCPUs_at_startup"],
            hvm=record["domain_type"] == "hvm",
            current_domain_type=record["domain_type"],
        )
    if any(db.get("VBD", vbd, "type") == "Disk" for vbd, _ in disks(db, vm)):
        pool.spawn(_report_tools(call, vm, domid), f"guest {record['name_label']}")


async def _report_tools(call: Call, vm: str, domid: int) -> None:
    await call.pool.clock.nap(BOOT_S)
    db = call.pool.db
    if db.exists("VM", vm) and db.get("VM", vm, "domid") == domid:
        report_tools(call, vm)


def report_tools(call: Call, vm: str) -> None:
    """Write what a guest with tools reports: drivers and addresses."""
    db = call.pool.db
    networks: dict[str, str] = {}
    for vif in db.get("VM", vm, "VIFs"):
        device = db.get("VIF", vif, "device")
        address = f"192.0.2.{10 + int(device)}"
        networks[f"{device}/ip"] = networks[f"{device}/ipv4/0"] = address
    metrics = db.create(
        "VM_guest_metrics",
        os_version={"name": "Debian GNU/Linux 12 (bookworm)", "distro": "debian", "major": "12"},
        PV_drivers_version={"major": "8", "minor": "0", "micro": "0", "build": "1"},
        networks=networks,
        other={"feature-shutdown": "1", "feature-suspend": "1", "platform-feature-xs_reset": "1"},
        PV_drivers_up_to_date=True,
        PV_drivers_detected=True,
        live=True,
        last_updated=call.pool.clock.now(),
        can_use_hotplug_vbd="yes",
        can_use_hotplug_vif="yes",
    )
    db.set("VM", vm, guest_metrics=metrics)
    call.pool.operations.refresh("VM", vm)


def halt(call: Call, vm: str) -> None:
    db = call.pool.db
    record = db.record("VM", vm)
    suspended = record["power_state"] == "Suspended"
    db.set(
        "VM",
        vm,
        power_state="Halted",
        resident_on=NULL,
        domid=-1,
        ha_always_run=False,
        suspend_VDI=NULL,
    )
    for vbd in record["VBDs"]:
        detach(call, vbd)
    for vif in record["VIFs"]:
        set_attached(call, vif, attached=False)
    if suspended and db.exists("VDI", record["suspend_VDI"]):
        db.destroy("VDI", record["suspend_VDI"])
