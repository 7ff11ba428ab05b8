"""The durable shape of a run: what the history keeps and what a live status shows.

The same record serves both: while a run is under way its `outcome` is `running` and its numbers
move; when it ends, the last one is written to the history and never changes again.
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
"""In place of a device, and of a mode: what a VM had in its memory."""


class Outcome(StrEnum):
    """How a run of one VM stands."""

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
    """The daemon died; found at its next start."""


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """One disk in one run. Sizes in bytes."""

    device: str
    """`userdevice` of the disk's VBD, such as `0`."""
    name: str
    virtual_size: int
    mode: str = ""
    """`full`, `delta`, `resync`; `excluded`: it stays behind; `memory`: it is no disk, but what the
    VM had in its memory; empty until planned."""
    reason: str = ""
    """Why the disk is sent whole (a `replication.deciding.modes.FullReason`), or a sentence that
    says why it is excluded."""
    planned_bytes: int = 0
    """What the source announced to give: known when its stream begins."""
    read_bytes: int = 0
    """What of it has been read and taken by the target."""
    reader: str = ""
    """How it was read (see `replication.readers.ReaderKind`)."""
    reader_reason: str = ""
    """Why in no better way; empty when there is none."""
    writer: str = ""
    """`chunked` or `vhd`."""
    changed_bytes: int | None = None
    """What changed since the base, in blocks of 64 KiB; None where the source does not track it."""
    sent_bytes: int = 0
    """What of it has been sent to the target. Left out is what that holds already, where a map
    tells, and zeroes on a fresh disk; some transports compress the rest."""
    shared_bytes: int = 0
    """What of `read_bytes` came of a read that other targets shared. Known at the end."""
    unchanged_bytes: int = 0
    """What of `read_bytes` was left out because the target holds it already, as the map of its
    newest restore point tells. Known at the end."""
    compared_bytes: int | None = None
    """What of the source was read to find out what differs; None where nothing was compared."""
    to_compare_bytes: int = 0
    """What of it this run reads for that in all: known when reading begins."""
    resumed_from: int = 0
    """Offset from which this run went on with what an earlier one had begun."""
    reconnects: int = 0
    """How often its stream broke and was taken up again in this run."""
    waiting_for: str = ""
    """While running: what it needs to begin and has not got, such as `memory`."""

    def __post_init__(self) -> None:
        _clear_sentences(self, "reason", "reader_reason")

    @property
    def is_being_compared(self) -> bool:
        return self.compared_bytes is not None and self.compared_bytes < self.to_compare_bytes

    @property
    def amplification(self) -> float | None:
        """Bytes sent for each byte that changed, where both are known."""
        return self.sent_bytes / self.changed_bytes if self.changed_bytes else None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One VM in one run of a job: to one storage repository of one pool."""

    run_id: str
    job: str
    vm_uuid: str
    vm_name: str
    source: str
    """Name of the source pool in the configuration."""
    target: str
    """Name of the target pool in the configuration."""
    sr: str
    """Name of the target SR; as the configuration has it until the SR has been found."""
    outcome: Outcome
    step: str
    """The step the run is in, or ended in: `preflight`, `snapshot`, `transfer`, …"""
    started_at: datetime
    finished_at: datetime | None = None
    disks: tuple[DiskRecord, ...] = ()
    restore_point: str | None = None
    """UUID of the restore point that this run committed."""
    point_in_time: datetime | None = None
    """When the source was snapshotted, by the daemon's clock: that of its pool may be wrong."""
    error: str | None = None
    remedy: str | None = None
    rate_bytes_per_s: float = 0.0
    """How fast it is read. While running: moved or compared over the last seconds; afterwards:
    moved over the whole run."""
    sent_rate_bytes_per_s: float = 0.0
    """The same of what is sent."""
    resumable: bool = False
    """It failed, and what it has sent is kept for the next run."""
    sr_uuid: str = ""
    """Empty until the SR has been found."""
    base_data: str = ""
    """What became of the data of the next delta's base: `kept` or `destroyed`; empty where this run
    came to no base."""
    base_data_reason: str = ""
    """Why it was kept, for people."""
    remarks: tuple[str, ...] = ()
    """What an operator should know though nothing has failed, one sentence each."""

    def __post_init__(self) -> None:
        _clear_sentences(self, "error", "base_data_reason")
        remarks = tuple(without_references(remark) for remark in self.remarks)
        object.__setattr__(self, "remarks", remarks)

    def is_to(self, pool: str, sr: str) -> bool:
        """Return whether it was to a target, whose SR may be given by name or by UUID."""
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
        """Return plain JSON values, times as ISO 8601 in UTC, with the sums over the disks."""
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
        """Return the record that `to_json` wrote; members of newer versions are ignored.

        Raises:
            ValueError: it is no such record.
        """
        try:
            return _RECORDS.validate_python(plain)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"no record of a run ({place}: {first['msg']})") from None


def _clear_sentences(record: object, *names: str) -> None:
    """Take references out of what a record says to people, wherever that came from."""
    for name in names:
        said = getattr(record, name)
        if said:
            object.__setattr__(record, name, without_references(said))


_RECORDS = TypeAdapter(RunRecord)
