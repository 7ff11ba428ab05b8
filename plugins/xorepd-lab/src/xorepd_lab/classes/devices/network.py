"""network: virtual switches across the hosts of a pool, and what they may be used for.

A network with purpose `nbd` or `insecure_nbd` is one over which disks may be read with NBD. The two
exclude each other in the whole pool; `nbd_server` looks at them for every connection.

Source: xapi: ocaml/xapi/xapi_network.ml, ocaml/idl/datamodel.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.generics import create_arguments
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import NULL, ApiError

USUAL_MTU = 1500
LONGEST_BRIDGE = 15
"""Characters in the name of a Linux network device."""
RESERVED_BRIDGES = ("xen", "xapi", "vif", "tap", "eth")
"""What the names of bridges that clients choose must not begin with."""
CONFLICTING = {"nbd": "insecure_nbd", "insecure_nbd": "nbd"}


@rpc("network.create(args: record network)")
def create(call: Call, record: dict[str, Any]) -> str:
    fields = create_arguments("network", record)
    db = call.pool.db
    taken = {db.get("network", ref, "bridge") for ref in db.refs("network")}
    bridge = fields["bridge"]
    if not bridge:
        numbered = (f"xapi{number}" for number in range(len(taken) + 1))
        fields["bridge"] = next(name for name in numbered if name not in taken)
    elif not _is_internal(call) and (
        len(bridge) > LONGEST_BRIDGE or bridge.startswith(RESERVED_BRIDGES)
    ):
        raise ApiError("INVALID_VALUE", "bridge", bridge)
    elif bridge in taken:
        raise ApiError("BRIDGE_NAME_EXISTS", bridge)
    if fields["MTU"] <= 0:
        fields["MTU"] = USUAL_MTU
    return db.create("network", **fields)


def _is_internal(call: Call) -> bool:
    return call.session == NULL or bool(call.pool.db.get("session", call.session, "pool"))


@rpc("network.destroy(self: ref network)")
def destroy(call: Call, network: str) -> None:
    db = call.pool.db
    record = db.record("network", network)
    attached = [vif for vif in record["VIFs"] if db.get("VIF", vif, "currently_attached")]
    if attached:
        raise ApiError("NETWORK_CONTAINS_VIF", *attached)
    if record["PIFs"]:
        raise ApiError("NETWORK_CONTAINS_PIF", *record["PIFs"])
    if record["other_config"].get("is_host_internal_management_network") == "true":
        raise ApiError("CANNOT_DESTROY_SYSTEM_NETWORK", network)
    for vif in record["VIFs"]:
        db.destroy("VIF", vif)
    db.destroy("network", network)


@rpc("network.set_default_locking_mode(network: ref network, value: default_locking_mode)")
def set_default_locking_mode(call: Call, network: str, value: str) -> None:
    db = call.pool.db
    for vif in db.get("network", network, "VIFs"):
        if db.get("VIF", vif, "currently_attached"):
            raise ApiError("VIF_IN_USE", network, vif)
    db.set("network", network, default_locking_mode=value)


@rpc("network.add_purpose(self: ref network, value: network_purpose)")
def add_purpose(call: Call, network: str, value: str) -> None:
    db = call.pool.db
    record = db.record("network", network)
    if not record["managed"]:
        raise ApiError("NETWORK_UNMANAGED", network)
    if value in record["purpose"]:
        return
    for other in db.refs("network"):
        if CONFLICTING[value] in db.get("network", other, "purpose"):
            raise ApiError("NETWORK_INCOMPATIBLE_PURPOSES", value, CONFLICTING[value])
    db.set("network", network, purpose=[value, *record["purpose"]])


@rpc("network.remove_purpose(self: ref network, value: network_purpose)")
def remove_purpose(call: Call, network: str, value: str) -> None:
    db = call.pool.db
    kept = [each for each in db.get("network", network, "purpose") if each != value]
    db.set("network", network, purpose=kept)
