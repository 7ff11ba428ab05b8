"""What we write on objects of a pool, and how it is read again. Pure.

One key of `other_config`, `xorepd:mark`, holds a JSON object. It names the object that it was
written on (`self` and `ref`), because clones, snapshots, copies, migrations and imports carry
`other_config` along. What a mark proves is decided in `ownership`; this module only writes and
reads it.

    role          on                                   written
    source        snapshot of a source VM, its disks   right after VM.snapshot
    disk          disk of the replica, or the staging  right after it was created or cloned
                  disk that will become one
    replica       the protected VM                     when it is created
    point         restore point and its disks          right after the commit
    memory        suspended VM beside a restore        when it is created; its disks, when it is
                  point, its disks and memory          whole

An object that was created a moment ago cannot carry its own UUID yet: its mark is *unsigned*
(`self` is empty) until it is written again, and proves nothing by itself.

A source snapshot serves every target of its VM, so its mark names none (`stream.sr` is empty). For
whom it stands is told by keys of their own, one for each target, because `other_config` can be
changed key by key and several runs do so at the same time:

    xorepd:for:<SR UUID>    wanted | held | bare

Order and moment are two things. Restore points are put in order by `order`, a number that only
grows. When the source was snapshotted is `moment`, by the source pool's clock, which may be wrong:
`offset` says by how much, as far as the daemon could measure it.

Beside our own key stand Xen Orchestra's, as it writes them (`xo_point`, `xo_source`): it finds our
restore points, and its dashboards and exclusions know our replicas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_core import from_json, to_json

from xorepd.xapi.records import KEPT

PREFIX = "xorepd:"
KEY = "xorepd:mark"
VERSION = 2
EARLIER = 1
"""A version that is still read: its marks name no reference and no content, and put restore points
in order by their time."""

SNAPSHOTTING = "xorepd:snapshotting"
"""On the disks of a source VM while their snapshot is taken: the run, and the content id that the
disk has. Snapshots inherit it. If XAPI dies over it, it leaves disks in no VM, and this tells where
they may come from. It proves nothing: a snapshot that a user took in that moment inherits it."""

HOLD = "xorepd:hold:"
"""On a restore point, with the UUID of an SR behind it: its content is the base of a stream to that
SR, in whatever direction. Retention leaves the restore point alone."""

CONFIRMED = "xorepd:confirmed"
"""On a staging disk: its UUID, an offset in bytes, and how many runs have continued there.
The pool has confirmed that everything below it is on the disk."""

KEYS_OF_STAGING = (CONFIRMED, KEPT)
"""Keys that a disk loses when it is no staging disk any more."""

FOR = "xorepd:for:"
"""On a source snapshot and its disks, with the UUID of a target SR behind it: `Use`."""

RESTART = "xorepd:restart"
"""On a source VM that went down for its snapshot: see `quiesce.Downed`. The run starts it again."""

REPLICA_TAG = "Continuous Replication"
"""Xen Orchestra's tag of replicas; its smart jobs leave out what carries it."""

DISPLACED = "xorepd:displaced"
"""On a disk of others that people put into a replica, and a commit took out: its UUID, because
copies inherit the key, and the device at which it was. `xorepctl orphans` lists the disk while no
VM has it."""

TRACKED = "xorepd:cbt"
"""On a source disk: xorepd switched changed-block tracking on, for this job."""

BLOCK_TEXT = "Start operation for this vm is blocked, clone it if you want to use it."
BLOCKED_ON_REPLICA = ("start", "start_on", "resume", "resume_on", "unpause")
"""Every way to bring a VM to life; Xen Orchestra blocks the first two."""

BLOCKED_WHILE_READ = ("pool_migrate", "migrate_send")
MIGRATION_TEXT = "VM migration is blocked while xorepd replicates it, run "

FUTURE = timedelta(minutes=15)
"""How far a moment may lie behind the arrival of its restore point before a clock must be wrong."""

_SECTOR = 512
_LONGEST_DEVICE = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIER_MEMBERS = {
    *("role", "stream", "run", "self", "job", "snapshot", "disk", "device", "deltas"),
    *("confirmed", "commit", "onto", "base", "reason"),
}
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_STRICT = ConfigDict(strict=True, extra="ignore")


class Role(StrEnum):
    SOURCE = "source"
    REPLICA = "replica"
    DISK = "disk"
    POINT = "point"
    MEMORY = "memory"


class Use(StrEnum):
    """What one target needs a source snapshot for."""

    WANTED = "wanted"
    """Its content is on the way there."""
    HELD = "held"
    """A restore point there has its content: it is a base."""
    BARE = "bare"
    """The same, and for this target it need not have its data any more: see `shedding`."""


@dataclass(frozen=True, slots=True)
class ReplicaKey:
    """What is kept together: one source VM replicated to one SR, whatever job does it."""

    __pydantic_config__ = _STRICT

    pool: str
    """UUID of the source pool: UUIDs of VMs survive moves between pools."""
    vm: str
    """UUID of the source VM."""
    sr: str
    """UUID of the target SR; empty on source snapshots, which serve all targets of the VM."""

    @property
    def of_source(self) -> ReplicaKey:
        """What the streams of one source VM have in common."""
        return replace(self, sr="")

    def __str__(self) -> str:
        return f"{self.pool}/{self.vm}/{self.sr}"


@dataclass(frozen=True, slots=True)
class Commit:
    """A swap of the replica's disks under way: what recovery needs to undo or finish it."""

    __pydantic_config__ = _STRICT

    run: str
    old: Mapping[str, str]
    """Device → UUID of the disk that is replaced; a device may be in one of the two only."""
    new: Mapping[str, str]
    """Device → UUID of the staging disk that takes its place."""
    point: str = ""
    """Name under which the restore point is taken: nothing but our own call gives it."""
    title: str = ""
    """Name that the restore point has afterwards; empty in the earlier form."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What `xorepd:mark` says. Empty where it does not apply to the role."""

    __pydantic_config__ = _STRICT

    role: Role
    stream: ReplicaKey
    run: str
    self: str = ""
    """UUID of the object that it was written on."""
    ref: str = ""
    """Its reference: an import that keeps the UUID gives another one. Empty in the earlier form."""
    attempt: str = ""
    """Which attempt of the run: one for each VM and target."""
    lineage: str = ""
    """`<pool>/<VM>`, UUIDs, where all of this began; empty where that is the stream's source."""
    epoch: _Count = 0
    """How often source and replica have changed their roles."""
    job: str = ""
    """Name of the job, for people: nothing is decided by it."""
    snapshot: str = ""
    """On VMs: UUID of the source snapshot. On disks: UUID of the source snapshot's disk whose
    content this is; equal on both sides it proves a common base."""
    disk: str = ""
    """On disks: UUID of the source disk."""
    device: str = ""
    """On disks: `userdevice` of the source disk."""
    order: _Count = 0
    """Which snapshot of the stream it is: later ones have higher numbers."""
    moment: str = ""
    """When the source was snapshotted, by its pool's clock: ISO 8601."""
    offset: Annotated[int, Field(gt=-(2**53), lt=2**53)] = 0
    """Seconds by which that clock was ahead of the daemon's, as far as that was known."""
    arrived: str = ""
    """On restore points: when it was taken, by the target pool's clock."""
    content: str = ""
    """On disks: XAPI's content id at the time when this was written (see `Vdi.content_id`); empty
    in the earlier form."""
    disks: Mapping[str, str] = field(default_factory=dict)
    """On VMs: device → UUID of the disk that we gave it, or that our snapshot has. Empty on source
    snapshots of an earlier form."""
    deltas: _Count = 0
    """On disks of the target: how many deltas it has had since it was sent whole."""
    confirmed: bool = False
    """On source snapshots of an earlier form, whose stream names a target: it holds the content."""
    commit: Commit | None = field(default=None)
    """On the replica, during a commit."""
    onto: str = ""
    """On staging disks: UUID of the restore point's disk that it was cloned from; empty where it
    began as a new disk."""
    base: str = ""
    """On staging disks: UUID of the source snapshot's disk whose content that was; empty where
    that is unknown, and both sides are compared."""
    reason: str = ""
    """On staging disks: why it is not sent against a base."""

    def on(self, uuid: str, ref: str) -> Mark:
        """Return this mark as it is written on the object with that UUID and reference."""
        return replace(self, self=uuid, ref=ref)

    def encode(self) -> str:
        plain = {key: value for key, value in asdict(self).items() if value}
        return json.dumps({"v": VERSION, **plain}, separators=(",", ":"))

    @property
    def taken_at(self) -> datetime | None:
        """When the source was snapshotted, by the daemon's clock as far as it was known.

        None where that cannot be read.
        """
        moment = read_time(self.moment)
        try:
            return moment and moment - timedelta(seconds=self.offset)
        except OverflowError:
            return None


def is_from_the_future(mark: Mark, arrived: datetime) -> bool:
    """Return whether a restore point says that its source was snapshotted after it arrived.

    Args:
        arrived: when it was taken, by the target pool's clock; what the mark says goes before it.
    """
    taken_at = mark.taken_at
    # Differences of times cannot overflow; sums can, and the mark may be forged.
    return taken_at is not None and taken_at - (read_time(mark.arrived) or arrived) > FUTURE


_MARK = TypeAdapter(Mark)


def decode(other_config: Mapping[str, str]) -> Mark | None:
    """Return the mark on an object, valid or not; None where there is none that we understand.

    Any program may write into `other_config`: a member of a wrong type makes it no mark at all.
    """
    text = other_config.get(KEY, "")
    if not text.startswith("{"):
        return None
    try:
        plain = from_json(text)
        match plain.get("v"):
            case 2:
                return _MARK.validate_json(text)
            case 1:
                return _MARK.validate_json(to_json(_of_earlier(plain)))
            case _:
                return None
    except ValueError:
        return None


def _of_earlier(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a mark of the earlier version as the present one has them."""
    time = plain.get("time", "")
    moment = read_time(time) if isinstance(time, str) else None
    order = 0 if moment is None else int((moment - _EPOCH) / timedelta(microseconds=1))
    earlier = {key: plain[key] for key in plain.keys() & _EARLIER_MEMBERS}
    return earlier | {"moment": time, "order": max(0, order)}


def uses_of(other_config: Mapping[str, str], mark: Mark) -> dict[str, Use]:
    """Return for which targets a source snapshot stands, by UUID of their SR.

    Args:
        mark: what is written on it. One of the earlier form names its only target itself.
    """
    uses = {}
    if mark.stream.sr:
        uses[mark.stream.sr] = Use.HELD if mark.confirmed else Use.WANTED
    for key, value in other_config.items():
        if key.startswith(FOR) and len(key) > len(FOR):
            # Whatever else may stand there keeps the snapshot, as the careful reading.
            is_known = value in (Use.WANTED, Use.BARE)
            uses[key.removeprefix(FOR)] = Use(value) if is_known else Use.HELD
    return uses


def snapshotting_text(run: str, content: str | None) -> str:
    """Return what `SNAPSHOTTING` says.

    Args:
        content: content id of the disk; empty where it has none, None where it may get another one
            before its snapshot is taken.
    """
    return run if content is None else f"{run} {content}"


def snapshotting_on(other_config: Mapping[str, str]) -> tuple[str, str | None]:
    """Return run and content id in the words of `snapshotting_text`; no run where there is none."""
    run, space, content = other_config.get(SNAPSHOTTING, "").partition(" ")
    return run, content if space else None


def holds_on(other_config: Mapping[str, str]) -> set[str]:
    """Return for which streams a restore point is a base, by UUID of their SR."""
    return {key.removeprefix(HOLD) for key in other_config if key.startswith(HOLD)}


def confirmed_text(uuid: str, offset: int, tries: int) -> str:
    """Return what `CONFIRMED` says on a staging disk of that UUID: copies of it say nothing."""
    return f"{uuid} {offset} {tries}"


def confirmed_on(other_config: Mapping[str, str], uuid: str) -> tuple[int, int]:
    """Return the offset below which a staging disk is confirmed, and how many runs continued there.

    Zeroes where nothing valid says so.
    """
    own, *numbers = other_config.get(CONFIRMED, "").split(" ")
    if own != uuid or len(numbers) != 2 or not all(map(_is_number, numbers)):
        return 0, 0
    offset, tries = map(int, numbers)
    return (0, 0) if offset % _SECTOR else (offset, tries)


def displaced_text(uuid: str, device: str) -> str:
    """Return what `DISPLACED` says on a disk of that UUID."""
    return f"{uuid} {device}"


def displaced_from(other_config: Mapping[str, str], uuid: str) -> str:
    """Return the device from which a commit displaced a disk; empty where none did."""
    own, _, device = other_config.get(DISPLACED, "").partition(" ")
    return device[:_LONGEST_DEVICE] if own == uuid else ""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def next_order(known: Iterable[int]) -> int:
    """Return the order of a new snapshot of a stream: after all its known ones."""
    return max(known, default=0) + 1


def read_time(text: str) -> datetime | None:
    """Return the time in a mark, aware; None where there is none that we understand."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def xo_time(moment: datetime) -> str:
    """Return a time as Xen Orchestra writes it: `20260821T10:15:30Z`."""
    return moment.strftime("%Y%m%dT%H:%M:%SZ")


def xo_source(
    job: str, vm: str, moment: datetime, *, content: str = "", exported: bool = False
) -> dict[str, str]:
    """Return Xen Orchestra's keys for a source snapshot, or (with `content`) one of its disks."""
    keys = {
        "xo:backup:job": job,
        "xo:backup:schedule": job,
        "xo:backup:vm": vm,
        "xo:backup:datetime": xo_time(moment),
        "xo:backup:includeNonNbdQcow2Fix": "true",
    }
    if content:
        keys["xo:backup:contentKey"] = content
    if exported:
        keys["xo:backup:exported"] = "true"
    return keys


def xo_point(
    job: str, vm: str, moment: datetime, sr: str, copy_of: str, *, content: str = ""
) -> dict[str, str]:
    """Return Xen Orchestra's keys for a restore point, or (with `content`) one of its disks.

    Args:
        copy_of: UUID of the source snapshot, or of its disk.
        content: UUID of the source snapshot's disk.
    """
    keys = xo_source(job, vm, moment, content=content)
    return keys | {"xo:backup:sr": sr, "xo:copy_of": copy_of}


XO_KEYS_OF_POINTS = (
    "xo:backup:job",
    "xo:backup:schedule",
    "xo:backup:vm",
    "xo:backup:datetime",
    "xo:backup:includeNonNbdQcow2Fix",
    "xo:backup:contentKey",
    "xo:backup:exported",
    "xo:backup:deltaChainLength",
    "xo:copy_of",
)
"""What belongs to a restore point and is taken off the live replica once it has been taken;
`xo:backup:sr` stays there, as in Xen Orchestra."""
