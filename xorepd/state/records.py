"""The record of a run, for the history and for the live status.

The same record serves both. During a run its `outcome` is `running` and its numbers change. At the
end the last record goes into the history and never changes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xorepd.errors import without_references

MEMORY = "memory"
"""Device and mode of the record that stands for the memory image of a VM."""


class Outcome(StrEnum):
    """The outcome of a run of one VM."""

    RUNNING = "running"
    FULL = "full"
    """A new restore point; at least one disk was sent whole."""
    DELTA = "delta"
    """A new restore point; every disk was sent as what changed since its base."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    LEASE_HELD = "lease-held"
    """Another daemon holds the lease on this VM and SR: nothing was started."""
    FROZEN = "frozen"
    """Source and replica disagree about which of them is active: nothing was started."""
    NO_VMS = "no-vms"
    """The patterns and tags of the job match no VM."""
    INTERRUPTED = "interrupted"
    """The daemon died during the run, and noticed at its next start."""


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """One disk in one run. Sizes in bytes."""

    device: str
    """`userdevice` of the disk's VBD, such as `0`."""
    name: str
    virtual_size: int
    mode: str = ""
    """`full`, `delta`, `resync`, `excluded` (not replicated), or `memory` (the memory image of the
    VM, not a disk); empty until planned."""
    reason: str = ""
    """Why the disk is sent whole (a `replication.deciding.modes.FullReason`), or a sentence that
    says why it is excluded."""
    planned_bytes: int = 0
    """Bytes that the source will give; known when the transfer begins."""
    read_bytes: int = 0
    """Bytes of it that were read and passed to the target."""
    reader: str = ""
    """How it was read (a `replication.deciding.reader_choice.ReaderKind`)."""
    reader_reason: str = ""
    """Why no better reader was used; empty if this is the best."""
    writer: str = ""
    """`chunked` or `vhd`."""
    changed_bytes: int | None = None
    """Bytes changed since the base, in blocks of 64 KiB; None if the source does not track
    changes."""
    sent_bytes: int = 0
    """Bytes sent to the target: without what it already has according to a fingerprint map, without
    zeroes on a new disk, and after compression if the transport compresses."""
    shared_bytes: int = 0
    """Part of `read_bytes` that came from a read shared with other targets. Known at the end."""
    unchanged_bytes: int = 0
    """Part of `read_bytes` that was not sent because the fingerprint map says that the newest
    restore point has it. Known at the end."""
    compared_bytes: int | None = None
    """Bytes of the source that were compared with the target; None if nothing was compared."""
    to_compare_bytes: int = 0
    """Bytes of the source that this run will compare; known when reading begins."""
    resumed_from: int = 0
    """Offset at which this run continued the transfer of an earlier one."""
    reconnects: int = 0
    """How often this run continued the transfer after an interruption."""
    waiting_for: str = ""
    """While running: what it waits for, such as `memory`."""

    def __post_init__(self) -> None:
        _clear_sentences(self, "reason", "reader_reason")

    @property
    def is_being_compared(self) -> bool:
        return self.compared_bytes is not None and self.compared_bytes < self.to_compare_bytes

    @property
    def amplification(self) -> float | None:
        """Bytes sent for each changed byte, if both are known."""
        return self.sent_bytes / self.changed_bytes if self.changed_bytes else None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One VM in one run of a job, to one SR of one pool."""

    run_id: str
    job: str
    vm_uuid: str
    vm_name: str
    source: str
    """Configured name of the source pool."""
    target: str
    """Configured name of the target pool."""
    sr: str
    """Name of the target SR; until the SR is found, as configured."""
    outcome: Outcome
    step: str
    """Current or last step: `preflight`, `snapshot`, `transfer`, …"""
    started_at: datetime
    finished_at: datetime | None = None
    disks: tuple[DiskRecord, ...] = ()
    restore_point: str | None = None
    """UUID of the restore point that this run committed."""
    point_in_time: datetime | None = None
    """When the source snapshot was taken, by the daemon's clock (the pool's may be wrong)."""
    error: str | None = None
    remedy: str | None = None
    rate_bytes_per_s: float = 0.0
    """Read rate: during the run, of the last seconds and including comparisons; afterwards, of the
    whole run without them."""
    sent_rate_bytes_per_s: float = 0.0
    """Send rate, likewise."""
    resumable: bool = False
    """The run failed, and the next one can continue its transfers."""
    sr_uuid: str = ""
    """Empty until the SR is found."""
    base_data: str = ""
    """Data of the next delta's base: `kept` or `destroyed`; empty if the run did not get that
    far."""
    base_data_reason: str = ""
    """A sentence that says why it was kept."""
    remarks: tuple[str, ...] = ()
    """What an operator should know although nothing has failed, one sentence each."""

    def __post_init__(self) -> None:
        _clear_sentences(self, "error", "base_data_reason")
        remarks = tuple(without_references(remark) for remark in self.remarks)
        object.__setattr__(self, "remarks", remarks)

    def is_to(self, pool: str, sr: str) -> bool:
        """Return whether the run was to this target; the SR is a name or UUID."""
        return self.target == pool and sr in {self.sr, self.sr_uuid}

    @property
    def planned_bytes(self) -> int:
        return sum(disk.planned_bytes for disk in self.disks)

    @property
    def read_bytes(self) -> int:
        return sum(disk.read_bytes for disk in self.disks)

    @property
    def sent_bytes(self) -> int:
        return sum(disk.sent_bytes for disk in self.disks)

    @property
    def compared_bytes(self) -> int:
        return sum(disk.compared_bytes or 0 for disk in self.disks)

    @property
    def virtual_size(self) -> int:
        return sum(disk.virtual_size for disk in self.disks)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: times as ISO 8601 in UTC, and the sums over the disks."""
        plain = asdict(self)
        for key, value in plain.items():
            if isinstance(value, datetime):
                plain[key] = value.isoformat()
        plain["disks"] = [asdict(disk) for disk in self.disks]
        for name in ("planned_bytes", "read_bytes", "sent_bytes", "virtual_size"):
            plain[name] = getattr(self, name)
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> RunRecord:
        """Parse what `to_json` wrote. Members of newer versions are ignored.

        Raises:
            ValueError: it is not the record of a run.
        """
        try:
            return _RECORDS.validate_python(plain)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"not the record of a run ({place}: {first['msg']})") from None


def _clear_sentences(record: object, *names: str) -> None:
    """Remove XAPI references from the sentences of a record."""
    for name in names:
        said = getattr(record, name)
        if said:
            object.__setattr__(record, name, without_references(said))


_RECORDS = TypeAdapter(RunRecord)
