"""Replies of the daemon as tables of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import Group, RenderableType

from xorepd.control.protocol import (
    HistoryReply,
    JobsReply,
    LinksReply,
    OrphansReply,
)
from xorepd.screen import Rows, Words
from xorepd.state.records import MEMORY, DiskRecord, Outcome, RunRecord
from xorepd.units import format_duration, format_rate, format_size

NUMBERS = frozenset(
    {"LAST RUN", "POINT AGE", "NEXT RUN", "DONE", "RATE", "KEEP", "DATA", "TOOK"}
    | {"READER", "CHANGED", "READ", "SENT", "AMPL"}
)

STYLES = {
    Outcome.RUNNING: "cyan",
    Outcome.FULL: "green",
    Outcome.DELTA: "green",
    Outcome.FAILED: "bold red",
    Outcome.CANCELLED: "yellow",
    Outcome.LEASE_HELD: "yellow",
    Outcome.FROZEN: "bold red",
    Outcome.NO_VMS: "yellow",
    Outcome.INTERRUPTED: "yellow",
}


def jobs_table(reply: JobsReply, now: datetime) -> Rows:
    """Show the configured jobs."""
    table = table_of("JOB", "SOURCE", "VMS", "TARGET", "SCHEDULE", "KEEP", "NEXT RUN")
    for job in reply.jobs:
        schedule = job.schedule or "by hand"
        if job.schedule and job.timezone != "UTC":
            schedule += f" ({job.timezone})"
        for target in job.targets:
            table.add(
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
    """Show the replicas without a job, and which pools did not answer."""
    parts: list[RenderableType] = []
    if reply.orphans:
        table = table_of("REPLICA", "TARGET", "JOB", "POINTS", "NEWEST")
        for orphan in reply.orphans:
            newest = orphan.newest_point_at
            table.add(
                f"{orphan.name} {orphan.replica}",
                f"{orphan.pool}/{orphan.sr}",
                orphan.job,
                str(orphan.points),
                _moment(newest, now) if newest else "-",
            )
        parts += [table, *_remarks(reply)]
    else:
        parts.append(Words("Every replica has a job."))
    parts += _doubts(reply, now)
    parts += [Words(f"{pool} did not answer: {why}") for pool, why in reply.not_asked.items()]
    return Group(*parts)


def _doubts(reply: OrphansReply, now: datetime) -> Iterator[Words]:
    """Show the objects that may be ours, and the commands that settle each."""
    if reply.unresolved:
        yield Words()
        yield Words("No run touches these objects. Settle each with one of its two commands:")
    for doubt in reply.unresolved:
        where = f"{doubt.pool}/{doubt.sr}, {format_size(doubt.size)}" if doubt.sr else doubt.pool
        since = f", of {_moment(doubt.since, now)}" if doubt.since else ""
        yield Words(
            f"{doubt.kind} {doubt.name or '(no name)'} ({doubt.uuid}) on {where}{since}: "
            f"it {doubt.why}"
        )
        yield Words(f"  remove: {doubt.remove}")
        yield Words(f"  keep:   {doubt.keep}")


def _remarks(reply: OrphansReply) -> Iterator[Words]:
    """Show what is unusual about replicas without a job."""
    for orphan in reply.orphans:
        remarks = [f"its replica {sign}" for sign in orphan.signs_of_use]
        if not orphan.replica:
            remarks.append("its replica is already gone")
        if orphan.source and not orphan.source_vm_exists:
            remarks.append(f"its VM is gone from pool {orphan.source}")
        if not orphan.source:
            remarks.append("its source pool is not configured, or does not answer")
        if not orphan.known:
            remarks.append("this daemon has no run of it: another one may maintain it")
        if remarks:
            yield Words(f"{orphan.name} on {orphan.pool}/{orphan.sr}: {'; '.join(remarks)}")


def links_table(reply: LinksReply) -> RenderableType:
    """Show the rate limits, what sets them, and the bytes sent."""
    if not reply.links:
        return Words("No rate limit is configured; see the transport throttled.")
    table = table_of("LINK", "RATE", "LIMITED BY", "DISKS", "SENT")
    for link in reply.links:
        rate = math.inf if link.rate_bytes_per_s is None else link.rate_bytes_per_s
        table.add(
            link.name,
            format_rate(rate),
            link.reason,
            str(link.active_disks),
            format_size(link.sent_bytes),
        )
    return table


def history_table(reply: HistoryReply, now: datetime) -> RenderableType:
    """Show finished runs, the newest first, and the errors of failed ones."""
    table = table_of("STARTED", "JOB", "VM", "OUTCOME", "READ", "SENT", "TOOK")
    for record in reply.records:
        table.add(
            _moment(record.started_at, now),
            record.job,
            record.vm_name,
            outcome_text(record),
            format_size(record.read_bytes),
            format_size(record.sent_bytes),
            _took(record),
        )
    errors = [failure_text(record, whom) for record, whom in named(reply.records) if record.error]
    # Only the newest: a failure often repeats with the same sentence.
    return Group(table, *errors[:5])


def run_view(records: Iterable[RunRecord]) -> RenderableType:
    """Show one run in full: for each disk its reader, its writer and the bytes."""
    parts: list[RenderableType] = []
    for record, whom in named(records):
        if parts:
            parts.append(Words())
        parts.append(_finished(record, whom))
        if record.disks:
            parts.append(_disks_table(record))
        parts += [Words(_why(disk)) for disk in record.disks if disk.reason]
        parts += [
            Words(f"disk {disk.device}: {disk.reader} because {disk.reader_reason}")
            for disk in record.disks
            if disk.reader_reason
        ]
        parts += [
            Words(
                f"disk {disk.device}: shared read, {format_size(disk.shared_bytes)} of "
                f"{format_size(disk.read_bytes)} together with other targets"
            )
            for disk in record.disks
            if disk.shared_bytes
        ]
        parts += [
            Words(f"disk {disk.device}: {said}") for disk in record.disks for said in _way(disk)
        ]
        parts += [Words(remark) for remark in record.remarks]
        if record.base_data:
            because = f" because {record.base_data_reason}" if record.base_data_reason else ""
            parts.append(Words(f"data of the next base: {record.base_data}{because}"))
    return Group(*parts)


def _why(disk: DiskRecord) -> str:
    if disk.mode == MEMORY:
        return f"memory: not replicated because {disk.reason}"
    return f"disk {disk.device}: {disk.mode} because {disk.reason}"


def _way(disk: DiskRecord) -> Iterator[str]:
    """Show what was unusual in the transfer of a disk."""
    if disk.compared_bytes is not None:
        of = f" of {format_size(disk.to_compare_bytes)}" if disk.is_being_compared else ""
        yield f"{format_size(disk.compared_bytes)}{of} compared with the target"
    if disk.waiting_for:
        yield f"waits for {disk.waiting_for}"
    if disk.unchanged_bytes:
        yield f"{format_size(disk.unchanged_bytes)} read and not sent: the target has them"
    if disk.resumed_from:
        is_whole = disk.resumed_from >= disk.virtual_size
        end = "its end" if is_whole else format_size(disk.resumed_from)
        yield f"an earlier run had reached {end}, and this one continued from there"
    if disk.reconnects:
        yield f"its transfer was interrupted and continued {disk.reconnects} times"


def _disks_table(record: RunRecord) -> Rows:
    table = table_of("DISK", "MODE", "READER", "WRITER", "CHANGED", "READ", "SENT", "AMPL")
    for disk in record.disks:
        amplified = disk.amplification
        table.add(
            disk.device,
            disk.mode,
            disk.reader or "-",
            disk.writer or "-",
            "-" if disk.changed_bytes is None else format_size(disk.changed_bytes),
            format_size(disk.read_bytes),
            format_size(disk.sent_bytes),
            "-" if amplified is None else f"{amplified:.2f}",
        )
    return table


def finished_view(records: Iterable[RunRecord]) -> RenderableType:
    """Show how a run ended: a line for each VM and target, and the remarks."""
    parts = []
    for record, whom in named(records):
        parts.append(_finished(record, whom))
        parts += [Words(f"{whom}: {remark}") for remark in record.remarks]
    return Group(*parts)


def named(records: Iterable[RunRecord]) -> Iterator[tuple[RunRecord, str]]:
    """Return each record with a title: its VM, and its target if there are several."""
    records = list(records)
    is_one = len({(record.target, record.sr) for record in records}) == 1
    for record in records:
        target = f"{record.target}/{record.sr}"
        yield record, record.vm_name if is_one else f"{record.vm_name} to {target}"


def _finished(record: RunRecord, whom: str) -> Words:
    if record.error:
        return failure_text(record, whom)
    if record.outcome is Outcome.RUNNING:
        return Words(f"{whom}: {record.step}")
    text = Words(f"{whom}: ")
    text.append(record.outcome.value, style=STYLES[record.outcome])
    text.append(f", {read_and_sent(record)} in {_took(record)}")
    if record.outcome is Outcome.FULL:
        reasons = sorted({disk.reason for disk in record.disks if disk.mode == "full"})
        text.append(f" (full because: {', '.join(reasons)})" if any(reasons) else "")
    return text


def read_and_sent(record: RunRecord) -> str:
    """Return how much was read from the source and how much was sent to the target."""
    text = f"{format_size(record.read_bytes)} read, {format_size(record.sent_bytes)} sent"
    compared = record.compared_bytes
    return f"{format_size(compared)} compared, {text}" if compared else text


def failure_text(record: RunRecord, whom: str) -> Words:
    """Return the sentence that says why a run has no restore point."""
    text = Words(f"{whom} ({record.job}): ")
    text.append(record.outcome.value, style=STYLES[record.outcome])
    text.append(f" in {record.step}: {record.error or 'no reason given'}")
    return text.append("; the next run continues from there") if record.resumable else text


def table_of(*columns: str) -> Rows:
    """Return an empty table."""
    return Rows(*columns, together=NUMBERS)


def outcome_text(record: RunRecord) -> Words:
    """Return the outcome of a run in its colour."""
    return Words(record.outcome.value, style=STYLES[record.outcome])


def _took(record: RunRecord) -> str:
    if record.finished_at is None:
        return "-"
    return format_duration((record.finished_at - record.started_at).total_seconds())


def _moment(at: datetime, now: datetime) -> str:
    """Return a moment in the local time zone, with the date unless it is today."""
    local, today = at.astimezone(), now.astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"
