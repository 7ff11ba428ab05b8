"""The XAPI calls on disks, one at a time for each SR.

XAPI runs one storage operation per SR. Others sleep for 1 to 20 s and try again, in no order. So
ten calls at once take longer than ten calls one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress

import structlog

from xorepd.errors import ContentChanged, ObjectBusy, ObjectGone, XapiError
from xorepd.ids import Ref
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vbd, Vdi

log = structlog.get_logger(__name__)

BUSY_TRIES, BUSY_PAUSE_S = 3, 5.0
"""A disk stays attached to the control domain for seconds after its transfer. Xen Orchestra waits
10 × 5 s. A disk that stays in use for longer is left to a later run, so that a failed run ends
sooner."""


def create_disk(
    pool: Pool,
    sr: Ref,
    virtual_size: int,
    name: str,
    description: str,
    other: Mapping[str, str],
    *,
    kind: str = "user",
) -> AbstractAsyncContextManager[Ref]:
    """Create an empty disk and provide it until it is signed (see `Pool.creating`).

    The SR may round its size up.

    Args:
        kind: XAPI's VDI type, such as `user`, or `suspend` for the memory of a VM.
    """
    record = {
        "SR": sr,
        "virtual_size": virtual_size,
        "type": kind,
        "sharable": False,
        "read_only": False,
        "name_label": name,
        "name_description": description,
        "other_config": dict(other),
    }
    return pool.creating(sr, "VDI.create", record)


def clone_disk(pool: Pool, vdi: Vdi) -> AbstractAsyncContextManager[Ref]:
    """Clone a disk and provide the clone until it is signed (see `Pool.creating`).

    The clone has the same content and `other_config`, and a new UUID.
    """
    return pool.creating(vdi.sr, "VDI.clone", vdi.ref)


async def grow_disk(pool: Pool, vdi: Ref, sr: Ref, virtual_size: int) -> None:
    """Make a disk larger."""
    async with pool.storage_turn(sr):
        await pool.run_task("VDI.resize", vdi, virtual_size)


async def destroy_disk(pool: Pool, vdi: Vdi, *, even_if_changed: bool = False) -> None:
    """Destroy a disk, if it still exists. Wait once for its last transfer to release it.

    Args:
        vdi: its record, as the caller has looked at it.
        even_if_changed: what was written to it since may be lost.

    Raises:
        ContentChanged: something has written to it since, or a VM has it.
        ObjectBusy: the disk stays in use.
    """
    await _patiently(pool, vdi, "VDI.destroy", even_if_changed=even_if_changed)


async def destroy_data(pool: Pool, vdi: Vdi) -> None:
    """Destroy the data of a tracked snapshot, and keep its changed-block metadata.

    It is no error if the data or the disk is already gone. XAPI itself waits 4 s for VBDs to go.

    Raises:
        ContentChanged: something has written to it since the caller looked at it, or a VM has it.
        ObjectBusy: the disk stays in use.
        XapiFailure: the disk is not tracked (`VDI_NO_CBT_METADATA`).
    """
    await _patiently(pool, vdi, "VDI.data_destroy")


async def _patiently(pool: Pool, vdi: Vdi, method: str, *, even_if_changed: bool = False) -> None:
    """Call a method that destroys a disk, which may still be in use for a while.

    Do not call it while the disk is attached: XAPI would wait 4 s and then refuse. The record is
    read once more right before, because news of a pool come late and the turn of the SR may take
    minutes. What has no data can neither change nor serve a VM.
    """
    if _is_attached(pool, vdi):
        if pool.is_stuck(vdi.ref):
            raise ObjectBusy(pool.name, "VDI", vdi.uuid, "it is attached")
        await detached(pool, vdi)
        await unplug_left(pool, vdi)
    for attempt in range(BUSY_TRIES):
        try:
            async with pool.storage_turn(vdi.sr):
                with suppress(ObjectGone):
                    if vdi.has_data:
                        await _check_unused(pool, vdi, even_if_changed=even_if_changed)
                    await pool.run_task(method, vdi.ref)
        except ObjectBusy:
            if attempt == BUSY_TRIES - 1 or pool.is_stuck(vdi.ref):
                pool.note_stuck(vdi.ref)
                raise
        else:
            return
        await detached(pool, vdi)


async def unplug_left(pool: Pool, vdi: Vdi) -> bool:
    """Detach a disk that a dead toolstack has left attached to a control domain.

    XAPI attaches a disk to the control domain while a request reads or writes it. An attachment
    without the task of such a request was left behind.

    Args:
        vdi: A disk of ours that no transfer uses.

    Returns:
        Whether a drive was detached.
    """
    if any(task.streamed == vdi.uuid for task in pool.cache.tasks.values()):
        return False
    known = pool.cache.vdis.get(vdi.ref, vdi)
    left = [
        vbd
        for vbd in pool.cache.present(Vbd, known.vbds)
        if vbd.currently_attached
        and vbd.vm in pool.cache.vms
        and pool.cache.vms[vbd.vm].is_control_domain
    ]
    for vbd in left:
        log.warning("disk.left_attached", pool=pool.name, vdi=vdi.uuid, vbd=vbd.uuid)
        try:
            await pool.run_task("VBD.unplug", vbd.ref)
            await pool.call("VBD.destroy", vbd.ref)
        except ObjectGone:
            continue
        except XapiError as error:
            log.warning("disk.not_detached", pool=pool.name, vdi=vdi.uuid, reason=str(error))
            return False
    return bool(left)


async def _check_unused(pool: Pool, vdi: Vdi, *, even_if_changed: bool) -> None:
    """Check that a disk has the content id that it had, and that no VM has it.

    XAPI destroys a disk that a VM has and does not use at the moment.

    Raises:
        ContentChanged: something has written to it, or may be about to.
    """
    now = pool.read(Vdi, vdi.ref, await pool.call("VDI.get_record", vdi.ref))
    is_changed = now.content_id != vdi.content_id and not even_if_changed
    if is_changed or not all([await _is_of_dom0(pool, ref) for ref in now.vbds]):
        raise ContentChanged(pool.name, vdi.uuid)


async def _is_of_dom0(pool: Pool, vbd: Ref) -> bool:
    """Return whether a drive is one of a control domain, or gone by now."""
    known = pool.cache.table(Vbd).get(vbd)
    try:
        vm = known.vm if known is not None else Ref(await pool.call("VBD.get_VM", vbd))
    except ObjectGone:
        return True
    owner = pool.cache.vms.get(vm)
    return owner is not None and owner.is_control_domain


def _is_attached(pool: Pool, vdi: Vdi) -> bool:
    known = pool.cache.vdis.get(vdi.ref)
    vbds = pool.cache.present(Vbd, known.vbds) if known else []
    return any(vbd.currently_attached for vbd in vbds)


async def detached(pool: Pool, vdi: Vdi, timeout: float = BUSY_PAUSE_S) -> None:
    """Wait until no VBD of a disk is attached: for a moment at least, `timeout` seconds at most."""
    await asyncio.sleep(timeout / 20)  # the cache may not have seen the attachment yet
    await pool.cache.wait_for(lambda: not _is_attached(pool, vdi), timeout)
