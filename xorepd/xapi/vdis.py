"""The calls on disks that we use, one at a time for each SR.

XAPI runs one storage operation per SR and lets others nap for 1 to 20 s until their turn, in no
order: whoever sends ten at once waits longer than who sends them one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress

import structlog

from xorepd.errors import ObjectBusy, ObjectGone, XapiError
from xorepd.ids import Ref
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vbd, Vdi

log = structlog.get_logger(__name__)

BUSY_TRIES, BUSY_PAUSE_S = 3, 5.0
"""A disk stays attached to the control domain for seconds after its stream has ended. Xen Orchestra
waits 10 × 5 s; what outlasts this here goes with a later run, and a run that failed ends sooner."""


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
    """Create an empty disk, provided until it is signed (see `Pool.creating`).

    Its size is rounded up to what the SR can do.

    Args:
        kind: XAPI's type of it, such as `user`, or `suspend` for the memory of a VM.
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
    """Clone a disk, provided until it is signed (see `Pool.creating`).

    It has the same content and the same `other_config`, and a new identity.
    """
    return pool.creating(vdi.sr, "VDI.clone", vdi.ref)


async def grow_disk(pool: Pool, vdi: Ref, sr: Ref, virtual_size: int) -> None:
    """Make a disk larger."""
    async with pool.storage_turn(sr):
        await pool.run_task("VDI.resize", vdi, virtual_size)


async def destroy_disk(pool: Pool, vdi: Vdi) -> None:
    """Destroy a disk, waiting for its last stream to let go of it; gone already is fine.

    It is waited for once: a stream that hangs holds its disk for as long as it likes.

    Raises:
        ObjectBusy: something holds it all the time.
    """
    await _patiently(pool, vdi, "VDI.destroy")


async def destroy_data(pool: Pool, vdi: Vdi) -> None:
    """Destroy what a tracked snapshot holds, and keep what tells how others differ from it.

    Done already is fine, and so is a disk that is gone. XAPI itself waits 4 s for VBDs to go.

    Raises:
        ObjectBusy: something holds it all the time.
        XapiFailure: it is not tracked (`VDI_NO_CBT_METADATA`).
    """
    await _patiently(pool, vdi, "VDI.data_destroy")


async def _patiently(pool: Pool, vdi: Vdi, method: str) -> None:
    """Call a method on a disk that others may still hold for a while.

    What is attached is not asked for: XAPI would wait 4 s before it says no.
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
                    await pool.run_task(method, vdi.ref)
        except ObjectBusy:
            if attempt == BUSY_TRIES - 1 or pool.is_stuck(vdi.ref):
                pool.note_stuck(vdi.ref)
                raise
        else:
            return
        await detached(pool, vdi)


async def unplug_left(pool: Pool, vdi: Vdi) -> bool:
    """Detach a disk that a toolstack left in a control domain when it died.

    XAPI attaches a disk there for as long as a request reads or writes it, and nothing else looks
    after that drive. It counts as left when no task tells of such a request.

    Args:
        vdi: a disk of ours that no stream uses.

    Returns:
        Whether something has been detached.
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


def _is_attached(pool: Pool, vdi: Vdi) -> bool:
    known = pool.cache.vdis.get(vdi.ref)
    vbds = pool.cache.present(Vbd, known.vbds) if known else []
    return any(vbd.currently_attached for vbd in vbds)


async def detached(pool: Pool, vdi: Vdi, timeout: float = BUSY_PAUSE_S) -> None:
    """Wait until no VBD of a disk is attached, but a moment at least and `timeout` at most."""
    await asyncio.sleep(timeout / 20)  # the cache may not have seen the attachment yet
    await pool.cache.wait_for(lambda: not _is_attached(pool, vdi), timeout)
