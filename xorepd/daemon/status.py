"""How jobs stand, put together from what is configured, due, running and remembered. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime

from xorepd.config.models import JobSettings
from xorepd.control.protocol import JobReply, JobStatus, TargetReply, VmStatus
from xorepd.state.history import Latest


def job_reply(job: JobSettings, next_run_at: datetime | None) -> JobReply:
    """Return one job as the configuration in force has it."""
    return JobReply(
        name=job.name,
        id=job.id,
        enabled=job.enabled,
        source=job.source,
        vms=job.vms,
        target=TargetReply(pool=job.target.pool, sr=job.target.sr),
        schedule=job.schedule,
        timezone=job.timezone.key,
        next_run_at=next_run_at,
        keep=job.keep,
        verify=job.verify.value,
        transport=job.transport.name,
    )


def job_status(
    job: JobSettings,
    latest: Iterable[Latest],
    *,
    next_run_at: datetime | None,
    run_id: str | None,
    now: datetime,
) -> JobStatus:
    """Return how one job stands.

    Args:
        job: The job.
        latest: What the history knows, the most recent first; of any job.
        next_run_at: When it is next due.
        run_id: Its run that is under way.
        now: The moment that ages are counted to.
    """
    own = [entry for entry in latest if _belongs(entry, job)]
    return JobStatus(
        name=job.name,
        enabled=job.enabled,
        source=job.source,
        target=TargetReply(pool=job.target.pool, sr=job.target.sr),
        schedule=job.schedule,
        timezone=job.timezone.key,
        next_run_at=next_run_at,
        run_id=run_id,
        vms=tuple(_vm_status(vm, own, now) for vm in job.vms),
    )


def _vm_status(vm: str, own: list[Latest], now: datetime) -> VmStatus:
    # A run that failed before it met the VM knows only one of its two names, so one VM may have
    # several entries: the last run is in the first of them, the newest point in any.
    mine = [entry for entry in own if vm in {entry.record.vm_uuid, entry.record.vm_name}]
    points = [entry.newest_point_at for entry in mine if entry.newest_point_at is not None]
    newest = max(points, default=None)
    return VmStatus(
        vm=vm,
        last=mine[0].record if mine else None,
        newest_point_at=newest,
        age_s=max((now - newest).total_seconds(), 0.0) if newest else None,
    )


def _belongs(entry: Latest, job: JobSettings) -> bool:
    """Return whether an entry tells of the replicas that a job has now.

    A job that was given another target has no restore point there yet.
    """
    record = entry.record
    if record.job != job.name or record.target != job.target.pool:
        return False
    # Records name the SR. A job that has it by UUID cannot be told from one for another SR there.
    return record.sr == job.target.sr or _is_uuid(job.target.sr)


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
