"""Build the status of jobs from configuration, scheduler, runs and history. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import product

from xorepd.config.models import JobSettings, TargetSettings
from xorepd.config.names import names
from xorepd.control.protocol import ExcludedVmReply, JobReply, JobStatus, TargetReply, VmStatus
from xorepd.daemon.calendar import next_fire
from xorepd.replication.deciding.selection import ExcludedVm
from xorepd.state.history import Latest


def job_reply(job: JobSettings, next_run_at: datetime | None) -> JobReply:
    """Return one job as the current configuration has it."""
    return JobReply(
        name=job.name,
        id=job.id,
        enabled=job.enabled,
        source=job.source,
        vms=job.named,
        found_by=job.found_by,
        targets=tuple(
            TargetReply(
                pool=target.pool,
                sr=target.sr,
                keep=str(job.keep_on(target)),
                transport=job.transport_to(target).name,
            )
            for target in job.targets
        ),
        schedule=job.schedule,
        timezone=job.timezone.key,
        next_run_at=next_run_at,
        verify=job.verify.value,
    )


def job_status(
    job: JobSettings,
    latest: Iterable[Latest],
    *,
    next_run_at: datetime | None,
    run_id: str | None,
    now: datetime,
    replicas: Iterable[ExcludedVm] = (),
) -> JobStatus:
    """Return the status of one job.

    Args:
        job: The job.
        latest: The latest runs of all jobs from the history, the most recent first.
        next_run_at: When the job is next due.
        run_id: Its current run.
        now: Ages are counted up to this moment.
        replicas: The replicas that its last run left out.
    """
    own = [entry for entry in latest if entry.record.job == job.name]
    return JobStatus(
        name=job.name,
        enabled=job.enabled,
        source=job.source,
        schedule=job.schedule,
        timezone=job.timezone.key,
        next_run_at=next_run_at,
        run_id=run_id,
        vms=tuple(
            _vm_status(job, vm, target, own, now)
            for vm, target in product(_vms(job, own), job.targets)
        ),
        excluded_replicas=tuple(
            ExcludedVmReply(vm=left.vm.uuid, name=left.vm.name_label, reason=left.reason)
            for left in replicas
        ),
    )


def _vms(job: JobSettings, own: list[Latest]) -> tuple[str, ...]:
    """Return the VMs of a job: those that it names, and those that its runs have found so far.

    A VM that is gone, or that the job no longer matches, stays in the status, as its replica
    exists.
    """
    found = {
        entry.record.vm_uuid: entry.record.vm_name
        for entry in reversed(own)
        if entry.record.vm_uuid
        and {entry.record.vm_uuid, entry.record.vm_name}.isdisjoint(job.named)
        and not any(names(text, entry.record.vm_uuid, entry.record.vm_name) for text in job.exclude)
    }
    if not job.found_by:
        return job.named
    if not found:
        return job.wanted
    return (*job.named, *sorted(found, key=lambda uuid: (found[uuid], uuid)))


def _vm_status(
    job: JobSettings, vm: str, target: TargetSettings, own: list[Latest], now: datetime
) -> VmStatus:
    # A run that failed before it found the VM knows either its name or its UUID, so one VM may have
    # several entries: the first has the last run, any may have the newest restore point.
    mine = [
        entry
        for entry in own
        if vm in {entry.record.vm_uuid, entry.record.vm_name}
        and entry.record.is_to(target.pool, target.sr)
    ]
    points = [entry.newest_point_at for entry in mine if entry.newest_point_at is not None]
    newest = max(points, default=None)
    return VmStatus(
        vm=vm,
        name=next((entry.record.vm_name for entry in mine if entry.record.vm_uuid), vm),
        pool=target.pool,
        sr=target.sr,
        last=mine[0].record if mine else None,
        newest_point_at=newest,
        age_s=max((now - newest).total_seconds(), 0.0) if newest else None,
        is_late=newest is not None and _is_late(job, newest, now),
    )


def _is_late(job: JobSettings, newest: datetime, now: datetime) -> bool:
    """Return whether a replica is older than its schedule allows.

    The first run that was due after the newest point may be running now. If the second is due as
    well, the schedule has missed a whole turn.
    """
    if job.schedule is None or not job.enabled:
        return False
    following = next_fire(job.schedule, job.timezone, newest)
    return next_fire(job.schedule, job.timezone, following) <= now
