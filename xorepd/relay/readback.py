"""Read a disk back beside the pool and return its digest: only 16 bytes go over the link."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from xorepd.data.digest import read_back
from xorepd.data.http.export import open_export, open_raw
from xorepd.data.nbd.reader import NbdConnectionLimit
from xorepd.data.reader import Reader
from xorepd.errors import DataError
from xorepd.extents import Extent
from xorepd.ids import VdiUuid
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.channel import Channel
from xorepd.relay.protocol.frames import WireError
from xorepd.replication.deciding.reader_choice import is_vhd
from xorepd.replication.transfer.readers import find_nbd, open_nbd
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Sr, Vdi

log = structlog.get_logger(__name__)

MOST_EXTENTS = 65536
"""Most extents of one digest; a client with more reads the disk back itself."""


async def receive_extents(channel: Channel, virtual_size: int) -> list[Extent]:
    """Receive the extents to digest from the client.

    Raises:
        WireError: they are out of order, beyond the disk, not aligned, or too many.
        DataError: the connection is lost.
    """
    extents: list[Extent] = []
    end = 0
    while True:
        message = await channel.receive()
        if not isinstance(message, wire.DigestOf):
            raise WireError(f"{message.kind.name} does not belong to a disk being read")
        for offset, length in zip(message.bounds[::2], message.bounds[1::2], strict=True):
            if offset < end or offset + length > virtual_size:
                raise WireError(f"the extent of {length} bytes at {offset} is out of order")
            if offset % wire.SECTOR or length % wire.SECTOR:
                raise WireError(f"the extent of {length} bytes at {offset} is not of sectors")
            end = offset + length
            extents.append(Extent(offset, length))
        if len(extents) > MOST_EXTENTS:
            raise WireError(f"a digest has {MOST_EXTENTS} extents at most")
        if message.is_last:
            return extents


async def digest_of(
    pool: Pool,
    disk: Vdi,
    sr: Sr,
    base: str,
    extents: Sequence[Extent],
    budget: NbdConnectionLimit,
    what: str,
) -> bytes:
    """Return the digest of some extents of a disk.

    Args:
        base: UUID of the disk that it was cloned from; empty if there is none.

    Raises:
        DataError: the disk cannot be read.
    """
    async with _open(pool, disk, sr, base, extents, budget, what) as reader:
        return bytes.fromhex((await read_back(reader, extents)).hexdigest())


@asynccontextmanager
async def _open(
    pool: Pool,
    disk: Vdi,
    sr: Sr,
    base: str,
    extents: Sequence[Extent],
    budget: NbdConnectionLimit,
    what: str,
) -> AsyncIterator[Reader]:
    """Open a disk for reading: over NBD if possible, else through an export."""
    async with AsyncExitStack() as stack:
        reader: Reader
        exports, _ = await find_nbd(pool, disk.ref)
        if exports:
            try:
                nbd = open_nbd(pool, disk, budget, None, extents, f"{what}, NBD")
                reader = await stack.enter_async_context(nbd)
            except DataError as error:
                log.warning("reader.unavailable", what=what, reader="nbd", reason=str(error))
            else:
                yield reader
                return
        endpoint = DiskEndpoint(pool, sr.ref)
        if is_vhd(disk, sr):
            onto = VdiUuid(base) if base else None
            export = open_export(endpoint, disk.uuid, base=onto, what=what)
            reader = await stack.enter_async_context(export)
        else:
            raw = open_raw(endpoint, disk.uuid, disk.virtual_size, what=what)
            reader = await stack.enter_async_context(raw)
        yield reader
