"""The suspended VMs beside restore points, from run to run: protected, let go, and destroyed.

`memory` makes them and says what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import structlog

from xorepd.errors import XapiError
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Pair
from xorepd.replication.format.inventory import SourceSide, TargetSide, VmSnapshot, is_taken
from xorepd.replication.format.marks import (
    BLOCK_TEXT,
    BLOCKED_ON_REPLICA,
    KEY,
    KEYS_OF_STAGING,
    REPLICA_TAG,
    Mark,
    Role,
    Use,
)
from xorepd.replication.format.ownership import own_mark, used_by_vms
from xorepd.replication.removal.destroying import destroy_group, try_destroy_disk
from xorepd.replication.target.commit import protect
from xorepd.xapi.pool import Pool
from xorepd.xapi.vms import rewrite_other_config, update_keys

log = structlog.get_logger(__name__)


async def sweep_memories(pair: Pair, side: TargetSide) -> bool:
    """Destroy unfinished suspended VMs, release those that were resumed, and protect the others.

    Returns:
        Whether something has changed.
    """
    changed = False
    for memory in side.memories:
        if not memory.mark.snapshot:
            log.info("memory.destroying", vm=memory.vm.uuid)
            await destroy_memory(pair.target, memory)
        elif is_taken(memory):
            log.info("memory.released", vm=memory.vm.uuid, power_state=memory.vm.power_state)
            await let_go(pair.target, memory)
        elif not memory.vm.blocked_operations.keys() >= set(BLOCKED_ON_REPLICA):
            log.warning("memory.protected_again", vm=memory.vm.uuid)
            await protect(pair, memory.vm.ref)
        else:
            continue
        changed = True
    return changed


async def prune_memories(pair: Pair, side: TargetSide, points: Iterable[VmSnapshot]) -> None:
    """Destroy the suspended VMs whose restore point is none of these."""
    bound = {point.mark.snapshot for point in points}
    for memory in side.memories:
        if memory.mark.snapshot not in bound and not is_taken(memory):
            log.info("memory.expired", vm=memory.vm.uuid, taken_at=memory.mark.moment)
            await destroy_memory(pair.target, memory)


async def drop_images(pair: Pair, side: SourceSide) -> None:
    """Destroy the memory in source snapshots that no target waits for: it is no base of anything.

    XAPI then takes it off the snapshot's record. The lock of the source VM is held.
    """
    cache = pair.source.cache
    for group in side.snapshots:
        image = group.image
        if image is None or Use.WANTED in group.uses.values():
            continue
        if not used_by_vms(cache, image, but=group.vm.ref):
            await try_destroy_disk(pair.source, image)


async def destroy_memory(pool: Pool, memory: VmSnapshot) -> None:
    """Destroy a suspended VM of ours with its disks and its memory, or say why it stays for now.

    These become unattached disks first: if this ends half-way, the next sweep finds them.
    """
    image = memory.image
    whole = [(disk.vdi.ref, disk.mark) for disk in memory.disks if disk.mark.role is Role.MEMORY]
    if image is not None and (mark := own_mark(image)) is not None:
        whole.append((image.ref, mark))
    try:
        for disk in whole:
            await sign_disk(pool, disk, Role.DISK)
        await destroy_group(pool, memory)
    except XapiError as error:  # a person resumes it at this moment
        log.warning("memory.not_destroyed", vm=memory.vm.uuid, error=str(error))


async def let_go(pool: Pool, memory: VmSnapshot) -> None:
    """Release a suspended VM that was resumed: it becomes an ordinary VM; key by key."""
    vm = memory.vm
    for disk in memory.disks:
        await pool.call("VDI.remove_from_other_config", disk.vdi.ref, KEY)
    if REPLICA_TAG in vm.tags:
        await pool.call("VM.remove_tags", vm.ref, REPLICA_TAG)
    ours = [op for op in BLOCKED_ON_REPLICA if vm.blocked_operations.get(op) == BLOCK_TEXT]
    await update_keys(pool, "VM", vm.ref, "blocked_operations", {}, ours)
    await pool.call("VM.remove_from_other_config", vm.ref, KEY)


async def sign_disk(pool: Pool, disk: tuple[Ref, Mark], role: Role) -> None:
    """Write the mark of a disk, or of a memory, on it with a role."""
    ref, mark = disk
    await rewrite_other_config(
        pool, "VDI", ref, {KEY: replace(mark, role=role).encode()}, KEYS_OF_STAGING
    )
