"""The content id of a disk while a stream of ours writes to it.

XAPI takes the id off a disk when it is attached for writing, and makes up a new one when it is
detached, unless one has been set in between. Setting our own keeps the promise that an id makes:
whatever ends the stream, be it the end of this daemon, the disk has the id that its mark names for
as long as nothing else has written to it.

    PUT ─► 200 ─► attached: the id goes ─► we set it ─► … ─► detached: it stays ─► task succeeds
                  └─────── a daemon that dies in here leaves the task to tell ──────────┘
"""

from __future__ import annotations

import structlog

from xorepd.errors import ObjectBusy, XapiError, XapiFailure
from xorepd.ids import Ref, VdiUuid
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import CONTENT_ID, Vbd, Vdi

log = structlog.get_logger(__name__)

_ATTACH_S = 900.0
"""Longest wait for a host to attach a disk; the stream itself is given up sooner."""


class ContentKeeper:
    """The content id of one disk during one stream; `DiskEndpoint.keeping` lets it watch."""

    def __init__(self, pool: Pool, vdi: VdiUuid, content: str) -> None:
        self._pool, self._uuid, self._content = pool, vdi, content
        self.is_settled = False
        """Whether the id is on the disk, and stays there when it is detached."""

    async def watch(self) -> None:
        """Set the id as soon as the disk is attached."""
        try:
            if await self._pool.cache.wait_for(self._has_lost_it, _ATTACH_S):
                vdi = self._pool.cache.by_uuid(Vdi, self._uuid)
                if vdi is not None:
                    key = CONTENT_ID, self._content
                    await self._pool.call("VDI.add_to_other_config", vdi.ref, *key)
                self.is_settled = True
        except XapiError as error:
            log.debug("content_id.not_set", vdi=self._uuid, reason=str(error))

    async def settle(self) -> None:
        """Make sure that the disk has the id, when its stream has ended in order.

        Raises:
            ObjectBusy: something else has the disk by now.
            XapiError: the pool does not answer.
        """
        if self.is_settled:
            return
        ref = Ref(await self._pool.call("VDI.get_by_uuid", self._uuid))
        await put_content(self._pool, ref, self._uuid, self._content)
        self.is_settled = True

    async def settle_attached(self) -> None:
        """Set the id on a disk that a dead toolstack has left attached.

        One that is detached by now got an id from the pool, and others may have written to it.

        Raises:
            XapiError: the pool does not answer.
        """
        ref = Ref(await self._pool.call("VDI.get_by_uuid", self._uuid))
        if CONTENT_ID in await self._pool.call("VDI.get_other_config", ref):
            return
        for vbd in await self._pool.call("VDI.get_VBDs", ref):
            if await self._pool.call("VBD.get_currently_attached", vbd):
                await self._pool.call("VDI.add_to_other_config", ref, CONTENT_ID, self._content)
                self.is_settled = True
                return

    def _has_lost_it(self) -> bool:
        vdi = self._pool.cache.by_uuid(Vdi, self._uuid)
        if vdi is None or vdi.content_id:
            return False
        return any(vbd.currently_attached for vbd in self._pool.cache.present(Vbd, vdi.vbds))


async def put_content(pool: Pool, vdi: Ref, uuid: str, content: str) -> None:
    """Give a disk of ours, which nothing has attached, the content id that its mark names.

    Raises:
        ObjectBusy: something has it attached, or is about to.
        XapiError: the pool does not answer.
    """
    present = await pool.call("VDI.get_other_config", vdi)
    if present.get(CONTENT_ID) == content:
        return
    if CONTENT_ID in present:
        await pool.call("VDI.remove_from_other_config", vdi, CONTENT_ID)
    try:
        await pool.call("VDI.add_to_other_config", vdi, CONTENT_ID, content)
    except XapiFailure as failure:
        if failure.code != "MAP_DUPLICATE_KEY":
            raise
    # What attached the disk since is seen now: it takes longer to attach and detach one.
    for vbd in await pool.call("VDI.get_VBDs", vdi):
        if await pool.call("VBD.get_currently_attached", vbd):
            await pool.call("VDI.remove_from_other_config", vdi, CONTENT_ID)
            raise ObjectBusy(pool.name, "VDI", uuid, "it is attached")
