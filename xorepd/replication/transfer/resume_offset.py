"""How far a staging disk is confirmed, kept on the disk itself: a later run continues there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from xorepd.data.reader import Piece, Reader
from xorepd.errors import XorepdError
from xorepd.ids import Ref
from xorepd.replication.format.marks import CONFIRMED, confirmed_text
from xorepd.xapi.pool import Pool
from xorepd.xapi.vms import update_keys

log = structlog.get_logger(__name__)


class Confirmations:
    """The offset on one staging disk.

    Args:
        uuid: of the disk.
        at: what it says already.
        tries: how many runs went on from there.
    """

    def __init__(self, pool: Pool, ref: Ref, uuid: str, at: int = 0, tries: int = 0) -> None:
        self._pool, self._ref, self._uuid = pool, ref, uuid
        self._at, self._tries = at, tries
        self._noted = at

    async def go_on(self) -> None:
        """Count one more run that begins where the last one was stopped.

        Raises:
            XapiError: the pool does not answer.
        """
        await self._put(self._at, self._tries + 1)

    def note(self, offset: int) -> None:
        """Note that everything below an offset is confirmed; it is written soon."""
        self._noted = max(self._noted, offset)

    async def write(self) -> None:
        """Write what was noted. Where that fails, a later run has more to send, and that is all."""
        offset = self._noted
        if offset == self._at:
            return
        try:
            await self._put(offset, tries=0)
        except XorepdError as error:
            log.warning("resume_offset.not_written", vdi=self._uuid, reason=str(error))
        else:
            self._at = offset

    async def revoke(self) -> None:
        """Take it back: what is on the disk is not what was sent."""
        self._noted = self._at = 0
        try:
            await update_keys(self._pool, "VDI", self._ref, "other_config", {}, [CONFIRMED])
        except XorepdError as error:  # a later run would compare the same sample again
            log.warning("resume_offset.not_revoked", vdi=self._uuid, reason=str(error))

    async def _put(self, offset: int, tries: int) -> None:
        """Write the offset and nothing else: XAPI writes the content id in these moments."""
        text = confirmed_text(self._uuid, offset, tries)
        await update_keys(
            self._pool, "VDI", self._ref, "other_config", {CONFIRMED: text}, [CONFIRMED]
        )


class Confirming:
    """A reader between whose pieces the offset is written, whenever there is a new one."""

    def __init__(self, reader: Reader, confirmations: Confirmations) -> None:
        self._reader, self._confirmations = reader, confirmations
        self.virtual_size, self.extents = reader.virtual_size, reader.extents

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._reader.pieces()) as pieces:
            async for piece in pieces:
                yield piece
                await self._confirmations.write()
