"""host: maintenance, power, and what a client asks a single member.

Source: xapi: ocaml/xapi/xapi_host.ml, message_forwarding.ml (module Host).
"""

from xorepd_lab.calls.call import Call, State
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import method_names, rpc
from xorepd_lab.classes.hosts.host_guests import guests_of, reset_guests
from xorepd_lab.classes.hosts.life import RESTART_AGENT_S
from xorepd_lab.model.failures import NULL, ApiError, internal_error, not_simulated
from xorepd_lab.model.schema import DateTime
from xorepd_lab.rules.host_rules import check_host_operation
from xorepd_lab.rules.placement import check_host as check_can_run
from xorepd_lab.rules.vm_rules import check_vm


@rpc("host.get_servertime(host: ref host)", asynchronous=False)
def get_servertime(call: Call, host: str) -> DateTime:
    _reach(call, host)
    return call.pool.clock.now()


@rpc("host.get_server_localtime(host: ref host)", asynchronous=False)
def get_server_localtime(call: Call, host: str) -> DateTime:
    _reach(call, host)
    return call.pool.clock.now()


@rpc("host.get_server_certificate(host: ref host)")
def get_server_certificate(call: Call, host: str) -> str:
    _reach(call, host)
    return call.pool.certificates[host].read_text()


@rpc("host.get_management_interface(host: ref host)")
def get_management_interface(call: Call, host: str) -> str:
    db = call.pool.db
    for pif in db.get("host", host, "PIFs"):
        if db.get("PIF", pif, "management"):
            return str(pif)
    raise internal_error("no management interface")


@rpc("host.compute_free_memory(host: ref host)")
def compute_free_memory(call: Call, host: str) -> int:
    _reach(call, host)
    db = call.pool.db
    return int(db.get("host_metrics", db.get("host", host, "metrics"), "memory_free"))


@rpc("host.compute_memory_overhead(host: ref host)")
def compute_memory_overhead(call: Call, host: str) -> int:
    _reach(call, host)
    return int(call.pool.db.get("host", host, "memory_overhead"))


@rpc("host.list_methods()", asynchronous=False)
def list_methods(call: Call) -> list[str]:
    return list(method_names(call.pool.db.release))


@rpc("host.is_in_emergency_mode()", asynchronous=False)
def is_in_emergency_mode(call: Call) -> bool:
    return call.pool.life.state(call.host) is State.BOOTING


@rpc("host.call_plugin(host: ref host, plugin: string, fn: string, args: map string string)")
def call_plugin(call: Call, host: str, plugin: str, fn: str, args: dict[str, str]) -> str:
    """Refuse: the lab's hosts have no plugins."""
    _reach(call, host)
    raise ApiError("XENAPI_MISSING_PLUGIN", plugin)


# -- maintenance -----------------------------------------------------------------------------------


@rpc("host.disable(host: ref host, auto_enable: bool = true)")
def disable(call: Call, host: str, auto_enable: bool) -> None:
    """Let a host take no more VMs until it is enabled or boots; not simulated: or not even then."""
    _reach(call, host)
    if not auto_enable:
        raise not_simulated("host.disable")
    call.pool.db.set("host", host, enabled=False)
    call.pool.operations.refresh("host", host)


@rpc("host.enable(host: ref host)")
async def enable(call: Call, host: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("host", host, "enable")):
        _reach(call, host)
        if "shutdown" in call.pool.db.get("host", host, "current_operations").values():
            raise ApiError("HOST_DISABLED_UNTIL_REBOOT", host)
        call.pool.db.set("host", host, enabled=True)


@rpc("host.assert_can_evacuate(host: ref host)")
def assert_can_evacuate(call: Call, host: str) -> None:
    failures = [error for error in _plan(call, host).values() if isinstance(error, ApiError)]
    if failures:
        told = "|".join(",".join(error.description) for error in failures)
        raise ApiError("CANNOT_EVACUATE_HOST", told)


@rpc("host.get_vms_which_prevent_evacuation(self: ref host)")
def get_vms_which_prevent_evacuation(call: Call, host: str) -> dict[str, list[str]]:
    return {
        vm: plan.description for vm, plan in _plan(call, host).items() if isinstance(plan, ApiError)
    }


@rpc(
    'host.evacuate(host: ref host, network: ref network = "OpaqueRef:NULL",'
    " evacuate_batch_size: int = 0)"
)
async def evacuate(call: Call, host: str, network: str, evacuate_batch_size: int) -> None:
    """Migrate all VMs away, one after another, to the first host that can run each."""
    async with call.pool.operations.hold(call.task, Claim("host", host, "evacuate")):
        plan = _plan(call, host)
        for target in plan.values():
            if isinstance(target, ApiError):
                raise target
        options = {"live": "true"} | ({} if network == NULL else {"network": network})
        for vm, target in plan.items():
            try:
                await perform(call, "VM.pool_migrate", vm, target, options)
            except ApiError as error:
                # It was shut down or moved meanwhile, which is as good.
                if error.code != "VM_BAD_POWER_STATE":
                    raise
        left = len(guests_of(call.pool.db, host))
        if left:
            raise internal_error(f"evacuate: {left} VMs are still resident on {host}")


def _plan(call: Call, host: str) -> dict[str, "str | ApiError"]:
    """Return where each VM of a host can go, or why it cannot."""
    db, life = call.pool.db, call.pool.life
    db.row("host", host)
    targets = [
        other
        for other in db.refs("host")
        if other != host and db.get("host", other, "enabled") and life.is_live(other)
    ]
    return {vm: _target(call, vm, targets) for vm in guests_of(call.pool.db, host)}


def _target(call: Call, vm: str, targets: list[str]) -> "str | ApiError":
    failure = ApiError("NO_HOSTS_AVAILABLE", vm)
    for target in targets:
        try:
            check_vm(call.pool.db, vm, "pool_migrate")
            check_can_run(call.pool.db, vm, target)
        except ApiError as error:
            failure = error
        else:
            return target
    return failure


# -- power -----------------------------------------------------------------------------------------


@rpc("host.shutdown(host: ref host)")
async def shutdown(call: Call, host: str) -> None:
    await _stop(call, host, "shutdown", again=False)


@rpc("host.reboot(host: ref host)")
async def reboot(call: Call, host: str) -> None:
    await _stop(call, host, "reboot", again=True)


async def _stop(call: Call, host: str, operation: str, again: bool) -> None:
    """Begin to shut down. The call returns at once; a task of the host's own shows what goes on."""
    pool = call.pool
    async with pool.operations.hold(call.task, Claim("host", host, operation)):
        _reach(call, host)
        # Both show as `shutdown` from here on, until the host has booted.
        mark = pool.db.new_ref()
        pool.db.put("host", host, "current_operations", mark, "shutdown")
        pool.spawn(pool.life.stop(host, again), operation)


@rpc("host.power_on(host: ref host)")
def power_on(call: Call, host: str) -> None:
    """Refuse: no host of the lab has a power-on mode."""
    check_host_operation(call.pool.db, host, "power_on")


@rpc("host.restart_agent(host: ref host)")
def restart_agent(call: Call, host: str) -> None:
    _reach(call, host)
    call.pool.spawn(call.pool.life.restart_agent(host, RESTART_AGENT_S), "restart of the agent")


@rpc("host.declare_dead(host: ref host)")
def declare_dead(call: Call, host: str) -> None:
    """Believe somebody who says that a host is gone: its VMs may run elsewhere."""
    _check_gone(call, host)
    reset_guests(call.pool, host)
    call.pool.db.set("host", host, enabled=False)
    call.pool.operations.refresh("host", host)


@rpc("host.destroy(self: ref host)")
def destroy(call: Call, host: str) -> None:
    db = call.pool.db
    _check_gone(call, host)
    if db.get("pool", next(db.select("pool")), "ha_enabled"):
        raise ApiError("HA_IS_ENABLED")
    if guests_of(call.pool.db, host):
        raise ApiError("HOST_HAS_RESIDENT_VMS", host)
    control_domain = db.get("host", host, "control_domain")
    db.destroy("host", host)
    call.pool.remove_host(host)
    for vbd in db.get("VM", control_domain, "VBDs"):
        db.destroy("VBD", vbd)
    db.destroy("VM", control_domain)


def _check_gone(call: Call, host: str) -> None:
    call.pool.db.row("host", host)
    try:
        call.pool.life.check_reachable(host)
    except ApiError:
        return
    raise ApiError("HOST_IS_LIVE", host)


def _reach(call: Call, host: str) -> None:
    call.pool.db.row("host", host)
    call.pool.life.check_reachable(host)


@rpc("host.set_https_only(self: ref host, value: bool)")
async def set_https_only(call: Call, host: str, value: bool) -> None:
    """Close the port without TLS, or open it."""
    _reach(call, host)
    await call.pool.life.set_https_only(host, value)
