"""VM: what clients ask about a VM, and what they ask of it in vain.

Source: xapi: ocaml/xapi/xapi_vm.ml, message_forwarding.ml, agility.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import ApiError
from xorepd_lab.rules import placement

AGENT_PLUGIN = "guest-agent-operation"
AGENT_FUNCTIONS = ("request-rdp-on", "request-rdp-off")


# -- where it can run ---------------------------------------------------------------------------


@rpc("VM.assert_can_boot_here(self: ref VM, host: ref host)")
def assert_can_boot_here(call: Call, vm: str, host: str) -> None:
    call.pool.db.row("host", host)
    placement.check_host(call.pool.db, vm, host)


@rpc("VM.get_possible_hosts(vm: ref VM)")
def get_possible_hosts(call: Call, vm: str) -> list[str]:
    call.pool.db.row("VM", vm)
    return placement.possible_hosts(call.pool.db, vm)


@rpc("VM.assert_agile(self: ref VM)")
def assert_agile(call: Call, vm: str) -> None:
    """Raise what binds a VM to one host: an SR or a network that others do not have."""
    db = call.pool.db
    hosts = set(db.refs("host"))
    for sr in placement.required_srs(db, vm):
        if not db.get("SR", sr, "shared"):
            raise ApiError("HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED", sr)
    for vif in db.get("VM", vm, "VIFs"):
        network = db.get("VIF", vif, "network")
        if not all(placement.sees_network(db, network, host) for host in hosts):
            raise ApiError("HA_CONSTRAINT_VIOLATION_NETWORK_NOT_SHARED", network)


@rpc("VM.maximise_memory(self: ref VM, total: int, approximate: bool)")
def maximise_memory(call: Call, vm: str, total: int, approximate: bool) -> int:
    return placement.maximise_memory(call.pool.db.record("VM", vm), total, approximate)


@rpc("VM.compute_memory_overhead(vm: ref VM)")
def compute_memory_overhead(call: Call, vm: str) -> int:
    return placement.overhead_bytes(call.pool.db.record("VM", vm))


# -- what it is ---------------------------------------------------------------------------------


@rpc("VM.get_boot_record(self: ref VM)", asynchronous=False)
async def get_boot_record(call: Call, vm: str) -> dict[str, Any]:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "get_boot_record")):
        return call.pool.db.record("VM", vm)


@rpc("VM.get_cooperative(self: ref VM)")
def get_cooperative(call: Call, vm: str) -> bool:
    """Say yes, as XAPI does since nobody can tell any more."""
    call.pool.db.row("VM", vm)
    return True


@rpc("VM.get_data_sources(self: ref VM)", asynchronous=False)
async def get_data_sources(call: Call, vm: str) -> list[Any]:
    """Return nothing: nobody measures VMs that do not exist."""
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "data_source_op")):
        return []


# -- in vain ------------------------------------------------------------------------------------


@rpc("VM.send_sysrq(vm: ref VM, key: string)")
async def send_sysrq(call: Call, vm: str, key: str) -> None:
    await _refuse(call, vm, "send_sysrq")


@rpc("VM.send_trigger(vm: ref VM, trigger: string)")
async def send_trigger(call: Call, vm: str, trigger: str) -> None:
    await _refuse(call, vm, "send_trigger")


async def _refuse(call: Call, vm: str, operation: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, operation)):
        raise ApiError("NOT_IMPLEMENTED", operation)


@rpc("VM.call_plugin(vm: ref VM, plugin: string, fn: string, args: map string string)")
async def call_plugin(call: Call, vm: str, plugin: str, fn: str, args: dict[str, str]) -> str:
    """Refuse: the guest agent of the lab's guests can do none of it."""
    claim = Claim("VM", vm, "call_plugin")
    async with call.pool.operations.hold(call.task, claim, patience_s=0):
        if plugin != AGENT_PLUGIN:
            raise ApiError("XENAPI_MISSING_PLUGIN", plugin)
        if fn == "run-script":
            raise ApiError("FEATURE_RESTRICTED")
        if fn in AGENT_FUNCTIONS:
            what = "could not be executed for lack of guest agent control feature."
            text = f'The requested fn "{fn}" of plugin "{plugin}" {what}'
            raise ApiError("XENAPI_PLUGIN_FAILURE", "failed to execute fn", text, text)
        text = f'The requested fn "{fn}" could not be found in plugin "{plugin}".'
        raise ApiError("XENAPI_PLUGIN_FAILURE", "failed to find fn", text, text)


@rpc("VM.query_services(self: ref VM)")
async def query_services(call: Call, vm: str) -> dict[str, str]:
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "query_services")):
        return {}
