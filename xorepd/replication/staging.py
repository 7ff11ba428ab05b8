"""A staging disk as a transport sees it: which one it is, and how it is written from here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from xorepd.data.chunked import ChunkedWriter, open_chunked
from xorepd.data.imports import ImportWriter, open_import
from xorepd.data.writer import Writer
from xorepd.errors import NotServed
from xorepd.extents import Extent
from xorepd.ids import VdiUuid
from xorepd.replication.assignment import Assignment
from xorepd.replication.board import DiskProgress
from xorepd.transports.base import TargetDisk

log = structlog.get_logger(__name__)

ELSEWHERE = "elsewhere"
"""In place of a writer: the transport brought the data to somebody who wrote it."""


class StagingTarget:
    """The `Target` of one staging disk.

    Args:
        vdi: UUID of the disk.
        base: UUID of the restore point's disk that it is a clone of; empty for a new one.
        what: the disk, for messages.
    """

    def __init__(
        self, a: Assignment, progress: DiskProgress, vdi: str, base: str, what: str
    ) -> None:
        self._a, self._progress, self._what = a, progress, f"{what}, import"
        self.disk = TargetDisk(
            pool=a.target.cache.pool.uuid,
            vdi=vdi,
            base=base,
            stream=str(a.stream),
            run=a.run_id,
            what=what,
        )

    @asynccontextmanager
    async def open(self, virtual_size: int, extents: Iterable[Extent]) -> AsyncIterator[Writer]:
        """Open the disk for writing: in extents, or as a VHD where those are not taken."""
        progress, door, vdi = self._progress, self._a.target_door(), VdiUuid(self.disk.vdi)
        fresh, what = not self.disk.base, self._what
        async with AsyncExitStack() as stack:
            chunked = open_chunked(door, vdi, fresh=fresh, what=what, confirmed_to=self.confirmed)
            writer: ChunkedWriter | ImportWriter
            try:
                writer = await stack.enter_async_context(chunked)
                progress.writer = "chunked"
            except NotServed as error:
                log.warning("writer.refused", what=what, reason=str(error))
                vhd = open_import(door, vdi, virtual_size, extents, what=what)
                writer = await stack.enter_async_context(vhd)
                progress.writer = "vhd"
            try:
                yield writer
            finally:
                progress.sent_bytes = writer.sent

    async def pay(self, size: int) -> None:
        """Make sure that the run may still write; nothing limits it here, a throttle wraps this."""
        self._a.target.check()

    def left(self, size: int) -> None:
        self._progress.writer = ELSEWHERE
        self._progress.sent_bytes += size

    def confirmed(self, offset: int) -> None:
        self._progress.confirmed_to = offset
