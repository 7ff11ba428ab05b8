"""A VM becomes a domain on a host, and ceases to be one.

    Halted ──enter──► Running, Paused ──leave──► Halted      disks and networks let go
    Suspended ◄──────────────┘                               disks stay `currently_attached`

Everything here happens at once; the waits are in the calls.

Source: xapi: ocaml/xapi/xapi_xenops.ml, xapi_vm_lifecycle.ml (force_state_reset).
"""

import asyncio
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.classes.devices.vbd import attach, detach, let_go
from xorepd_lab.guests import agent as guest_agent
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.rules.placement import check_memory, is_live, update_free_memory
from xorepd_lab.rules.vm_rules import has_tools

BOOT_S = 10.0
"""From start until the guest's tools report, in a guest of the lab."""
MESSAGE_PRIORITY = 5
CPU_FLAGS = {"vendor": "GenuineIntel", "features": "17c9cbf5-f6f83203-2191cbf5-00000023"}
"""Of the hosts of a lab, which are all alike."""


def enter(call: Call, vm: str, host: str, paused: bool) -> None:
    """Build the domain of a halted or suspended VM on a host.

    Raises:
        ApiError: HOST_OFFLINE [host], HOST_NOT_ENOUGH_FREE_MEMORY, or what attaching a disk fails
            with; nothing has changed then.
    """
    db = call.pool.db
    if not db.exists("host", host) or not is_live(db, host):
        raise ApiError("HOST_OFFLINE", host)
    undo = let_go if db.get("VM", vm, "power_state") == "Suspended" else detach
    if db.get("VM", vm, "resident_on") != host:
        check_memory(db, vm, host)
    db.set("VM", vm, resident_on=host)
    attached: list[str] = []
    try:
        for vbd in db.get("VM", vm, "VBDs"):
            attach(call, vbd)
            attached.append(vbd)
    except ApiError:
        for vbd in attached:
            undo(call, vbd)
        db.set("VM", vm, resident_on=NULL)
        raise
    for vif in db.get("VM", vm, "VIFs"):
        db.set("VIF", vif, currently_attached=True)
    record = db.record("VM", vm)
    db.set(
        "VM",
        vm,
        domid=new_domid(call),
        scheduled_to_be_resident_on=NULL,
        power_state="Paused" if paused else "Running",
        memory_target=record["memory_dynamic_max"],
        last_boot_CPU_flags=CPU_FLAGS,
    )
    _update_metrics(call, record)
    guest_agent.begin_report(call.pool, vm)
    _drop_consoles(call, vm)
    _show_console(call, vm, host)
    update_free_memory(db, host)
    call.pool.operations.refresh_vm(vm)


def leave(call: Call, vm: str) -> None:
    """Make a VM halted, whatever it was; a suspended one loses the reference to its memory."""
    db = call.pool.db
    record = db.record("VM", vm)
    for vbd in record["VBDs"]:
        detach(call, vbd)
    for vif in record["VIFs"]:
        db.set("VIF", vif, currently_attached=False)
    db.set("VM", vm, power_state="Halted", suspend_VDI=NULL, requires_reboot=False)
    _gone(call, vm, record["resident_on"])


def freeze(call: Call, vm: str) -> None:
    """Make a running VM suspended: its devices stay attached on paper, its host lets them go.

    During a checkpoint it keeps its place on the host, where it is about to go on.
    """
    db = call.pool.db
    record = db.record("VM", vm)
    db.set("VM", vm, power_state="Suspended")
    for vbd in record["VBDs"]:
        let_go(call, vbd)
    if "checkpoint" not in record["current_operations"].values():
        _gone(call, vm, record["resident_on"])


def move(call: Call, vm: str, host: str) -> None:
    """Let a running domain go on at another host."""
    db = call.pool.db
    source = db.get("VM", vm, "resident_on")
    db.set("VM", vm, resident_on=host, scheduled_to_be_resident_on=NULL, domid=new_domid(call))
    _drop_consoles(call, vm)
    _show_console(call, vm, host)
    for changed in (source, host):
        update_free_memory(db, changed)
    call.pool.operations.refresh_vm(vm)


def new_domid(call: Call) -> int:
    """Return a number that no domain of the pool has or, since the lab started, had."""
    pool = call.pool
    in_use = max(int(pool.db.get("VM", vm, "domid")) for vm in pool.db.refs("VM"))
    pool.last_domid = max(pool.last_domid, in_use) + 1
    return pool.last_domid


def await_tools(call: Call, vm: str) -> None:
    """Let the guest's report come once it has booted, unless the domain is gone by then."""
    if guest_agent.has_drivers(call.pool.db, vm):
        domid = call.pool.db.get("VM", vm, "domid")
        name = call.pool.db.get("VM", vm, "name_label")
        call.pool.spawn(_report(call, vm, domid), f"guest {name}")


async def _report(call: Call, vm: str, domid: int) -> None:
    await call.pool.clock.nap(BOOT_S)
    db = call.pool.db
    if db.exists("VM", vm) and db.get("VM", vm, "domid") == domid:
        guest_agent.report_tools(call.pool, vm)


def settle(call: Call) -> None:
    """Take up what the guests do where a lab that ended left it."""
    db = call.pool.db
    for vm in db.refs("VM"):
        db.set("VM", vm, scheduled_to_be_resident_on=NULL)
    for vm in list(db.select("VM", power_state="Running", is_control_domain=False)):
        if not has_tools(db, vm):
            await_tools(call, vm)


async def nap_unless_cancelled(call: Call, seconds: float) -> None:
    """Wait so many of XAPI's seconds; TASK_CANCELLED as soon as the task is to be cancelled."""
    loop = asyncio.get_running_loop()
    end = loop.time() + call.pool.clock.scaled(seconds)
    while (left := end - loop.time()) > 0:
        call.pool.tasks.check_cancelled(call.task)
        try:
            async with asyncio.timeout(left):
                await call.pool.db.changed()
        except TimeoutError:
            break
    call.pool.tasks.check_cancelled(call.task)


def announce(call: Call, vm: str, name: str, what: str) -> None:
    """Leave the message that XAPI leaves after such an operation.

    Args:
        name: `VM_STARTED` and the like.
        what: What happened, in words after the VM's name and UUID.
    """
    db = call.pool.db
    record = db.record("VM", vm)
    db.create(
        "message",
        name=name,
        priority=MESSAGE_PRIORITY,
        cls="VM",
        obj_uuid=record["uuid"],
        timestamp=call.pool.clock.now(),
        body=f"VM '{record['name_label']}' (uuid: {record['uuid']}) {what}",
    )


def host_text(call: Call, host: str) -> str:
    record = call.pool.db.record("host", host)
    return f"{record['name_label']} (uuid: {record['uuid']})"


def _gone(call: Call, vm: str, host: str) -> None:
    db = call.pool.db
    _drop_consoles(call, vm)
    db.set("VM", vm, resident_on=NULL, scheduled_to_be_resident_on=NULL, domid=-1)
    update_free_memory(db, host)
    call.pool.operations.refresh_vm(vm)


def _update_metrics(call: Call, vm: dict[str, Any]) -> None:
    db = call.pool.db
    if not db.exists("VM_metrics", vm["metrics"]):
        return
    platform = vm["platform"]
    now = call.pool.clock.now()
    db.set(
        "VM_metrics",
        vm["metrics"],
        start_time=now,
        last_updated=now,
        memory_actual=vm["memory_dynamic_max"],
        VCPUs_number=vm["VCPUs_at_startup"],
        hvm=vm["domain_type"] == "hvm",
        current_domain_type=vm["domain_type"],
        nomigrate=platform.get("nomigrate", "") in ("1", "true"),
        nested_virt=platform.get("nested-virt", "") in ("1", "true"),
    )


def _show_console(call: Call, vm: str, host: str) -> None:
    db = call.pool.db
    uuid = db.new_uuid()
    db.create(
        "console",
        uuid=uuid,
        VM=vm,
        protocol="rfb" if db.get("VM", vm, "domain_type") == "hvm" else "vt100",
        location=f"https://{call.pool.address(host)}/console?uuid={uuid}",
    )


def _drop_consoles(call: Call, vm: str) -> None:
    for console in call.pool.db.get("VM", vm, "consoles"):
        call.pool.db.destroy("console", console)
