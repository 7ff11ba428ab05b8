"""The progress of current runs: one `Progress` per VM and target, all of them on the board.

Steps write here; the status command reads. No decision depends on it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from xorepd.errors import XorepdError, shortened
from xorepd.ids import RunId
from xorepd.replication.format.inventory import Excluded
from xorepd.state.records import DiskRecord, Outcome, RunRecord

WAITING = "waiting"
"""The step of a VM whose run waits for a place; it is no step of `replicate`."""

log = structlog.get_logger(__name__)

_RATE_WINDOW_S = 5.0
SAMPLE_S = 0.25


class Sending(Protocol):
    """A stream that is being sent."""

    @property
    def sent(self) -> int:
        """Bytes of data sent so far."""
        ...


@dataclass(slots=True)
class DiskProgress:
    """One disk of a run as it moves."""

    device: str
    name: str
    virtual_size: int
    mode: str = ""
    reason: str = ""
    reader: str = ""
    reader_reason: str = ""
    writer: str = ""
    changed_bytes: int | None = None
    planned_bytes: int = 0
    read_bytes: int = 0
    sent_bytes: int = 0
    """By streams that have ended, and what the transport itself tells."""
    sending: Sending | None = None
    """The stream under way."""
    shared_bytes: int = 0
    unchanged_bytes: int = 0
    confirmed_to: int = 0
    """Everything below this offset is on the target's storage."""
    compared_bytes: int | None = None
    to_compare_bytes: int = 0
    resumed_from: int = 0
    reconnects: int = 0
    waiting_for: str = ""

    @property
    def sent(self) -> int:
        """Bytes sent so far."""
        return self.sent_bytes + (self.sending.sent if self.sending else 0)

    def record(self) -> DiskRecord:
        return DiskRecord(
            device=self.device,
            name=self.name,
            virtual_size=self.virtual_size,
            mode=self.mode,
            reason=self.reason,
            reader=self.reader,
            reader_reason=self.reader_reason,
            writer=self.writer,
            changed_bytes=self.changed_bytes,
            planned_bytes=self.planned_bytes,
            read_bytes=self.read_bytes,
            sent_bytes=self.sent,
            shared_bytes=self.shared_bytes,
            unchanged_bytes=self.unchanged_bytes,
            compared_bytes=self.compared_bytes,
            to_compare_bytes=self.to_compare_bytes,
            resumed_from=self.resumed_from,
            reconnects=self.reconnects,
            waiting_for=self.waiting_for,
        )


class Progress:
    """One VM in one run."""

    def __init__(
        self,
        board: Board,
        *,
        run_id: RunId,
        job: str,
        vm_uuid: str,
        vm_name: str,
        source: str,
        target: str,
        sr: str,
        now: datetime,
    ) -> None:
        self._board = board
        self._run_id, self._job, self._source, self._target = run_id, job, source, target
        self.vm_uuid, self.vm_name, self.sr = vm_uuid, vm_name, sr
        self.sr_uuid = ""
        self.resumable = False
        self.started_at = now
        self._started = time.monotonic()
        self.step = WAITING
        self.disks: dict[str, DiskProgress] = {}
        self.restore_point: str | None = None
        self.point_in_time: datetime | None = None
        self.base_data = self.base_data_reason = ""
        self.remarks: list[str] = []
        """What an operator should know although nothing has failed."""
        self._samples: deque[tuple[float, int, int]] = deque()
        """Moments, what had been read by then, and what had been sent."""

    def begin(self, now: datetime) -> None:
        """Record that the VM no longer waits for a place."""
        self.started_at, self._started = now, time.monotonic()
        self.enter("connect")

    def enter(self, step: str) -> None:
        """Record that a step begins."""
        self.step = step
        self._board.touch()

    def warn(self, sentence: str) -> None:
        """Add a remark for the operator, once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)
            log.warning("run.remark", reason=sentence)

    def exclude(self, disk: Excluded) -> None:
        """Record that a disk is not replicated."""
        self.disks[disk.vbd.userdevice] = DiskProgress(
            device=disk.vbd.userdevice,
            name=disk.vdi.name_label,
            virtual_size=disk.vdi.virtual_size,
            mode="excluded",
            reason=disk.reason,
        )

    def waits(self, device: str, what: str) -> None:
        """Record what a disk waits for; empty when it continues."""
        self.disks[device].waiting_for = what
        self._board.touch()

    def moved(self, device: str, size: int) -> None:
        """Count bytes of a disk that the target has accepted."""
        self.disks[device].read_bytes += size
        self._sample()

    def compares(self, device: str, size: int) -> None:
        """Add bytes of a disk that the run will compare."""
        disk = self.disks[device]
        disk.compared_bytes = disk.compared_bytes or 0
        disk.to_compare_bytes = disk.compared_bytes + size
        self._board.touch()

    def compared(self, device: str, size: int) -> None:
        """Count bytes of a disk that the run has compared."""
        disk = self.disks[device]
        disk.compared_bytes = (disk.compared_bytes or 0) + size
        self._sample()

    def _sample(self) -> None:
        """Take a sample for the rate, if it is time, and wake the watchers."""
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_S:
            read = sum(d.read_bytes + (d.compared_bytes or 0) for d in self.disks.values())
            self._samples.append((now, read, self._sent()))
            while now - self._samples[0][0] > _RATE_WINDOW_S:
                self._samples.popleft()
            self._board.touch()

    def running(self) -> RunRecord:
        """Return the record of the run as it is now, with bytes read and sent per second."""
        rates = 0.0, 0.0
        if len(self._samples) >= 2:
            (t0, read0, sent0), (t1, read1, sent1) = self._samples[0], self._samples[-1]
            took = max(t1 - t0, 1e-3)
            rates = (read1 - read0) / took, (sent1 - sent0) / took
        return self._record(Outcome.RUNNING, None, None, *rates)

    def finished(self, outcome: Outcome, error: BaseException | None, now: datetime) -> RunRecord:
        """Return the record of the finished run."""
        read = sum(disk.read_bytes for disk in self.disks.values())
        took = max(time.monotonic() - self._started, 1e-3)
        return self._record(outcome, now, error, read / took, self._sent() / took)

    def _sent(self) -> int:
        return sum(disk.sent for disk in self.disks.values())

    def _record(
        self,
        outcome: Outcome,
        ended: datetime | None,
        error: BaseException | None,
        read_rate: float,
        sent_rate: float,
    ) -> RunRecord:
        devices = sorted(self.disks, key=lambda device: (len(device), device))
        return RunRecord(
            run_id=self._run_id,
            job=self._job,
            source=self._source,
            target=self._target,
            vm_uuid=self.vm_uuid,
            vm_name=self.vm_name,
            sr=self.sr,
            sr_uuid=self.sr_uuid,
            resumable=self.resumable,
            outcome=outcome,
            step=self.step,
            started_at=self.started_at,
            finished_at=ended,
            disks=tuple(self.disks[device].record() for device in devices),
            restore_point=self.restore_point,
            point_in_time=self.point_in_time,
            error=None if error is None else shortened(str(error)) or type(error).__name__,
            remedy=error.remedy.value if isinstance(error, XorepdError) else None,
            rate_bytes_per_s=read_rate,
            sent_rate_bytes_per_s=sent_rate,
            base_data=self.base_data,
            base_data_reason=self.base_data_reason,
            remarks=tuple(self.remarks),
        )


@dataclass(slots=True)
class Board:
    """Every VM under way in a run."""

    _running: list[Progress] = field(default_factory=list)
    _version: int = 0
    _touched: asyncio.Event = field(default_factory=asyncio.Event)

    def records(self) -> list[RunRecord]:
        """Return the records of all current runs."""
        return [progress.running() for progress in self._running if progress.step != WAITING]

    def waiting(self) -> list[RunRecord]:
        """Return the records of VMs that wait for a place."""
        return [progress.running() for progress in self._running if progress.step == WAITING]

    async def changed(self, since: int) -> int:
        """Wait until something changed after version `since`; return the new version."""
        while self._version <= since:
            await self._touched.wait()
        return self._version

    def touch(self) -> None:
        self._version += 1
        self._touched.set()  # wakes everyone who waits now
        self._touched = asyncio.Event()

    @contextmanager
    def show(self, progress: Progress) -> Iterator[None]:
        """Keep one VM on the board while it is in a run."""
        self._running.append(progress)
        self.touch()
        try:
            yield
        finally:
            self._running.remove(progress)
            self.touch()


Clock = Callable[[], datetime]
