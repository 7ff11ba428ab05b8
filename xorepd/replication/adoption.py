"""A base that others made takes the place of a full copy, if its content is what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog

from xorepd.data.blocks import BlockMap
from xorepd.data.digest import head_of, read_back, sample_of
from xorepd.data.export import open_raw, read_map
from xorepd.data.reader import Reader
from xorepd.errors import DataError
from xorepd.extents import Extent
from xorepd.replication.assignment import Assignment
from xorepd.replication.foreign import Pair, find_pairs
from xorepd.replication.inventory import SourceSide
from xorepd.replication.plan import Delta
from xorepd.replication.roads import find_nbd, is_vhd, open_nbd
from xorepd.replication.staging import DiskPlan
from xorepd.units import MiB
from xorepd.xapi.doors import DiskDoor
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vdi

log = structlog.get_logger(__name__)

SAMPLE = 64 * MiB
"""How much of each disk is compared before a base of others is believed."""


async def adopt(a: Assignment, side: SourceSide, plans: Sequence[DiskPlan]) -> list[DiskPlan]:
    """Return the plans with deltas for those fulls that a base of others makes unnecessary."""
    if all(_is_settled(plan) for plan in plans):
        return list(plans)
    disks = [vdi for _, vdi in side.disks]
    pairs = find_pairs(a.source.cache, disks, a.vm.ref, a.target.cache, a.sr.ref)
    return [await _adopt(a, plan, pairs) for plan in plans]


def _is_settled(plan: DiskPlan) -> bool:
    """Whether a disk has a base of ours, or was begun without one: then it is ended so."""
    return isinstance(plan.how, Delta) or plan.begun is not None


async def _adopt(a: Assignment, plan: DiskPlan, pairs: Iterable[Pair]) -> DiskPlan:
    if _is_settled(plan):
        return plan
    what = f"disk {plan.source.vdi.name_label} of VM {a.vm.name_label}"
    for pair in pairs:
        if pair.disk != plan.source.mark.disk:
            continue
        try:
            is_equal = await _is_equal(a, pair, f"{what}, base of others")
        except DataError as error:
            log.warning("base.not_adopted", base=pair.base.uuid, reason=str(error))
            continue
        if is_equal:
            log.info("base.adopted", disk=what, base=pair.base.uuid, onto=pair.onto.uuid)
            return replace(plan, how=Delta(base=pair.base.uuid, onto=pair.onto.uuid))
        reason = f"disk {pair.onto.uuid} of pool {a.target.name} holds other content"
        log.warning("base.not_adopted", base=pair.base.uuid, reason=reason)
    return plan


async def _is_equal(a: Assignment, pair: Pair, what: str) -> bool:
    """Compare a sample of both: spread over what is allocated where NBD serves both, else the head.

    Raises:
        DataError: one of them cannot be read.
    """
    size = pair.onto.virtual_size
    extents: BlockMap | list[Extent] = [Extent(0, size)]
    if is_vhd(pair.onto, a.sr):
        extents = await read_map(DiskDoor(a.target, a.sr.ref), pair.onto.uuid, what=f"{what}, map")
    sides = ((a.source, pair.base), (a.target, pair.onto))
    if all([(await find_nbd(pool, disk.ref))[0] for pool, disk in sides]):
        sample = list(sample_of(extents, SAMPLE, seed=pair.onto.uuid))
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
        door = DiskDoor(pool, disk.sr)
        yield await stack.enter_async_context(
            open_raw(door, disk.uuid, disk.virtual_size, what=what)
        )
