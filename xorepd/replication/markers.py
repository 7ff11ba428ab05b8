"""Ownership: what we write on objects of a pool, and when it counts. Pure.

One key of `other_config`, `xorepd:mark`, holds a JSON object. It names the object that it was
written on (`self`), because clones and snapshots copy `other_config`: a mark counts on its own
object and, read as "snapshot of", on that object's snapshots. Anywhere else it is void.

    role          on                                   written
    source        snapshot of a source VM, its disks   right after VM.snapshot
    disk          disk of the replica, or the staging  right after it was created or cloned
                  disk that is to become one
    replica       the protected VM                     when it is created
    point         restore point and its disks          right after the commit
    memory        suspended VM beside a restore        when it is created; its disks, when it is
                  point, its disks and memory          whole

An object that was created a moment ago cannot carry its own UUID yet: its mark is *unsigned*
(`self` is empty) until it is written again, and counts only where a copy cannot be meant.

A source snapshot serves every target of its VM, so its mark names none (`stream.sr` is empty). For
whom it stands is told by keys of their own, one for each target, because `other_config` can be
changed key by key and several runs do so at the same time:

    xorepd:for:<SR UUID>    wanted | held | bare

Beside our own key stand Xen Orchestra's, as it writes them (`xo_point`, `xo_source`): it finds our
restore points, and its dashboards and exclusions know our replicas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

KEY = "xorepd:mark"
VERSION = 1

CLONING = "xorepd:cloning"
"""On the disk of a restore point, or of a copy that others made, while a staging disk is cloned
from it: the stream. The clone inherits it, and so is known for ours even if we die before it gets
its own mark."""

SNAPSHOTTING = "xorepd:snapshotting"
"""On a source VM and its disks while their snapshot is taken: run id. The snapshot inherits it,
likewise; and if XAPI dies over it, the disks that it leaves behind."""

CONFIRMED = "xorepd:confirmed"
"""On a staging disk: its UUID, an offset in bytes, and how many runs have gone on from there.
Everything that was to be sent below it is on the disk, as its pool has confirmed."""

FOR = "xorepd:for:"
"""On a source snapshot and its disks, with the UUID of a target SR behind it: `Use`."""

REPLICA_TAG = "Continuous Replication"
"""Xen Orchestra's tag of replicas; its smart jobs leave out what carries it."""

BLOCK_TEXT = "Start operation for this vm is blocked, clone it if you want to use it."
BLOCKED_ON_REPLICA = ("start", "start_on", "resume", "resume_on", "unpause")
"""Every way to bring a VM to life; Xen Orchestra blocks the first two."""

BLOCKED_WHILE_READ = ("pool_migrate", "migrate_send")
MIGRATION_TEXT = "VM migration is blocked while xorepd replicates it, run "

_SECTOR = 512
_STEP = timedelta(microseconds=1)
"""Between two snapshots of one stream, at least, by their marks."""


class Role(StrEnum):
    SOURCE = "source"
    REPLICA = "replica"
    DISK = "disk"
    POINT = "point"
    MEMORY = "memory"


class Use(StrEnum):
    """What a source snapshot is to one target."""

    WANTED = "wanted"
    """Its content is on the way there."""
    HELD = "held"
    """A restore point there has its content: it is a base."""
    BARE = "bare"
    """The same, and for this target it need not have its data any more: see `shedding`."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What is kept together: one source VM replicated to one SR, whatever job does it."""

    pool: str
    """UUID of the source pool: UUIDs of VMs survive moves between pools."""
    vm: str
    """UUID of the source VM."""
    sr: str
    """UUID of the target SR; empty on source snapshots, which serve all targets of the VM."""

    @property
    def of_source(self) -> Stream:
        """What the streams of one source VM have in common."""
        return replace(self, sr="")

    def __str__(self) -> str:
        return f"{self.pool}/{self.vm}/{self.sr}"


@dataclass(frozen=True, slots=True)
class Commit:
    """A swap of the replica's disks under way: what recovery needs to undo or finish it."""

    run: str
    old: Mapping[str, str]
    """Device → UUID of the disk that is replaced; a device may be in one of the two only."""
    new: Mapping[str, str]
    """Device → UUID of the staging disk that takes its place."""
    point: str = ""
    """Name that the restore point is going to have."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What `xorepd:mark` says. Empty where it does not apply to the role."""

    role: Role
    stream: Stream
    run: str
    self: str = ""
    job: str = ""
    """Name of the job, for people: nothing is decided by it."""
    snapshot: str = ""
    """On VMs: UUID of the source snapshot. On disks: UUID of the source snapshot's disk whose
    content this is; equal on both sides it proves a common base."""
    disk: str = ""
    """On disks: UUID of the source disk."""
    device: str = ""
    """On disks: `userdevice` of the source disk."""
    time: str = ""
    """When the source was snapshotted, by its pool's clock: ISO 8601 (see `next_time`)."""
    deltas: int = 0
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
    nobody knows, and both sides are compared."""
    reason: str = ""
    """On staging disks: why it is not sent against a base."""

    def on(self, uuid: str) -> Mark:
        """Return this mark as it is written on the object with that UUID."""
        return replace(self, self=uuid)

    def encode(self) -> str:
        plain = {key: value for key, value in asdict(self).items() if value}
        return json.dumps({"v": VERSION, **plain}, separators=(",", ":"))


def decode(other_config: Mapping[str, str]) -> Mark | None:
    """Return the mark on an object, valid or not; None where there is none that we understand."""
    try:
        plain = json.loads(other_config.get(KEY, "null"))
        if not isinstance(plain, dict) or plain.pop("v", None) != VERSION:
            return None
        known = {f.name for f in fields(Mark)}
        values = {key: value for key, value in plain.items() if key in known}
        values["role"] = Role(values["role"])
        values["stream"] = Stream(**values["stream"])
        if values.get("commit"):
            values["commit"] = Commit(**values["commit"])
        mark = Mark(**values)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return mark if _is_sound(mark) else None


def _is_sound(mark: Mark) -> bool:
    """Return whether every member has its type: anybody may have written into `other_config`."""
    texts: list[object] = [mark.stream.pool, mark.stream.vm, mark.stream.sr, mark.run, mark.self]
    texts += [mark.job, mark.snapshot, mark.disk, mark.device, mark.time]
    texts += [mark.onto, mark.base, mark.reason]
    commit: Any = mark.commit
    if commit is not None:
        if not isinstance(commit, Commit):
            return False
        texts.append(commit.run)
        for side in (commit.old, commit.new):
            if not isinstance(side, dict):
                return False
            texts += side.values()
    if type(mark.deltas) is not int or not 0 <= mark.deltas < 2**53:
        return False
    return isinstance(mark.confirmed, bool) and all(isinstance(text, str) for text in texts)


def signed(other_config: Mapping[str, str], uuid: str) -> Mark | None:
    """Return the mark on an object if it was written on this very object."""
    mark = decode(other_config)
    return mark if mark is not None and mark.self == uuid else None


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


def confirmed_text(uuid: str, offset: int, tries: int) -> str:
    """Return what `CONFIRMED` says on a staging disk of that UUID: copies of it say nothing."""
    return f"{uuid} {offset} {tries}"


def confirmed_on(other_config: Mapping[str, str], uuid: str) -> tuple[int, int]:
    """Return the offset below which a staging disk is confirmed, and how many runs went on there.

    Zeroes where nothing valid says so.
    """
    own, *numbers = other_config.get(CONFIRMED, "").split(" ")
    if own != uuid or len(numbers) != 2 or not all(map(_is_number, numbers)):
        return 0, 0
    offset, tries = map(int, numbers)
    return (0, 0) if offset % _SECTOR else (offset, tries)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def next_time(moment: datetime, known: Iterable[str]) -> str:
    """Return the time for a new snapshot of a stream: later than all its known ones.

    Restore points are put in order by it. XAPI's dates have whole seconds, and the clock of a pool
    may step back or pass to another master: neither may make the newest point an older one.
    """
    newest = max(filter(None, map(read_time, known)), default=moment - _STEP)
    return max(moment, newest + _STEP).isoformat()


def read_time(text: str) -> datetime | None:
    """Return the time of a mark, aware; None where it cannot be read."""
    """Return the time in a mark; None where there is none that we understand."""
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
