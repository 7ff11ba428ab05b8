"""A copy that others made takes the place of a full one.

Where the snapshot that they copied still stands, and the copy provably holds what they wrote, it is
a base for a delta; a sample of both is compared all the same, as far as the snapshot has its data.
Else both sides are compared whole, and what differs is sent into a clone of the copy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog

from xorepd.config.models import Verify
from xorepd.data.blocks import BlockMap
from xorepd.data.budget import READING
from xorepd.data.digest import head_of, read_back, sample_of
from xorepd.data.http.export import open_raw, read_map
from xorepd.data.reader import Reader
from xorepd.errors import DataError
from xorepd.extents import Extent
from xorepd.replication.context.assignment import Assignment
from xorepd.replication.deciding.plan import Delta, Full, Resync, ResyncReason
from xorepd.replication.deciding.reader_choice import is_vhd
from xorepd.replication.format.foreign import Copy, find_copies
from xorepd.replication.format.inventory import SourceSide
from xorepd.replication.transfer.readers import find_nbd, open_nbd
from xorepd.replication.transfer.staging import DiskPlan
from xorepd.units import MiB
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vdi

log = structlog.get_logger(__name__)

SAMPLE = 64 * MiB
"""How much of each disk is compared before a base of others is believed."""


async def adopt(a: Assignment, side: SourceSide, plans: Sequence[DiskPlan]) -> list[DiskPlan]:
    """Return the plans with deltas and comparisons for those fulls that copies of others spare."""
    if all(_is_settled(plan) for plan in plans):
        return list(plans)
    copies = of_others(a, side)
    return [await _adopt(a, plan, copies) for plan in plans]


def of_others(a: Assignment, side: SourceSide) -> list[Copy]:
    """Return the copies that others made of a source VM's disks, the best first."""
    return find_copies(a.source.cache, side.disks, a.vm, a.target.cache, a.sr.ref)


def _is_settled(plan: DiskPlan) -> bool:
    """Whether a disk has a base of ours, or was begun without one: then it is ended so."""
    return isinstance(plan.how, Delta) or plan.begun is not None


async def _adopt(a: Assignment, plan: DiskPlan, copies: Iterable[Copy]) -> DiskPlan:
    if _is_settled(plan):
        return plan
    what = f"disk {plan.source.vdi.name_label} of VM {a.vm.name_label}"
    for copy in copies:
        if copy.disk != plan.source.mark.disk:
            continue
        base = copy.base
        if base is not None and copy.is_proven and a.job.verify is not Verify.FULL:
            if not base.has_data or await _is_alike(a, base, copy.onto, what):
                log.info("base.adopted", disk=what, base=base.uuid, onto=copy.onto.uuid)
                return replace(plan, how=Delta(base=base.uuid, onto=copy.onto.uuid))
            continue
        if isinstance(plan.how, Full) and a.job.resync:
            log.info("copy.adopted", disk=what, onto=copy.onto.uuid)
            return replace(plan, how=Resync(copy.onto.uuid, ResyncReason.COPY_OF_OTHERS))
    return plan


async def _is_alike(a: Assignment, base: Vdi, onto: Vdi, what: str) -> bool:
    """Return whether a sample of a base and of its copy are equal."""
    try:
        with a.budget.holding() as memory:
            await memory.take(READING)
            if await _is_equal(a.within(memory), base, onto, f"{what}, base of others"):
                return True
            reason = f"disk {onto.uuid} of pool {a.target.name} holds other content"
    except DataError as error:
        reason = str(error)
    log.warning("base.not_adopted", base=base.uuid, reason=reason)
    return False


async def _is_equal(a: Assignment, base: Vdi, onto: Vdi, what: str) -> bool:
    """Compare a sample of both: spread over what is allocated where NBD serves both, else the head.

    Raises:
        DataError: one of them cannot be read.
    """
    size = onto.virtual_size
    extents: BlockMap | list[Extent] = [Extent(0, size)]
    if is_vhd(onto, a.sr):
        extents = await read_map(DiskEndpoint(a.target, a.sr.ref), onto.uuid, what=f"{what}, map")
    sides = ((a.source, base), (a.target, onto))
    if all([(await find_nbd(pool, disk.ref))[0] for pool, disk in sides]):
        sample = list(sample_of(extents, SAMPLE, seed=onto.uuid))
    else:
        sample = list(head_of([Extent(0, size)], SAMPLE))
    digests = []
    for pool, disk in sides:
        async with _open(a, pool, disk, sample, what) as reader:
            digests.append((await read_back(reader, sample)).hexdigest())
    return digests[0] == digests[1]


@asynccontextmanager
async def _open(
    a: Assignment, pool: Pool, disk: Vdi, sample: Sequence[Extent], what: str
) -> AsyncIterator[Reader]:
    async with AsyncExitStack() as stack:
        if (await find_nbd(pool, disk.ref))[0]:
            yield await stack.enter_async_context(open_nbd(pool, disk, a.nbd, sample, what))
            return
        endpoint = DiskEndpoint(pool, disk.sr)
        yield await stack.enter_async_context(
            open_raw(endpoint, disk.uuid, disk.virtual_size, what=what)
        )
