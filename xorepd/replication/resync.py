"""Reading both sides of a disk to find out what differs, where no base tells it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import structlog

from xorepd.data.blocks import BlockMap
from xorepd.data.compare import find_differences
from xorepd.data.nbd_reader import NbdReader
from xorepd.data.rest import Beyond
from xorepd.errors import ObjectGone
from xorepd.ids import Ref
from xorepd.replication.assignment import Assignment
from xorepd.replication.board import DiskProgress
from xorepd.replication.roads import Facts, open_whole
from xorepd.xapi.records import Vdi

log = structlog.get_logger(__name__)


async def compare_sides(
    a: Assignment, content: Vdi, staging: Ref, start: int, progress: DiskProgress, what: str
) -> BlockMap:
    """Return in which units of 64 KiB a staging disk differs from its source.

    The staging disk itself is read, not what it was cloned from: whatever it holds and however it
    came there, it is equal to its source once this has been sent.

    Args:
        content: disk of the source snapshot.
        start: what lies below it is taken for equal.

    Raises:
        DataError: one of them could not be read.
    """
    await a.target.refresh()
    disk = a.target.cache.vdis.get(staging)
    if disk is None:
        raise ObjectGone(a.target.name, "VDI", staging)
    progress.compared_bytes = 0

    def compared(size: int) -> None:
        assert progress.compared_bytes is not None
        progress.compared_bytes += size

    async with AsyncExitStack() as stack:
        sides = []
        for pool, each, name in ((a.source, content, "source"), (a.target, disk, "target")):
            opening = open_whole(pool, each, a.nbd, f"{what}, comparing, {name}")
            reader, _ = await stack.enter_async_context(opening)
            if isinstance(reader, NbdReader):
                reader.narrow(Beyond(reader.extents, start))
            sides.append(reader)
        found = await find_differences(*sides, start=start, compared=compared)
    log.info("disk.compared", what=what, read_bytes=progress.compared_bytes, differ=found.size)
    return found


def told_by(facts: Facts, found: BlockMap) -> Facts:
    """Return what the source pool offers, once it is known what differs."""
    return replace(facts, is_delta=True, changes=found, without_changes="")
