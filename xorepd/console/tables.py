"""Replies of the daemon as tables that fit 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xorepd.control.protocol import (
    HistoryReply,
    JobsReply,
    JobStatus,
    LinksReply,
    OrphansReply,
    PoolStatus,
    StatusReply,
    VmStatus,
)
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd.units import format_duration, format_rate, format_size

NUMBERS = frozenset(
    {"LAST RUN", "POINT AGE", "NEXT RUN", "DONE", "RATE", "KEEP", "MOVED", "TOOK"}
    | {"READER", "CHANGED", "READ", "SENT", "AMPL"}
)

STYLES = {
    Outcome.RUNNING: "cyan",
    Outcome.FULL: "green",
    Outcome.DELTA: "green",
    Outcome.FAILED: "bold red",
    Outcome.CANCELLED: "yellow",
    Outcome.HELD: "yellow",
    Outcome.EMPTY: "yellow",
    Outcome.INTERRUPTED: "yellow",
}

EXPLAINED = (Outcome.FAILED, Outcome.HELD, Outcome.INTERRUPTED)
"""What the status says more of than the word."""


def status_view(reply: StatusReply, now: datetime) -> RenderableType:
    """Show how every VM stands, what runs, and why the last run of a VM failed."""
    up = format_duration((now - reply.started_at).total_seconds())
    head = Text(f"xorepd {reply.version}, process {reply.pid}, up {up}")
    if reply.stopping:
        head.append(", stopping", style="yellow")

    table = _table("JOB", "VM", "TARGET", "LAST RUN", "POINT AGE", "NEXT RUN")
    met = {record.job for record in reply.running}
    for job in reply.jobs:
        # A run that is still looking for its VMs has no record yet.
        begins = job.run_id is not None and job.name not in met
        for vm in job.vms:
            runs = begins or any(_is_of(record, job, vm) for record in reply.running)
            table.add_row(
                job.name,
                vm.name,
                f"{vm.pool}/{vm.last.sr if vm.last else vm.sr}",
                _last(vm, runs=runs, now=now),
                _age(vm),
                _next(job, now),
            )
    parts: list[RenderableType] = [head, table if reply.jobs else Text("No jobs are configured.")]
    if reply.running:
        parts += [Text(), running_table(reply.running)]
    if waits := list(_waits(reply)):
        parts += [Text(), *waits]
    for failure in _failures(reply):
        parts += [Text(), failure]
    if pools := [line for pool in reply.pools for line in _pool_lines(pool)]:
        parts += [Text(), *pools]
    if left_out := _left_out(reply):
        parts += [Text(), *left_out]
    return Group(*parts)


def running_table(records: Iterable[RunRecord]) -> Table:
    """Show runs under way: step, how much of what is planned, and how fast."""
    table = _table("RUNNING", "VM", "STEP", "DONE", "MOVED", "RATE")
    for record in records:
        planned, moved = record.planned_bytes, record.moved_bytes
        share = f"{min(moved / planned, 1.0):.0%}" if planned else "-"
        of = f"{format_size(moved)} of {format_size(planned)}" if planned else format_size(moved)
        rate = f"{format_size(record.rate_bytes_per_s)}/s"
        table.add_row(record.job, record.vm_name, record.step, share, of, rate)
    return table


def jobs_table(reply: JobsReply, now: datetime) -> Table:
    """Show what is configured."""
    table = _table("JOB", "SOURCE", "VMS", "TARGET", "SCHEDULE", "KEEP", "NEXT RUN")
    for job in reply.jobs:
        schedule = job.schedule or "by hand"
        if job.schedule and job.timezone != "UTC":
            schedule += f" ({job.timezone})"
        for target in job.targets:
            table.add_row(
                job.name,
                job.source,
                job.found_by if not job.vms else f"{len(job.vms)}, {job.found_by}".rstrip(", "),
                f"{target.pool}/{target.sr}",
                schedule if job.enabled else "disabled",
                target.keep,
                _moment(job.next_run_at, now) if job.next_run_at else "-",
            )
    return table


def orphans_view(reply: OrphansReply, now: datetime) -> RenderableType:
    """Show replicas that no job keeps up, and which pools could not be asked."""
    parts: list[RenderableType] = []
    if reply.orphans:
        table = _table("REPLICA", "TARGET", "JOB", "POINTS", "NEWEST")
        for orphan in reply.orphans:
            newest = orphan.newest_point_at
            table.add_row(
                f"{orphan.name} {orphan.replica}",
                f"{orphan.pool}/{orphan.sr}",
                orphan.job,
                str(orphan.points),
                _moment(newest, now) if newest else "-",
            )
        parts += [table, *_remarks(reply)]
    else:
        parts.append(Text("Every replica has its job."))
    parts += [Text(f"{pool} was not asked: {why}") for pool, why in reply.not_asked.items()]
    return Group(*parts)


def _remarks(reply: OrphansReply) -> Iterator[Text]:
    """Tell what is out of the ordinary about replicas without a job."""
    for orphan in reply.orphans:
        remarks = [f"its replica {sign}" for sign in orphan.used]
        if not orphan.replica:
            remarks.append("its replica is gone already")
        if orphan.source and not orphan.exists:
            remarks.append(f"its VM is gone from pool {orphan.source}")
        if not orphan.source:
            remarks.append("its source pool is not configured, or does not answer")
        if not orphan.known:
            remarks.append("this daemon remembers no run of it, another one may keep it up")
        if remarks:
            yield Text(f"{orphan.name} on {orphan.pool}/{orphan.sr}: {'; '.join(remarks)}")


def links_table(reply: LinksReply) -> RenderableType:
    """Show what limits transfers, why, and what has passed."""
    if not reply.links:
        return Text("Nothing limits transfers; see the transport throttled.")
    table = _table("LINK", "RATE", "BECAUSE OF", "DISKS", "MOVED")
    for link in reply.links:
        rate = math.inf if link.rate_bytes_per_s is None else link.rate_bytes_per_s
        table.add_row(
            link.name,
            format_rate(rate),
            link.because,
            str(link.streams),
            format_size(link.passed_bytes),
        )
    return table


def history_table(reply: HistoryReply, now: datetime) -> RenderableType:
    """Show finished runs, the newest first, and the errors of those that failed."""
    table = _table("STARTED", "JOB", "VM", "OUTCOME", "MOVED", "TOOK")
    for record in reply.records:
        table.add_row(
            _moment(record.started_at, now),
            record.job,
            record.vm_name,
            _outcome(record),
            format_size(record.moved_bytes),
            _took(record),
        )
    errors = [_failure(record, whom) for record, whom in _named(reply.records) if record.error]
    # The newest tell most; a page of one sentence fifty times tells nothing.
    return Group(table, *errors[:5])


def run_view(records: Iterable[RunRecord]) -> RenderableType:
    """Show one run in full: for each disk how it was read and written, and what that cost."""
    parts: list[RenderableType] = []
    for record, whom in _named(records):
        if parts:
            parts.append(Text())
        parts.append(_finished(record, whom))
        if record.disks:
            parts.append(_disks_table(record))
        parts += [
            Text(f"disk {disk.device}: {disk.mode} because {disk.reason}")
            for disk in record.disks
            if disk.reason
        ]
        parts += [
            Text(f"disk {disk.device}: {disk.reader} because {disk.reader_reason}")
            for disk in record.disks
            if disk.reader_reason
        ]
        parts += [
            Text(
                f"disk {disk.device}: shared read, {format_size(disk.shared_bytes)} of "
                f"{format_size(disk.moved_bytes)} together with other targets"
            )
            for disk in record.disks
            if disk.shared_bytes
        ]
        parts += [
            Text(f"disk {disk.device}: {said}") for disk in record.disks for said in _way(disk)
        ]
    return Group(*parts)


def _way(disk: DiskRecord) -> Iterator[str]:
    """Tell what was out of the ordinary in how a disk came over."""
    if disk.compared_bytes is not None:
        yield f"{format_size(disk.compared_bytes)} compared with the target"
    if disk.waits_for:
        yield f"waits for {disk.waits_for}"
    if disk.unchanged_bytes:
        yield f"{format_size(disk.unchanged_bytes)} read and not sent: the target holds them"
    if disk.resumed_from:
        yield f"went on at {format_size(disk.resumed_from)}, which an earlier run had sent"
    if disk.breaks:
        yield f"its stream broke and was taken up again, {disk.breaks} times"


def _disks_table(record: RunRecord) -> Table:
    table = _table("DISK", "MODE", "READER", "WRITER", "CHANGED", "READ", "SENT", "AMPL")
    for disk in record.disks:
        amplified = disk.amplification
        table.add_row(
            disk.device,
            disk.mode,
            disk.reader or "-",
            disk.writer or "-",
            "-" if disk.changed_bytes is None else format_size(disk.changed_bytes),
            format_size(disk.moved_bytes),
            format_size(disk.sent_bytes),
            "-" if amplified is None else f"{amplified:.2f}",
        )
    return table


def finished_view(records: Iterable[RunRecord]) -> RenderableType:
    """Show how a run ended, one line per VM and target."""
    return Group(*(_finished(*named) for named in _named(records)))


def _named(records: Iterable[RunRecord]) -> Iterator[tuple[RunRecord, str]]:
    """Return each record with what to call it: its VM, and its target where there are several."""
    records = list(records)
    is_one = len({(record.target, record.sr) for record in records}) == 1
    for record in records:
        target = f"{record.target}/{record.sr}"
        yield record, record.vm_name if is_one else f"{record.vm_name} to {target}"


def _finished(record: RunRecord, whom: str) -> Text:
    if record.error:
        return _failure(record, whom)
    if record.outcome is Outcome.RUNNING:
        return Text(f"{whom}: {record.step}")
    text = Text(f"{whom}: ")
    text.append(record.outcome.value, style=STYLES[record.outcome])
    text.append(f", {format_size(record.moved_bytes)} in {_took(record)}")
    if record.outcome is Outcome.FULL:
        reasons = sorted({disk.reason for disk in record.disks if disk.mode == "full"})
        text.append(f" (full because: {', '.join(reasons)})" if any(reasons) else "")
    return text


def _failures(reply: StatusReply) -> list[Text]:
    return [
        _failure(record, whom)
        for job in reply.jobs
        for record, whom in _named(vm.last for vm in job.vms if vm.last is not None)
        if record.outcome in EXPLAINED
    ]


def _waits(reply: StatusReply) -> Iterator[Text]:
    """Tell which disks wait in the middle of a run, and who has what they wait for."""
    waiting = False
    for record, whom in _named(reply.running):
        found = {disk.waits_for for disk in record.disks} - {""}
        for what in sorted(found):
            devices = [disk.device for disk in record.disks if disk.waits_for == what]
            one = len(devices) == 1
            disks = f"disk{'' if one else 's'} {', '.join(devices)} wait{'s' if one else ''}"
            yield Text(f"{whom} ({record.job}): {disks} for {what}")
            waiting = True
    if waiting and (memory := reply.memory) is not None:
        held, size = format_size(memory.held_bytes), format_size(memory.size_bytes)
        yield Text(f"memory: others have {held} of the {size} that [daemon] memory allows")


def _pool_lines(pool: PoolStatus) -> Iterator[Text]:
    """Tell of a pool that is slow, or where VMs wait for their turn."""
    if not pool.is_slow and not pool.waiting:
        return
    line = f"pool {pool.name}: "
    if pool.is_slow and pool.answer_s is not None:
        line += f"answers slowly ({format_duration(pool.answer_s)}); "
    if pool.at_once is not None:
        line += f"{pool.at_once} VM{'' if pool.at_once == 1 else 's'} at once; "
    line += f"{pool.at_work} at work, {pool.waiting} waiting"
    yield Text(line, style="yellow" if pool.is_slow else "")


def _left_out(reply: StatusReply) -> list[Text]:
    """Return a line for each disk that is not replicated, once for all targets."""
    lines = {
        f"{vm.name} ({job.name}): disk {disk.device} {disk.name} stays behind, {disk.reason}": None
        for job in reply.jobs
        for vm in job.vms
        for disk in (vm.last.disks if vm.last else ())
        if disk.mode == "excluded"
    }
    return [Text(line) for line in lines]


def _failure(record: RunRecord, whom: str) -> Text:
    text = Text(f"{whom} ({record.job}): ")
    text.append(record.outcome.value, style=STYLES[record.outcome])
    text.append(f" in {record.step}: {record.error or 'no reason given'}")
    return text.append("; the next run goes on with what was sent") if record.resumable else text


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for column in columns:
        # Names fold, so that a long one costs a line and is not cut; numbers keep together.
        table.add_column(column, overflow="fold", no_wrap=column in NUMBERS)
    return table


def _is_of(record: RunRecord, job: JobStatus, vm: VmStatus) -> bool:
    return (
        record.job == job.name
        and vm.vm in {record.vm_name, record.vm_uuid}
        and record.is_to(vm.pool, vm.sr)
    )


def _last(vm: VmStatus, *, runs: bool, now: datetime) -> Text:
    if runs:
        return Text("running", style=STYLES[Outcome.RUNNING])
    if vm.last is None:
        return Text("never", style="yellow")
    ended_at = vm.last.finished_at or vm.last.started_at
    ago = format_duration(max((now - ended_at).total_seconds(), 0.0))
    return _outcome(vm.last).append(f" {ago}", style="default not bold")


def _outcome(record: RunRecord) -> Text:
    return Text(record.outcome.value, style=STYLES[record.outcome])


def _age(vm: VmStatus) -> Text:
    if vm.age_s is None:
        return Text("none", style="yellow")
    age = format_duration(vm.age_s)
    return Text(f"{age} late", style="bold red") if vm.is_late else Text(age)


def _next(job: JobStatus, now: datetime) -> str:
    if not job.enabled:
        return "disabled"
    if job.next_run_at is None:
        return "by hand"
    return "in " + format_duration(max((job.next_run_at - now).total_seconds(), 0.0))


def _took(record: RunRecord) -> str:
    if record.finished_at is None:
        return "-"
    return format_duration((record.finished_at - record.started_at).total_seconds())


def _moment(at: datetime, now: datetime) -> str:
    """Return a moment in the reader's own time zone; the date only where it is not today."""
    local, today = at.astimezone(), now.astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"
