"""The status of a daemon: every VM, the current runs, and the problems; fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType

from xorepd.console.tables import STYLES, failure_text, named, outcome_text, table_of
from xorepd.control.protocol import HistoryStatus, JobStatus, PoolStatus, StatusReply, VmStatus
from xorepd.screen import Rows, Words, stacked
from xorepd.state.records import MEMORY, DiskRecord, Outcome, RunRecord
from xorepd.units import format_duration, format_size

EXPLAINED = (Outcome.FAILED, Outcome.LEASE_HELD, Outcome.FROZEN, Outcome.INTERRUPTED)
"""Outcomes that the status explains in a sentence."""


NOTABLE_CLOCK_S = 30
"""Seconds by which a pool's clock may be wrong before the status says so."""

NAMED = 5
"""Most VMs that one line names."""


def status_view(reply: StatusReply, now: datetime) -> RenderableType:
    """Show the state of every VM, the current runs, and why the last run of a VM failed."""
    up = format_duration((now - reply.started_at).total_seconds())
    head = Words(f"xorepd {reply.version}, process {reply.pid}, up {up}")
    if reply.stopping:
        head.append(", stopping", style="yellow")

    table = table_of("JOB", "VM", "TARGET", "LAST RUN", "POINT AGE", "NEXT RUN")
    met = {record.job for record in reply.running}
    for job in reply.jobs:
        # A run that is still selecting its VMs has no record yet.
        begins = job.run_id is not None and job.name not in met
        for vm in job.vms:
            runs = begins or any(_is_of(record, job, vm) for record in reply.running)
            table.add(
                job.name,
                vm.name,
                f"{vm.pool}/{vm.last.sr if vm.last else vm.sr}",
                _last(vm, runs=runs, now=now),
                _age(vm),
                _next(job, now),
            )
    parts: list[RenderableType] = [head, table if reply.jobs else Words("No jobs are configured.")]
    if reply.running:
        parts += [Words(), running_table(reply.running)]
    if compared := list(_compared(reply.running)):
        parts += [Words(), *compared]
    if waits := list(_waits(reply)):
        parts += [Words(), *waits]
    for failure in _failures(reply):
        parts += [Words(), failure]
    if pools := [line for pool in reply.pools for line in _pool_lines(pool)]:
        parts += [Words(), *pools]
    if left_out := _left_out(reply):
        parts += [Words(), *left_out]
    if replicas := list(_replicas(reply)):
        parts += [Words(), *replicas]
    if reply.history is not None:
        parts += [Words(), _unwritten(reply.history)]
    if reply.set_aside:
        parts += [Words(), *(Words(sentence, style="red") for sentence in reply.set_aside)]
    return Group(*parts)


def running_table(records: Iterable[RunRecord]) -> Rows:
    """Show the current runs: step, share of the plan, bytes read and sent, and rates."""
    table = table_of("RUNNING", "VM", "STEP", "DONE", "DATA", "RATE")
    for record in records:
        planned, read = record.planned_bytes, record.read_bytes
        of = f"{format_size(read)} of {format_size(planned)}" if planned else format_size(read)
        table.add(
            record.job,
            record.vm_name,
            record.step,
            f"{min(read / planned, 1.0):.0%}" if planned else "-",
            stacked(f"{of} read", f"{format_size(record.sent_bytes)} sent"),
            stacked(
                f"{format_size(record.rate_bytes_per_s)}/s read",
                f"{format_size(record.sent_rate_bytes_per_s)}/s sent",
            ),
        )
    return table


def _is_of(record: RunRecord, job: JobStatus, vm: VmStatus) -> bool:
    return (
        record.job == job.name
        and vm.vm in {record.vm_name, record.vm_uuid}
        and record.is_to(vm.pool, vm.sr)
    )


def _last(vm: VmStatus, *, runs: bool, now: datetime) -> Words:
    if runs:
        return Words("running", style=STYLES[Outcome.RUNNING])
    if vm.last is None:
        return Words("never", style="yellow")
    ended_at = vm.last.finished_at or vm.last.started_at
    ago = format_duration(max((now - ended_at).total_seconds(), 0.0))
    return outcome_text(vm.last).append(f" {ago}", style="default not bold")


def _age(vm: VmStatus) -> Words:
    if vm.age_s is None:
        return Words("none", style="yellow")
    age = format_duration(vm.age_s)
    return Words(f"{age} late", style="bold red") if vm.is_late else Words(age)


def _next(job: JobStatus, now: datetime) -> str:
    if not job.enabled:
        return "disabled"
    if job.next_run_at is None:
        return "by hand"
    return "in " + format_duration(max((job.next_run_at - now).total_seconds(), 0.0))


def _failures(reply: StatusReply) -> list[Words]:
    return [
        failure_text(record, whom)
        for job in reply.jobs
        for record, whom in named(vm.last for vm in job.vms if vm.last is not None)
        if record.outcome in EXPLAINED
    ]


def _compared(running: Sequence[RunRecord]) -> Iterator[Words]:
    """Show the progress of comparisons of source and target disks."""
    for record, whom in named(running):
        for disk in record.disks:
            if disk.is_being_compared:
                done, end = disk.compared_bytes or 0, disk.to_compare_bytes
                far = f"{format_size(done)} of {format_size(end)}, {done / end:.0%}"
                yield Words(f"{whom} ({record.job}): disk {disk.device} is being compared, {far}")


def _waits(reply: StatusReply) -> Iterator[Words]:
    """Show which disks wait within a run, and how much memory the others use."""
    waiting = False
    for record, whom in named(reply.running):
        found = {disk.waiting_for for disk in record.disks} - {""}
        for what in sorted(found):
            devices = [disk.device for disk in record.disks if disk.waiting_for == what]
            one = len(devices) == 1
            disks = f"disk{'' if one else 's'} {', '.join(devices)} wait{'s' if one else ''}"
            yield Words(f"{whom} ({record.job}): {disks} for {what}")
            waiting = True
    if waiting and (memory := reply.memory) is not None:
        held, size = format_size(memory.held_bytes), format_size(memory.size_bytes)
        yield Words(f"memory: other disks use {held} of the {size} that [daemon] memory allows")


def _pool_lines(pool: PoolStatus) -> Iterator[Words]:
    """Show a pool that is slow, whose clock is wrong, or where VMs wait for their turn."""
    ahead = pool.clock_ahead_s or 0
    if abs(ahead) >= NOTABLE_CLOCK_S:
        direction = "ahead of" if ahead > 0 else "behind"
        yield Words(
            f"pool {pool.name}: its clock is {format_duration(abs(ahead))} {direction} the "
            "daemon's; xorepd corrects ages by that. Set the time on its hosts",
            style="yellow",
        )
    if not pool.is_slow and not pool.waiting_vms:
        return
    line = f"pool {pool.name}: "
    if pool.is_slow and pool.latency_s is not None:
        line += f"answers slowly ({format_duration(pool.latency_s)}); "
    if pool.max_vms is not None:
        line += f"{pool.max_vms} VM{'' if pool.max_vms == 1 else 's'} at once; "
    line += f"{pool.active_vms} in transfer, {pool.waiting_vms} waiting"
    yield Words(line, style="yellow" if pool.is_slow else "")


def _replicas(reply: StatusReply) -> Iterator[Words]:
    """Show the replicas that each job matches and leaves out, a few by name."""
    for job in reply.jobs:
        by_reason: dict[str, list[str]] = {}
        for left in job.excluded_replicas:
            by_reason.setdefault(left.reason, []).append(left.name)
        for because, names in by_reason.items():
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield Words(f"{job.name} leaves out {', '.join(names[:NAMED])}{more}: {because}")


def _unwritten(history: HistoryStatus) -> Words:
    results = "1 result is" if history.pending == 1 else f"{history.pending} results are"
    lost = f", {history.dropped} older ones are lost" if history.dropped else ""
    return Words(
        f"history: {results} not written yet{lost}; the daemon tries again: {history.problem}",
        style="bold red",
    )


def _left_out(reply: StatusReply) -> list[Words]:
    """Return a line for each excluded disk or memory image, and for each remark.

    A line appears once for all targets.
    """
    lines: dict[str, None] = {}
    for job in reply.jobs:
        for vm in job.vms:
            for disk in vm.last.disks if vm.last else ():
                if what := _left(disk):
                    lines[f"{vm.name} ({job.name}): {what} is not replicated: {disk.reason}"] = None
            for remark in vm.last.remarks if vm.last else ():
                lines[f"{vm.name} ({job.name}): {remark}"] = None
    return [Words(line) for line in lines]


def _left(disk: DiskRecord) -> str:
    if disk.mode == MEMORY:
        return "its memory" if disk.reason else ""
    return f"disk {disk.device} {disk.name}" if disk.mode == "excluded" else ""
