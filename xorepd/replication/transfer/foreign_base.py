"""Copies that other software made, and whether such a copy holds what its base holds.

A copy is a base for a delta where the snapshot that was copied still stands and the records prove
that nothing has written to the copy. A sample of both is compared all the same, if the snapshot has
its data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from xorepd.data.blocks import BlockMap
from xorepd.data.digest import head_of, read_back, sample_of
from xorepd.data.http.export import open_raw, read_map
from xorepd.data.memory_budget import READING
from xorepd.data.reader import Reader
from xorepd.errors import DataError
from xorepd.extents import Extent
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.deciding.reader_choice import is_vhd
from xorepd.replication.format.foreign import Copy, find_copies
from xorepd.replication.format.inventory import SourceSide
from xorepd.replication.transfer.readers import find_nbd, open_nbd
from xorepd.units import MiB
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vdi

log = structlog.get_logger(__name__)

SAMPLE = 64 * MiB
"""Bytes of each disk that are compared before a copy of other software counts as a base."""


def of_others(pair: Pair, side: SourceSide) -> list[Copy]:
    """Return the copies that other software made of a source VM's disks, best first."""
    return find_copies(pair.source.cache, side.disks, pair.vm, pair.target.cache, pair.sr.ref)


async def is_alike(a: Assignment, base: Vdi, onto: Vdi, what: str) -> bool:
    """Return whether a sample of a base and of its copy are equal."""
    try:
        with a.carrier.budget.allocate() as memory:
            await memory.take(READING)
            if await _is_equal(a.within(memory), base, onto, f"{what}, base of others"):
                return True
            reason = f"disk {onto.uuid} of pool {a.pair.target.name} holds other content"
    except DataError as error:
        reason = str(error)
    log.warning("base.not_adopted", base=base.uuid, reason=reason)
    return False


async def _is_equal(a: Assignment, base: Vdi, onto: Vdi, what: str) -> bool:
    """Compare a sample of both: spread over what is allocated if NBD serves both, else the head.

    Raises:
        DataError: one of them cannot be read.
    """
    pair = a.pair
    size = onto.virtual_size
    extents: BlockMap | list[Extent] = [Extent(0, size)]
    if is_vhd(onto, pair.sr):
        extents = await read_map(
            DiskEndpoint(pair.target, pair.sr.ref), onto.uuid, what=f"{what}, map"
        )
    sides = ((pair.source, base), (pair.target, onto))
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
            yield await stack.enter_async_context(
                open_nbd(pool, disk, a.carrier.nbd, a.carrier.allocation, sample, what)
            )
            return
        endpoint = DiskEndpoint(pool, disk.sr)
        yield await stack.enter_async_context(
            open_raw(endpoint, disk.uuid, disk.virtual_size, what=what)
        )
