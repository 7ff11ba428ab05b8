"""The calls on disks that we use, one at a time for each SR.

XAPI runs one storage operation per SR and lets others nap for 1 to 20 s until their turn, in no
order: whoever sends ten at once waits longer than who sends them one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from xorepd.errors import ObjectBusy, ObjectGone
from xorepd.ids import Ref
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vdi

_BUSY_TRIES, _BUSY_PAUSE_S = 3, 5.0
"""A disk stays attached to the control domain for seconds after its stream has ended. Xen Orchestra
waits 10 × 5 s; what outlasts this here goes with a later run, and a run that failed ends sooner."""


@asynccontextmanager
async def create_disk(
    pool: Pool,
    sr: Ref,
    virtual_size: int,
    name: str,
    description: str,
    other: Mapping[str, str],
    *,
    kind: str = "user",
) -> AsyncIterator[Ref]:
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
    async with _created(pool, sr, "VDI.create", record) as made:
        yield made


@asynccontextmanager
async def clone_disk(pool: Pool, vdi: Vdi) -> AsyncIterator[Ref]:
    """Clone a disk, provided until it is signed (see `Pool.creating`).

    It has the same content and the same `other_config`, and a new identity.
    """
    async with _created(pool, vdi.sr, "VDI.clone", vdi.ref) as made:
        yield made


@asynccontextmanager
async def _created(pool: Pool, sr: Ref, method: str, *params: object) -> AsyncIterator[Ref]:
    async with AsyncExitStack() as stack:
        async with pool.storage_turn(sr):
            made = await stack.enter_async_context(pool.creating(method, *params))
        yield made


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
    """Call a method on a disk that others may still hold for a while."""
    tries = 1 if vdi.ref in pool.stuck else _BUSY_TRIES
    for attempt in range(tries):
        try:
            async with pool.storage_turn(vdi.sr):
                with suppress(ObjectGone):
                    await pool.run_task(method, vdi.ref)
        except ObjectBusy:
            if attempt == tries - 1:
                pool.stuck.add(vdi.ref)
                raise
        else:
            pool.stuck.discard(vdi.ref)
            return
        await detached(pool, vdi)


async def detached(pool: Pool, vdi: Vdi, timeout: float = _BUSY_PAUSE_S) -> None:
    """Wait until no VBD of a disk is attached, but a moment at least and `timeout` at most."""

    def is_free() -> bool:
        known = pool.cache.vdis.get(vdi.ref)
        vbds = pool.cache.vbds
        return known is None or not any(
            ref in vbds and vbds[ref].currently_attached for ref in known.vbds
        )

    await asyncio.sleep(timeout / 20)  # the cache may not have seen the attachment yet
    await pool.cache.wait_for(is_free, timeout)
