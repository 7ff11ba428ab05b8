"""Deltas against bases whose data was destroyed: only changed-block tracking tells what to send.

Where the data is there, a bitmap that cannot be had costs a larger delta. Here it costs the delta,
so it is asked for while the run can still choose something else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import structlog

from xorepd.replication.context.assignment import Assignment
from xorepd.replication.deciding.plan import Delta, without_changes
from xorepd.replication.transfer.reading import known_facts
from xorepd.replication.transfer.staging import DiskPlan
from xorepd.xapi.records import Vdi

log = structlog.get_logger(__name__)


async def look_at_bare(a: Assignment, plans: Iterable[DiskPlan]) -> list[DiskPlan]:
    """Return the plans, with a comparison or a full for each base that says nothing any more."""
    return [await _look_at(a, plan) for plan in plans]


async def _look_at(a: Assignment, plan: DiskPlan) -> DiskPlan:
    if not isinstance(plan.how, Delta):
        return plan
    base = a.source.cache.by_uuid(Vdi, plan.how.base)
    if base is None or base.has_data:
        return plan
    facts = await known_facts(a, plan.source.vdi, base)
    if facts.changes is not None or (plan.begun and a.job.resync):  # it is compared as it goes on
        return plan
    how = without_changes(plan.how, resync=a.job.resync)
    log.warning("base.cbt_unusable", base=base.uuid, reason=facts.without_changes)
    return replace(plan, how=how, begun=None)
