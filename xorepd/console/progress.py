"""A run's progress: bars on a terminal, a line per step elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn

from xorepd.screen import Told, Words
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd.units import format_size


class Display(Protocol):
    """Shows the records of a run as they change."""

    def show(self, record: RunRecord) -> None: ...


@contextmanager
def displayed(console: Console) -> Iterator[Display]:
    """Show progress while a block lasts, in the form that suits the console."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    progress = Progress(
        Told("title"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        Told("work"),
        Told("rates"),
        console=console,
        expand=True,
    )
    with progress:
        yield _Bars(progress)


def _identity(record: RunRecord) -> tuple[str, str]:
    """Return what identifies a VM over all events; its UUID is unknown at first."""
    return record.job, record.started_at.isoformat()


class _Bars:
    """A bar for each VM, with bytes read and sent, and below it a bar for each disk."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[tuple[str, ...], TaskID] = {}

    def show(self, record: RunRecord) -> None:
        vm = _identity(record)
        title = f"{record.vm_name} {record.step}"
        works = [_work(disk) for disk in record.disks]
        done, planned = sum(work[0] for work in works), sum(work[1] for work in works)
        rates = record.rate_bytes_per_s, record.sent_rate_bytes_per_s
        sent = [f"{format_size(record.sent_bytes)} sent"] if planned else []
        self._set(vm, title, planned, done, sent, [f"{format_size(rate)}/s" for rate in rates])
        if len(record.disks) < 2:
            return  # the bar of the VM shows the disk
        for disk in record.disks:
            done, planned = _work(disk)
            title = f"  disk {disk.device} {_doing(disk)}"
            self._set((*vm, disk.device), title, planned, done)

    def _set(
        self,
        key: tuple[str, ...],
        title: str,
        planned: int,
        read: int,
        below: Sequence[str] = (),
        rates: Sequence[str] = (),
    ) -> None:
        if key not in self._bars:
            self._bars[key] = self._progress.add_task("", total=None, title="", work=(), rates=())
        self._progress.update(
            self._bars[key],
            title=title,
            total=planned or None,  # none: the bar pulses until the plan is known
            completed=min(read, planned),
            work=(f"{format_size(read)} of {format_size(planned)} read", *below) if planned else (),
            rates=rates if planned else rates[:1],
        )


def _work(disk: DiskRecord) -> tuple[int, int]:
    """Return how many bytes have been read, and how many will be: to compare, or to send."""
    if disk.is_being_compared:
        return disk.compared_bytes or 0, disk.to_compare_bytes
    return disk.read_bytes, disk.planned_bytes


def _doing(disk: DiskRecord) -> str:
    if disk.waiting_for:
        return f"waits for {disk.waiting_for}"
    return "compares" if disk.is_being_compared else disk.mode


class _Lines:
    """A line each time a VM enters another step, so that logs of scripts stay readable."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps: dict[tuple[str, str], str] = {}

    def show(self, record: RunRecord) -> None:
        vm = _identity(record)
        if record.outcome is Outcome.RUNNING and self._steps.get(vm) != record.step:
            self._steps[vm] = record.step
            self._console.print(Words(f"{record.vm_name}: {record.step}"))
