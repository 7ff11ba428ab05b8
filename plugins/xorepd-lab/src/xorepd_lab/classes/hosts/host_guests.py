"""What becomes of the VMs of a host that dies or boots.

Nobody notes that a dead host's VMs do not run but the host itself when it is back, HA, or somebody
who declares it dead. What is started then is started through VM.start, which may refuse.

Source: xapi: ocaml/xapi/xapi_xenops.ml, xapi_vm_lifecycle.ml (force_state_reset), xapi_ha.ml;
scripts/xapi-autostart-vms.
"""

from xorepd_lab.calls.call import Pool
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.classes.vm.power import halt
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.registry import Registry


def guests_of(db: Registry, host: str) -> list[str]:
    """Return the VMs that are said to run on a host, without its control domain."""
    return [
        vm
        for vm in db.get("host", host, "resident_VMs")
        if not db.get("VM", vm, "is_control_domain")
    ]


def disks_written_by(db: Registry, host: str) -> list[str]:
    """Return the VDIs that VMs of a host may write to now, its control domain's included."""
    vbds = [
        db.record("VBD", vbd)
        for vm in db.get("host", host, "resident_VMs")
        for vbd in db.get("VM", vm, "VBDs")
    ]
    return [
        vbd["VDI"]
        for vbd in vbds
        if vbd["currently_attached"] and not vbd["empty"] and vbd["mode"] == "RW"
    ]


def reset_guests(pool: Pool, host: str) -> None:
    """Note that VMs said to run on a host do not: their domains are gone."""
    call = pool.internal_call()
    for vm in guests_of(pool.db, host):
        pool.db.set("VM", vm, current_operations={})
        halt(call, vm)
        pool.operations.refresh("VM", vm)


async def autostart(pool: Pool) -> None:
    """Start what is to be started when a host has booted."""
    db = pool.db
    own = next(db.select("pool"))
    if db.get("pool", own, "other_config").get("auto_poweron") != "true":
        return
    wanted = [
        vm
        for vm in db.select("VM", power_state="Halted", is_a_template=False, is_a_snapshot=False)
        if db.get("VM", vm, "other_config").get("auto_poweron") == "true"
    ]
    await _start(pool, wanted)


async def restart_protected(pool: Pool) -> None:
    """Start what HA protects, in order."""
    db = pool.db
    wanted = [
        vm
        for vm in db.select("VM", power_state="Halted", is_a_template=False)
        if db.get("VM", vm, "ha_always_run")
        and db.get("VM", vm, "ha_restart_priority") == "restart"
    ]
    await _start(pool, sorted(wanted, key=lambda vm: int(db.get("VM", vm, "order"))))


async def _start(pool: Pool, vms: list[str]) -> None:
    for vm in vms:
        try:
            await perform(pool.internal_call(), "VM.start", vm, False, False)
        except ApiError as error:
            pool.log.info("autostart.failed", vm=vm, error=str(error))
