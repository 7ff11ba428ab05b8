"""VM.pool_migrate: a running VM moves to another host that sees its disks.

Source: xapi: ocaml/xapi/xapi_vm_migrate.ml (pool_migrate), message_forwarding.ml.
"""

from collections.abc import Mapping
from types import MappingProxyType

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.storage.attachments import activate, deactivate
from xorepd_lab.classes.vm.domain import announce, host_text, move, nap_unless_cancelled
from xorepd_lab.classes.vm.power import reserved
from xorepd_lab.guests import agent as guest_agent
from xorepd_lab.model.failures import ApiError
from xorepd_lab.rules import placement
from xorepd_lab.rules.vm_rules import check_power_state

COPY_S = 5.0
"""What sending the memory takes; order of some seconds per GiB, not measured."""
STEPS = 5


@rpc("VM.pool_migrate(vm: ref VM, host: ref host, options: map string string)")
async def pool_migrate(call: Call, vm: str, host: str, options: dict[str, str]) -> None:
    db = call.pool.db
    forced = options.get("force") == "true"
    claim = Claim("VM", vm, "pool_migrate")
    async with call.pool.operations.hold(call.task, claim, forced=forced):
        source = db.get("VM", vm, "resident_on")
        placement.check_host(db, vm, host)
        _check_network(call, host, options)
        async with reserved(call, vm, host, "vm_migrate"):
            await send_memory(call)
            # Either host may have died meanwhile.
            check_power_state(vm, db.get("VM", vm, "power_state"), "Running")
            placement.check_host(db, vm, host, memory=False)
            switch(call, vm, host)
    text = f"migrated from host '{host_text(call, source)}' to host '{host_text(call, host)}'"
    announce(call, vm, "VM_MIGRATED", text)


def _check_network(call: Call, host: str, options: dict[str, str]) -> None:
    """Check the network that the memory is to take, when one is given."""
    db = call.pool.db
    network = options.get("network")
    if network is None:
        return
    pifs = [pif for pif in db.get("network", network, "PIFs") if db.get("PIF", pif, "host") == host]
    if not pifs:
        raise ApiError("PIF_NOT_PRESENT", host, network)
    if not db.get("PIF", pifs[0], "currently_attached"):
        raise ApiError("REQUIRED_PIF_IS_UNPLUGGED", pifs[0])
    if not db.get("PIF", pifs[0], "IP"):
        raise ApiError("INTERFACE_HAS_NO_IP", pifs[0])


async def send_memory(call: Call) -> None:
    """Take the time that it takes; TASK_CANCELLED as soon as the task is to be cancelled."""
    for step in range(STEPS):
        await nap_unless_cancelled(call, COPY_S / STEPS)
        call.pool.tasks.progress(call.task, (step + 1) / (STEPS + 1))


def switch(call: Call, vm: str, host: str, new: Mapping[str, str] = MappingProxyType({})) -> None:
    """Let the disks go here and take them there; the guest notices nothing.

    Args:
        new: The VDIs that it gets instead of others.
    """
    db, pool = call.pool.db, call.pool
    disks = [vbd for vbd in db.get("VM", vm, "VBDs") if db.get("VBD", vbd, "currently_attached")]
    move(call, vm, host)
    for vbd in disks:
        disk = db.record("VBD", vbd)
        if disk["empty"]:
            continue
        vdi = new.get(disk["VDI"], disk["VDI"])
        db.set("VBD", vbd, VDI=vdi)
        deactivate(pool, disk["VDI"])
        activate(pool, vdi, disk["mode"], host)
    guest_agent.refresh_networks(pool, vm)
