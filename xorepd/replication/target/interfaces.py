"""The network interfaces of a replica: copies of the source's, and those that a person added.

Each interface that we create records the source's MAC and network, and the network that we put it
on. So a change of the source, or of the job's `networks`, differs from a change that a person made
to the interface. What a person made stays:

    the source has another MAC or network         replace
    the job has another network for it,
        and it is where we put it                 move
        and a person has moved or changed it      leave, with a remark
    a person added it                             leave, with a remark
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog

from xorepd.errors import XapiFailure
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Pair
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vif
from xorepd.xapi.vms import create_vif, destroy_vif, update_keys

log = structlog.get_logger(__name__)

VIF_SOURCE = "xorepd:source"
"""On the replica's interfaces: MAC and UUID of the network that the source's had."""
VIF_NETWORK = "xorepd:network"
"""On the same: UUID of the network that we put it on."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface that the replica gets."""

    device: str
    mac: str
    mtu: int
    source_network: str
    """UUID."""
    network: Ref | None
    """On the target pool; None: the job leaves the interface out."""

    @property
    def source(self) -> str:
        """What it is made of, as `VIF_SOURCE` says it."""
        return f"{self.mac} {self.source_network}"


class Deed(Enum):
    """What to do with the interface at one device of the replica."""

    LEAVE = "leave"
    SIGN = "sign"
    """It is on the right network, and does not record it."""
    CREATE = "create"
    REPLACE = "replace"
    MOVE = "move"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class Decision:
    deed: Deed
    remark: str = ""
    """What a person did, for the record of the run."""


def decide(wanted: Interface | None, present: Vif | None, networks: Mapping[Ref, str]) -> Decision:
    """Return what to do about one device of the replica. Pure.

    Args:
        wanted: what the source has there; None where it has nothing.
        present: what the replica has there.
        networks: UUIDs of the target pool's networks.
    """
    if present is None:
        is_meant = wanted is not None and wanted.network is not None
        return Decision(Deed.CREATE if is_meant else Deed.LEAVE)
    made_of, put_on = (present.other_config.get(key) for key in (VIF_SOURCE, VIF_NETWORK))
    if made_of is None:
        return Decision(Deed.LEAVE, "was not made by xorepd and stays as it is" if wanted else "")
    if wanted is None:
        return Decision(Deed.DESTROY)
    if made_of != wanted.source:
        return Decision(Deed.DESTROY if wanted.network is None else Deed.REPLACE)
    is_moved = put_on is not None and networks.get(present.network) != put_on
    if present.mac != wanted.mac or (is_moved and present.network != wanted.network):
        return Decision(Deed.LEAVE, "was changed by hand and stays as it is")
    if wanted.network is None:
        return Decision(Deed.DESTROY)
    if present.network == wanted.network:
        return Decision(Deed.LEAVE if put_on == networks.get(wanted.network) else Deed.SIGN)
    if put_on is None:  # made by an earlier xorepd: a person may have put it there
        return Decision(
            Deed.LEAVE,
            "is on another network than the job's networks say, and may have been put there by "
            "hand; if not, destroy it, and the next run creates it again",
        )
    return Decision(Deed.MOVE)


async def update_interfaces(
    pair: Pair, replica: Ref, interfaces: Sequence[Interface]
) -> Iterable[str]:
    """Give the replica the source's interfaces, with their MACs; unchanged ones are not touched.

    Returns:
        What a person changed and therefore stays, in words.
    """
    refs = await pair.target.call("VM.get_VIFs", replica)
    present = {
        vif.device: vif
        for ref in refs
        for vif in [pair.target.read(Vif, Ref(ref), await pair.target.call("VIF.get_record", ref))]
    }
    wanted = {interface.device: interface for interface in interfaces}
    networks = {ref: network.uuid for ref, network in pair.target.cache.networks.items()}
    remarks = []
    for device in sorted(present.keys() | wanted.keys()):
        interface, vif = wanted.get(device), present.get(device)
        decision = decide(interface, vif, networks)
        if decision.remark:
            remarks.append(f"interface {device} of the replica {decision.remark}")
            log.info("vif.unchanged", device=device, reason=decision.remark)
        await _do(pair.target, decision.deed, replica, interface, vif, networks)
    return remarks


async def _do(
    pool: Pool,
    deed: Deed,
    replica: Ref,
    wanted: Interface | None,
    vif: Vif | None,
    networks: Mapping[Ref, str],
) -> None:
    match deed:
        case Deed.LEAVE:
            pass
        case Deed.CREATE | Deed.REPLACE:
            assert wanted is not None
            if vif is not None:
                await destroy_vif(pool, vif.ref)
            await _create(pool, replica, wanted, networks)
        case Deed.MOVE:
            assert wanted is not None
            assert vif is not None
            await _move(pool, replica, wanted, vif, networks)
        case Deed.SIGN:
            assert wanted is not None
            assert vif is not None
            await _sign(pool, wanted, vif, networks)
        case Deed.DESTROY:
            assert vif is not None
            await destroy_vif(pool, vif.ref)


async def _create(pool: Pool, replica: Ref, wanted: Interface, networks: Mapping[Ref, str]) -> None:
    assert wanted.network is not None
    keys = {VIF_SOURCE: wanted.source, VIF_NETWORK: networks[wanted.network]}
    await create_vif(pool, replica, wanted.network, wanted.device, wanted.mac, wanted.mtu, keys)


async def _move(
    pool: Pool, replica: Ref, wanted: Interface, vif: Vif, networks: Mapping[Ref, str]
) -> None:
    """Put an interface on another network; its other settings stay."""
    try:
        await pool.call("VIF.move", vif.ref, wanted.network)
    except XapiFailure as failure:
        if failure.code != "MESSAGE_METHOD_UNKNOWN":  # hosts before XenServer 7.1
            raise
        await destroy_vif(pool, vif.ref)
        await _create(pool, replica, wanted, networks)
    else:
        await _sign(pool, wanted, vif, networks)


async def _sign(pool: Pool, wanted: Interface, vif: Vif, networks: Mapping[Ref, str]) -> None:
    assert wanted.network is not None
    key = {VIF_NETWORK: networks[wanted.network]}
    await update_keys(pool, "VIF", vif.ref, "other_config", key)
