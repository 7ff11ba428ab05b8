"""Reasons not to start a run, found in the caches before anything is created."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import structlog

from xorepd.config.models import Diverged
from xorepd.errors import Frozen, ObjectBusy, Refused
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.deciding.disk_limits import (
    CLOSE,
    MAX_DEPTH,
    MAX_VHD_SIZE,
    NOT_VHD,
    check_size,
    deepest,
    size_problem,
)
from xorepd.replication.deciding.divergence import refuse_divergence
from xorepd.replication.deciding.networks import map_network, networks_of, strangers
from xorepd.replication.format.current import at_odds, own_current
from xorepd.replication.format.inventory import SourceSide, TargetSide
from xorepd.replication.format.marks import (
    BLOCK_TEXT,
    BLOCKED_WHILE_READ,
    REPLICA_TAG,
    Role,
)
from xorepd.replication.format.ownership import own_mark
from xorepd.replication.target.interfaces import Interface
from xorepd.units import GiB
from xorepd.xapi.cache import PoolCache
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr, Vdi, Vif, Vm

log = structlog.get_logger(__name__)

MIGRATION_S = 1800.0
"""How long a run waits for a migration; a storage migration may take hours."""


def find_vm(cache: PoolCache, pool: str, wanted: str) -> Vm:
    """Return the VM that a job names, by UUID or name.

    Raises:
        Refused: there is none, or several have the name.
    """
    ordinary = [
        vm
        for vm in cache.vms.values()
        if not vm.is_a_snapshot and not vm.is_a_template and not vm.is_control_domain
    ]
    by_uuid = [vm for vm in ordinary if vm.uuid == wanted]
    match by_uuid or [vm for vm in ordinary if vm.name_label == wanted]:
        case [vm]:
            return vm
        case []:
            raise Refused(
                f"pool {pool}: VM {wanted} was not found; correct the job's vms, or remove it there"
            )
        case several:
            uuids = ", ".join(vm.uuid for vm in several)
            raise Refused(
                f"pool {pool}: {len(several)} VMs are named {wanted}; use a UUID: {uuids}"
            )


def find_sr(cache: PoolCache, pool: str, wanted: str) -> Sr:
    """Return the SR that a job names, by UUID or name.

    Raises:
        Refused: there is none that could hold replicas, or several have the name.
    """
    srs = list(cache.srs.values())
    by_uuid = [sr for sr in srs if sr.uuid == wanted]
    match by_uuid or [sr for sr in srs if sr.name_label == wanted]:
        case [sr] if sr.content_type in ("", "user") and sr.type not in ("iso", "udev"):
            return sr
        case [sr]:
            raise Refused(f"pool {pool}: SR {sr.name_label} of type {sr.type} cannot hold replicas")
        case []:
            names = ", ".join(sorted(sr.name_label for sr in srs if sr.content_type != "iso"))
            raise Refused(f"pool {pool}: SR {wanted} was not found; there is {names}")
        case several:
            uuids = ", ".join(sr.uuid for sr in several)
            raise Refused(
                f"pool {pool}: {len(several)} SRs are named {wanted}; use a UUID: {uuids}"
            )


async def wait_for_migration(pair: Pair) -> None:
    """Wait until a migration of the source VM has ended: it is no failure, and takes minutes.

    Raises:
        ObjectBusy: it takes very long.
    """
    cache = pair.source.cache

    def moving() -> list[str]:
        vm = cache.vms.get(pair.vm.ref, pair.vm)
        return sorted(set(vm.current_operations.values()) & set(BLOCKED_WHILE_READ))

    if not await cache.wait_for(lambda: not moving(), MIGRATION_S):
        raise ObjectBusy(pair.source.name, "VM", pair.vm.name_label, moving()[0])


def check_source(a: Assignment, side: SourceSide) -> None:
    """Refuse what cannot or must not be replicated.

    Raises:
        Refused: with the VM or disk, and what to do about it.
    """
    pair = a.pair
    vm, pool = side.vm, pair.source.name
    mark = own_mark(vm)
    blocked = vm.blocked_operations.get("start") == BLOCK_TEXT
    if (mark and mark.role in (Role.REPLICA, Role.MEMORY)) or (REPLICA_TAG in vm.tags and blocked):
        raise Refused(
            f"pool {pool}: VM {vm.name_label} is itself a replica; remove it from job {a.job.name}"
        )
    twice = Counter(vdi.ref for vdi in side.drives)
    for vdi in side.drives:
        if twice[vdi.ref] > 1:
            raise Refused(
                f"pool {pool}: disk {vdi.name_label} is attached to VM {vm.name_label} "
                f"{twice[vdi.ref]} times; detach all but one, a replica has each disk once"
            )
    stay_behind = {disk.vdi.ref for disk in side.excluded}
    for vdi in side.drives:
        stays_behind = vdi.ref in stay_behind
        problem = _snapshot_problem(vdi) if stays_behind else _disk_problem(vdi, pair.sr)
        if problem:
            raise Refused(f"pool {pool}: disk {vdi.name_label} of VM {vm.name_label} {problem}")
    _check_chains(pair.source, [vdi for _, vdi in side.disks], MAX_DEPTH)
    for sr in pair.source.cache.present(Sr, {vdi.sr for _, vdi in side.disks}):
        a.carrier.reservations.check(
            sr, pool, 0, a.job.source_reserve, f"a snapshot of VM {vm.name_label}"
        )


def _check_chains(pool: Pool, disks: Iterable[Vdi], too_deep: int) -> None:
    """Refuse to lengthen a chain that has the greatest length that XAPI allows."""
    disk, depth = deepest(pool.cache, disks)
    if disk is None or depth < min(CLOSE, too_deep):
        return
    if depth >= too_deep:
        raise Refused(
            f"pool {pool.name}: disk {disk.name_label} is a chain of {depth} VHDs, and XAPI allows "
            f"{MAX_DEPTH}; it gets shorter as the storage coalesces; look on the hosts whether "
            "that proceeds (/var/log/SMlog), and remove snapshots that are not needed"
        )
    log.warning("chain.long", pool=pool.name, disk=disk.uuid, depth=depth)


def _snapshot_problem(vdi: Vdi) -> str | None:
    """Return why a VM cannot be snapshotted, even without the disk."""
    if vdi.on_boot == "reset":
        return "is reset at each boot, which XAPI cannot snapshot; set on_boot to persist"
    return None


def _disk_problem(vdi: Vdi, target: Sr) -> str | None:
    if problem := _snapshot_problem(vdi):
        return problem
    if vdi.missing:
        return "is missing from its SR; scan the SR or detach the disk"
    if vdi.sharable:
        return "is sharable, which XAPI cannot snapshot; detach it or leave the VM out"
    if problem := size_problem(vdi):
        return problem
    if vdi.virtual_size > MAX_VHD_SIZE and target.type not in NOT_VHD:
        return (
            f"has {vdi.virtual_size / GiB:.1f} GiB, more than the {MAX_VHD_SIZE // GiB} GiB of a "
            f"VHD, and SR {target.name_label} of type {target.type} keeps VHDs; choose another SR"
        )
    return None


def check_current(pair: Pair, side: TargetSide) -> None:
    """Refuse to overwrite a side that is, or was, active itself.

    Raises:
        Frozen: the records of source and replica contradict each other.
    """
    said = own_current(pair.vm)
    if odds := at_odds(pair.current, said is not None, side.replica):
        raise Frozen(
            f"VM {pair.vm.name_label}: nothing is copied to its replica on pool "
            f"{pair.target.name}, because {odds}; find out which of the two holds the work that "
            "counts before you let one of them replace the other"
        )


def check_target(a: Assignment, side: TargetSide, wanted: Collection[str] = ()) -> None:
    """Refuse to touch a replica that is in use, and to fill an SR that is full.

    Args:
        wanted: devices that the next commit is going to fill.

    Raises:
        Refused: with the object and what to do about it.
    """
    pair = a.pair
    replica = side.replica
    if replica is not None and replica.power_state != "Halted":
        raise Refused(
            f"pool {pair.target.name}: replica {replica.name_label} is "
            f"{replica.power_state.lower()}, not halted; shut it down, or keep your work in a "
            "clone of it and shut it down then"
        )
    if a.job.diverged is Diverged.REFUSE:
        refuse_divergence(pair.target.name, a.job.name, side, wanted)
    # A clone and then its snapshot: each may make the chain one longer.
    newest = [disk.vdi for point in side.points[:1] for disk in point.disks]
    for vdi in newest:
        check_size(pair.target.name, vdi)
    _check_chains(pair.target, newest, MAX_DEPTH - 1)
    sr = pair.target.cache.srs.get(pair.sr.ref, pair.sr)
    if not sr.zeroes_new_disks:
        raise Refused(
            f"pool {pair.target.name}: SR {sr.name_label} of type {sr.type} hands out disks with "
            "what others wrote there before, and a replica's zeroes are never sent; choose another "
            "SR"
        )
    a.carrier.reservations.check(
        sr, pair.target.name, 0, a.job.target_reserve, f"replica of VM {pair.vm.name_label}"
    )


def plan_interfaces(a: Assignment, vm: Vm) -> list[Interface]:
    """Return the interfaces that the replica gets.

    Networks that the job names and neither pool has are in the log and in the record of the run.

    Raises:
        Refused: a network cannot be mapped without guessing.
    """
    pair = a.pair
    sources = networks_of(pair.source.cache)
    targets = networks_of(pair.target.cache)
    explicit = a.job.networks
    remarks = strangers(explicit.keys(), sources, pair.source.name)
    if len({to.pool for to in a.job.targets}) == 1:  # else each pool may have its own
        remarks += strangers(filter(None, explicit.values()), targets, pair.target.name)
    if remarks:
        log.warning("networks.unknown", remarks=remarks)
        a.progress.remarks += remarks
    by_ref = {network.ref: network for network in sources}
    interfaces = []
    for vif in pair.source.cache.present(Vif, vm.vifs):
        network = by_ref.get(vif.network)
        if network is not None:
            ref = map_network(network, targets, explicit, pair.target.name)
            interfaces.append(Interface(vif.device, vif.mac, vif.mtu, network.uuid, ref))
    return interfaces
