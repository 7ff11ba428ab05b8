"""Switch changed-block tracking on for the disks of a source VM, if the job says so.

XAPI refuses to move a tracked disk to another SR (VDI_CBT_ENABLED), so the operator decides, and
each disk on which xorepd switched it on has a key in its `other_config`. XAPI switches tracking off
by itself after a host's crash, a revert, or a clone. The next run switches it on again, and sends
what the VHDs tell.
"""

from __future__ import annotations

import structlog

from xorepd.config.models import ChangedBlocks
from xorepd.errors import XapiError
from xorepd.replication.context.assignment import Assignment
from xorepd.replication.format.inventory import SourceSide
from xorepd.replication.format.marks import TRACKED
from xorepd.xapi.vms import update_keys

log = structlog.get_logger(__name__)


async def enable_tracking(a: Assignment, side: SourceSide) -> None:
    """Switch changed-block tracking on for the disks of a run, if the job wants that.

    Where that is not possible, the run continues without: its deltas are larger, and say why.
    """
    if a.job.changed_blocks is not ChangedBlocks.ENABLE:
        return
    for _, vdi in side.disks:
        if vdi.cbt_enabled:
            continue
        was_ours = TRACKED in vdi.other_config
        try:
            await a.pair.source.run_task("VDI.enable_cbt", vdi.ref)
            await update_keys(a.pair.source, "VDI", vdi.ref, "other_config", {TRACKED: a.job.name})
        except XapiError as error:
            log.warning("tracking.refused", disk=vdi.uuid, reason=str(error))
        else:
            event = "tracking.lost_and_enabled" if was_ours else "tracking.enabled"
            log.info(event, disk=vdi.uuid)
