"""The content id of a disk while our transfer writes to it.

XAPI removes the id of a disk that is attached for writing, and sets a new one when it is detached,
unless one was set meanwhile. So we set our own during the transfer. Then, however the transfer or
the daemon ends, the disk has the id that its mark names, as long as nothing else has written to it.

    PUT ─► 200 ─► attached: id removed ─► we set it ─► … ─► detached: it stays ─► task succeeds
                  └── if the daemon dies here, ─┘
                      the task is the evidence
"""

from __future__ import annotations

import structlog

from xorepd.errors import ObjectBusy, XapiError, XapiFailure
from xorepd.ids import Ref, VdiUuid
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import CONTENT_ID, KEPT, Vbd, Vdi
from xorepd.xapi.vms import update_keys

log = structlog.get_logger(__name__)

_ATTACH_S = 900.0
"""Longest wait for a host to attach a disk; the transfer itself times out sooner."""


class ContentKeeper:
    """The content id of one disk during one transfer; `DiskEndpoint.keeping` lets it watch."""

    def __init__(self, pool: Pool, vdi: VdiUuid, content: str, task: Ref) -> None:
        self._pool, self._uuid, self._content, self._task = pool, vdi, content, task
        self.is_settled = False
        """Whether the disk has the id, and keeps it when it is detached."""

    async def watch(self) -> None:
        """Set the id as soon as the disk is attached."""
        try:
            if await self._pool.cache.wait_for(self._has_lost_it, _ATTACH_S):
                vdi = self._pool.cache.by_uuid(Vdi, self._uuid)
                if vdi is not None:
                    key = CONTENT_ID, self._content
                    await self._pool.call("VDI.add_to_other_config", vdi.ref, *key)
                    kept = {KEPT: self._task}
                    await update_keys(self._pool, "VDI", vdi.ref, "other_config", kept)
                self.is_settled = True
        except XapiError as error:
            log.debug("content_id.not_set", vdi=self._uuid, reason=str(error))

    async def settle(self) -> None:
        """Make sure that the disk has the id, after the transfer has succeeded.

        Raises:
            ObjectBusy: another user has attached the disk by now.
            XapiError: the pool does not answer.
        """
        if self.is_settled:
            return
        ref = Ref(await self._pool.call("VDI.get_by_uuid", self._uuid))
        await put_content(self._pool, ref, self._uuid, self._content)
        self.is_settled = True

    async def settle_attached(self) -> None:
        """Set the id on a disk that a dead toolstack has left attached.

        A disk that is detached by now has an id from the pool, and others may have written to it.

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
    """Set the content id of a detached disk of ours to the one that its mark names.

    Raises:
        ObjectBusy: the disk is attached, or is about to be.
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
    # Check for an attachment in between; to attach and detach takes longer than these calls.
    for vbd in await pool.call("VDI.get_VBDs", vdi):
        if await pool.call("VBD.get_currently_attached", vbd):
            await pool.call("VDI.remove_from_other_config", vdi, CONTENT_ID)
            raise ObjectBusy(pool.name, "VDI", uuid, "it is attached")
