"""host, pool, network, message, VTPM: the few calls of theirs that clients of the lab make.

Source: xapi: ocaml/xapi/xapi_host.ml, xapi_network.ml, xapi_message.ml, xapi_vtpm.ml.
"""

from typing import Any

from xorepd.lab.dispatch import Call, rpc
from xorepd.lab.failures import ApiError
from xorepd.lab.generics import create_arguments
from xorepd.lab.rules import check_vm
from xorepd.lab.schema import DateTime


@rpc("host.get_servertime(host: ref host)")
def get_servertime(call: Call, host: str) -> DateTime:
    call.pool.db.row("host", host)
    return call.pool.clock.now()


@rpc("host.get_server_localtime(host: ref host)")
def get_server_localtime(call: Call, host: str) -> DateTime:
    call.pool.db.row("host", host)
    return call.pool.clock.now()


@rpc("host.get_server_certificate(host: ref host)")
def get_server_certificate(call: Call, host: str) -> str:
    call.pool.db.row("host", host)
    return call.pool.certificates[host].read_text()


@rpc("host.disable(host: ref host)")
def disable(call: Call, host: str) -> None:
    call.pool.db.set("host", host, enabled=False)


@rpc("host.enable(host: ref host)")
def enable(call: Call, host: str) -> None:
    call.pool.db.set("host", host, enabled=True)


@rpc("network.create(args: record network)")
def create_network(call: Call, record: dict[str, Any]) -> str:
    fields = create_arguments("network", record)
    db = call.pool.db
    if not fields["bridge"]:
        taken = {db.get("network", ref, "bridge") for ref in db.refs("network")}
        fields["bridge"] = next(f"xapi{n}" for n in range(1000) if f"xapi{n}" not in taken)
    return db.create("network", **fields)


@rpc("network.destroy(self: ref network)")
def destroy_network(call: Call, network: str) -> None:
    record = call.pool.db.record("network", network)
    if record["PIFs"]:
        raise ApiError("NETWORK_CONTAINS_PIF", *record["PIFs"])
    attached = [v for v in record["VIFs"] if call.pool.db.get("VIF", v, "currently_attached")]
    if attached:
        raise ApiError("NETWORK_CONTAINS_VIF", *attached)
    for vif in record["VIFs"]:
        call.pool.db.destroy("VIF", vif)
    call.pool.db.destroy("network", network)


@rpc(
    "message.create(name: string, priority: int, cls: message_class, obj_uuid: string,"
    " body: string)"
)
def create_message(call: Call, name: str, priority: int, cls: str, obj_uuid: str, body: str) -> str:
    return call.pool.db.create(
        "message",
        name=name,
        priority=priority,
        cls=cls,
        obj_uuid=obj_uuid,
        body=body,
        timestamp=call.pool.clock.now(),
    )


@rpc("message.destroy(self: ref message)")
def destroy_message(call: Call, message: str) -> None:
    call.pool.db.destroy("message", message)


@rpc("VTPM.create(vM: ref VM, is_unique: bool = false)")
def create_vtpm(call: Call, vm: str, is_unique: bool) -> str:
    db = call.pool.db
    check_vm(db, vm, "create_vtpm")
    restrictions = db.get("pool", next(db.select("pool")), "restrictions")
    if restrictions.get("restrict_vtpm") != "false":
        raise ApiError("FEATURE_RESTRICTED", "restrict_vtpm")
    if db.get("VM", vm, "VTPMs"):
        raise ApiError("VTPM_MAX_AMOUNT_REACHED", "1")
    return db.create("VTPM", VM=vm, is_unique=is_unique, allowed_operations=["destroy"])


@rpc("VTPM.destroy(self: ref VTPM)")
def destroy_vtpm(call: Call, vtpm: str) -> None:
    db = call.pool.db
    state = db.get("VM", db.get("VTPM", vtpm, "VM"), "power_state")
    if state != "Halted":
        raise ApiError("VM_BAD_POWER_STATE", db.get("VTPM", vtpm, "VM"), "halted", state.lower())
    db.destroy("VTPM", vtpm)
