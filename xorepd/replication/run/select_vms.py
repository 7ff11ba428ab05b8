"""Select the VMs of a run, and find those that are missing.

Each VM that a job names has a record of its own, which fails if the VM is missing. Patterns and
tags are matched with the VMs of the source pool when the run begins. The marks of the replicas show
which VMs were replicated before and are gone now, on each target separately: a target that does not
answer does not stop the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import structlog

from xorepd.config.choices import Empty
from xorepd.config.models import JobSettings, TargetSettings
from xorepd.errors import Refused, XorepdError
from xorepd.ids import RunId
from xorepd.replication.context.board import Clock
from xorepd.replication.deciding.selection import Selection, select_vms
from xorepd.replication.deciding.vanished import find_strays
from xorepd.replication.format.marks import ReplicaKey
from xorepd.replication.run.preflight import find_sr
from xorepd.state.records import Outcome, RunRecord
from xorepd.xapi.pool import Pool

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SelectedVms:
    wanted: tuple[str, ...]
    """Names and UUIDs of the VMs to serve."""
    records: tuple[RunRecord, ...] = ()
    """One record per target if patterns and tags match no VM; otherwise none."""
    selection: Selection | None = None
    """None if the pool was not asked."""


async def wanted_vms(job: JobSettings, run_id: RunId, source: Pool, clock: Clock) -> SelectedVms:
    """Return the VMs of a run; a failure of a pool becomes a record and is not raised."""
    if not job.found_by:
        return SelectedVms(job.named)
    started_at = clock()

    def recorded(outcome: Outcome, error: XorepdError) -> tuple[RunRecord, ...]:
        return tuple(
            _record(job, run_id, to, outcome, error, started_at, clock()) for to in job.targets
        )

    try:
        await source.refresh()
    except XorepdError as error:
        return SelectedVms(job.named, recorded(Outcome.FAILED, error))
    selection = select_vms(job, source.cache.vms.values())
    log.info(
        "vms.selected",
        job=job.name,
        named=len(selection.named),
        found=len(selection.found),
        excluded=selection.reasons,
    )
    records: tuple[RunRecord, ...] = ()
    if not selection.found:
        outcome = Outcome.FAILED if job.empty is Empty.FAIL else Outcome.NO_VMS
        records = recorded(outcome, _nothing_found(job, selection, source.name))
        log.warning("vms.none_found", job=job.name, found_by=job.found_by)
    return SelectedVms(selection.wanted, records, selection)


async def find_missing(
    job: JobSettings,
    run_id: RunId,
    selection: Selection,
    to: TargetSettings,
    source: Pool,
    target: Pool,
    clock: Clock,
) -> list[RunRecord]:
    """Return a failed record for each VM that is gone and has a replica on a target."""
    started_at = clock()
    try:
        await target.refresh()
        sr = find_sr(target.cache, target.name, to.sr)
    except XorepdError as error:  # the records of the existing VMs say the same
        log.debug("vms.missing_unknown", target=to.pool, reason=str(error))
        return []
    stream = ReplicaKey(pool=source.cache.pool.uuid, vm="", sr=sr.uuid)
    records = []
    for stray in find_strays(job, selection, source.cache, target.cache, stream):
        if stray.exists:
            log.info("vm.not_selected", job=job.name, vm=stray.vm, name=stray.name)
            continue
        number = stray.snapshots
        ours = f", and so do our {number} snapshots of it" if number > 1 else ""
        ours = ", and so does our snapshot of it" if number == 1 else ours
        if stray.is_replaced:
            which = f"VM {stray.name} ({stray.vm}) is gone, and another one has its name"
            advice = f"`xorepctl forget {stray.vm}` removes that"
        else:
            which = f"VM {stray.name} is gone"
            advice = (
                f"Name the VM in exclude of job {job.name}; then `xorepctl forget` removes what "
                "is left of it"
            )
        gone = Refused(
            f"pool {source.name}: {which}; its replica on pool {target.name} stays as it is{ours}. "
            f"{advice}"
        )
        log.warning(
            "vm.gone", job=job.name, vm=stray.vm, name=stray.name, replica=stray.replica.uuid
        )
        records.append(
            _record(
                job,
                run_id,
                to,
                Outcome.FAILED,
                gone,
                started_at,
                clock(),
                vm=(stray.vm, stray.name),
                sr=(sr.uuid, sr.name_label),
            )
        )
    return records


def _nothing_found(job: JobSettings, selection: Selection, pool: str) -> Refused:
    left_out = "; ".join(_left_out(selection))
    return Refused(
        f"pool {pool}: no VM matches {job.found_by}" + (f" ({left_out})" if left_out else "")
    )


def _left_out(selection: Selection) -> Iterator[str]:
    for because, count in selection.reasons.items():
        yield f"{count} left out: {because}"


def _record(
    job: JobSettings,
    run_id: RunId,
    to: TargetSettings,
    outcome: Outcome,
    error: XorepdError,
    started_at: datetime,
    finished_at: datetime,
    *,
    vm: tuple[str, str] | None = None,
    sr: tuple[str, str] | None = None,
) -> RunRecord:
    """Return the record of one VM and target, or of patterns and tags that match nothing.

    Args:
        vm, sr: UUID and name, where they are known.
    """
    vm_uuid, vm_name = vm or ("", job.found_by)
    sr_uuid, sr_name = sr or ("", to.sr)
    return RunRecord(
        run_id=run_id,
        job=job.name,
        vm_uuid=vm_uuid,
        vm_name=vm_name,
        source=job.source,
        target=to.pool,
        sr=sr_name,
        sr_uuid=sr_uuid,
        outcome=outcome,
        step="select",
        started_at=started_at,
        finished_at=finished_at,
        error=str(error),
        remedy=error.remedy.value,
    )
