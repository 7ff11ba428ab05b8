"""pool: who is master, high availability, ports.

Source: xapi: ocaml/xapi/xapi_pool.ml, xapi_pool_transition.ml, xapi_ha.ml, message_forwarding.ml.
"""

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.hosts.life import FUSE_S
from xorepd_lab.model.failures import ApiError
from xorepd_lab.rules.storage_rules import features, hosts_of


@rpc("pool.sync_database()")
def sync_database(call: Call) -> None:
    """Nothing to do: the lab's members share the database."""


@rpc("pool.is_slave(host: ref host)", asynchronous=False)
def is_slave(call: Call, host: str) -> bool:
    return call.host != call.pool.master


@rpc("pool.designate_new_master(host: ref host)")
async def designate_new_master(call: Call, host: str) -> None:
    """Hand the role over; this call is answered before the toolstacks restart."""
    db, life = call.pool.db, call.pool.life
    db.row("host", host)
    async with call.pool.operations.hold(
        call.task, Claim("pool", _own(call), "designate_new_master")
    ):
        life.check_reachable(host)
        if host == call.pool.master:
            return
        _check_without_ha(call)
        for other in db.refs("host"):
            life.check_reachable(other)
        call.pool.spawn(life.change_master(host, after_s=FUSE_S), "change of master")


@rpc("pool.emergency_transition_to_master()", asynchronous=False)
def emergency_transition_to_master(call: Call) -> None:
    """Make the member that is asked the master."""
    _check_without_ha(call)
    call.pool.spawn(call.pool.life.seize(call.host, after_s=FUSE_S), "change of master")


@rpc("pool.emergency_reset_master(master_address: string)", asynchronous=False)
def emergency_reset_master(call: Call, master_address: str) -> None:
    """Point the member that is asked at another master."""
    _check_without_ha(call)
    follow = call.pool.life.follow(call.host, master_address, after_s=FUSE_S)
    call.pool.spawn(follow, "change of master")


@rpc("pool.recover_slaves()")
async def recover_slaves(call: Call) -> list[str]:
    return await call.pool.life.recover_members()


@rpc("pool.set_https_only(self: ref pool, value: bool)")
async def set_https_only(call: Call, pool: str, value: bool) -> None:
    call.pool.db.row("pool", pool)
    for host in call.pool.db.refs("host"):
        call.pool.life.check_reachable(host)
        await call.pool.life.set_https_only(host, value)


@rpc("pool.enable_ha(heartbeat_srs: set ref SR, configuration: map string string)")
async def enable_ha(call: Call, heartbeat_srs: list[str], configuration: dict[str, str]) -> None:
    """Switch high availability on. The lab writes no state file: nothing of it can be seen."""
    db, pool = call.pool.db, _own(call)
    async with call.pool.operations.hold(call.task, Claim("pool", pool, "ha_enable")):
        for host in db.refs("host"):
            if not call.pool.life.is_live(host):
                raise ApiError("HOST_OFFLINE", host)
        if not any(_holds_state(call, sr) for sr in heartbeat_srs or db.refs("SR")):
            raise ApiError("CANNOT_CREATE_STATE_FILE")
        db.set(
            "pool", pool, ha_enabled=True, ha_configuration=configuration, ha_cluster_stack="xhad"
        )


@rpc("pool.disable_ha()")
async def disable_ha(call: Call) -> None:
    pool = _own(call)
    async with call.pool.operations.hold(call.task, Claim("pool", pool, "ha_disable")):
        call.pool.db.set("pool", pool, ha_enabled=False)


@rpc("pool.set_ha_host_failures_to_tolerate(self: ref pool, value: int)")
def set_ha_host_failures_to_tolerate(call: Call, pool: str, value: int) -> None:
    if value < 0:
        raise ApiError("INVALID_VALUE", "ha_host_failures_to_tolerate", str(value))
    call.pool.db.set("pool", pool, ha_host_failures_to_tolerate=value)


@rpc("pool.get_guest_secureboot_readiness(self: ref pool)", asynchronous=False)
def get_guest_secureboot_readiness(call: Call, pool: str) -> str:
    """Tell that hosts have no certificates for their guests' firmware."""
    call.pool.db.row("pool", pool)
    return "not_ready"


def _own(call: Call) -> str:
    return next(call.pool.db.select("pool"))


def _check_without_ha(call: Call) -> None:
    if call.pool.db.get("pool", _own(call), "ha_enabled"):
        raise ApiError("HA_IS_ENABLED")


def _holds_state(call: Call, sr: str) -> bool:
    """Say whether an SR can hold HA's state file: all hosts see it, and it has such disks."""
    db = call.pool.db
    return set(hosts_of(db, sr)) == set(db.refs("host")) and "VDI_GENERATE_CONFIG" in features(
        db, sr
    )
