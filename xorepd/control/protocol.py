"""What a daemon and its clients say to each other: the shapes of every reply, versioned.

HTTP with JSON over a Unix socket. `API` grows when a client of before would misunderstand; new
members do not count, clients ignore what they do not know.

    GET  /version              VersionReply
    GET  /status               StatusReply
    GET  /jobs                 JobsReply
    POST /jobs/{job}/run       202 RunAccepted      409 it runs already
         ?allow_full=true      though the job would ask before it sends disks whole
    POST /jobs/{job}/cancel    202 RunAccepted      409 it does not run
    GET  /runs/{run_id}        RunReply
    GET  /runs/{run_id}/events NDJSON: records as they change, at last {"finished": [records]}
    GET  /history?job=&limit=  HistoryReply
    GET  /orphans              OrphansReply
    GET  /forget?stream=       ForgetPlanReply      what giving up a stream would do
    POST /forget?stream=       NDJSON: what is being done; at last {"done": true} or an error
         &keep_replica=true &even_if_used=true &even_if_unknown=true &leave_source=true
    GET  /links                LinksReply
    POST /links/{link}?rate=   LinkReply            a rate, `unlimited`, or `auto`: as configured
    POST /reload               ReloadReply          422 the file is bad, and why

    any error                  {"error": "one sentence"}, of a bad file a line for each mistake
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, PlainValidator

from xorepd.errors import without_references
from xorepd.state.records import RunRecord

API = 1
API_HEADER = "Xorepd-Api"
MAX_HISTORY = 1000
"""Records in one reply; a client that wants more reads the database."""


def _record(value: Any) -> RunRecord:
    return value if isinstance(value, RunRecord) else RunRecord.from_json(value)


Record = Annotated[RunRecord, PlainValidator(_record), PlainSerializer(RunRecord.to_json)]
"""A `RunRecord` here, its JSON on the wire."""


Sentence = Annotated[str, AfterValidator(without_references)]
"""For people: whatever it was made of, it holds no reference of XAPI's."""


class Reply(BaseModel):
    """Any reply; frozen, and lenient about members of newer daemons."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)


class ErrorReply(Reply):
    error: Sentence


class VersionReply(Reply):
    version: str
    api: int = API


class TargetReply(Reply):
    """One target of a job, as the configuration in force has it."""

    pool: str
    sr: str
    """As the configuration names it."""
    keep: str
    """Such as `3`, or `last 3, daily 7`."""
    transport: str


class VmStatus(Reply):
    """One VM of a job on one of its targets, as the history knows it."""

    vm: str
    """As the configuration names it; the UUID of one that was found by a pattern or a tag; or those
    patterns and tags, while nothing was."""
    name: str
    """Of the VM, where it is known."""
    pool: str
    """The target's."""
    sr: str
    """As the configuration names it."""
    last: Record | None = None
    """Its last finished run; absent before the first."""
    newest_point_at: datetime | None = None
    """RestorePoint in time of the newest restore point."""
    age_s: float | None = None
    """Age of that point now, in seconds."""
    is_late: bool = False
    """It is so old that the schedule has missed a whole turn."""


class ExcludedVmReply(Reply):
    """A VM that patterns or tags of a job mean, and that is not replicated."""

    vm: str
    """UUID."""
    name: str
    reason: str


class JobStatus(Reply):
    name: str
    enabled: bool
    source: str
    schedule: str | None
    timezone: str
    next_run_at: datetime | None
    run_id: str | None
    """The run that is under way."""
    vms: tuple[VmStatus, ...]
    """One for each VM and target."""
    excluded_replicas: tuple[ExcludedVmReply, ...] = ()
    """That its last run met and left out: a replica is not replicated again."""


class PoolStatus(Reply):
    """One pool that is open now: how it answers, and how much is done there."""

    name: str
    latency_s: float | None
    """Median of the last calls that only read; absent before there were some."""
    is_slow: bool
    """It answers so slowly that fewer VMs are begun at once."""
    max_vms: int | None
    """VMs that may be worked on at once there; null: as many as the daemon's."""
    active_vms: int
    waiting_vms: int
    """VMs that wait for their turn, there or elsewhere."""
    clock_ahead_s: int | None = None
    """By how much its clock is ahead of the daemon's; negative: behind; null: not measured yet."""


class MemoryStatus(Reply):
    """Memory for data on its way (`[daemon] memory`)."""

    size_bytes: int
    held_bytes: int
    """What disks in transfer have taken of it."""
    waiting: int
    """Disks, and reads that targets share, for which nothing is left."""


class HistoryStatus(Reply):
    """The history cannot be written now."""

    problem: str
    """Why, one sentence."""
    pending: int
    """Finished runs that are kept until it can; they show everywhere all the same."""
    dropped: int
    """Older ones for which there was no room any more."""


class StatusReply(Reply):
    version: str
    api: int = API
    pid: int
    started_at: datetime
    stopping: bool
    """The daemon takes no new work and waits for what runs."""
    jobs: tuple[JobStatus, ...]
    running: tuple[Record, ...]
    pools: tuple[PoolStatus, ...] = ()
    memory: MemoryStatus | None = None
    history: HistoryStatus | None = None
    """Absent while it can be written."""
    set_aside: tuple[str, ...] = ()
    """A sentence for each file of the state directory that was damaged and made anew."""


class JobReply(Reply):
    """One job, as the configuration in force has it."""

    name: str
    id: str
    enabled: bool
    source: str
    vms: tuple[str, ...]
    """Named one by one."""
    found_by: str
    """Patterns and tags that find others."""
    targets: tuple[TargetReply, ...]
    schedule: str | None
    timezone: str
    next_run_at: datetime | None
    verify: str


class JobsReply(Reply):
    jobs: tuple[JobReply, ...]


class RunAccepted(Reply):
    run_id: str
    busy_targets: tuple[str, ...] = ()
    """Targets, as pool/SR, with which an earlier run of the job is still busy."""
    resumable: bool = False
    """Of one that is cancelled: what the next run can go on with stays (`resume` of the job)."""


class RunReply(Reply):
    run_id: str
    job: str
    running: bool
    records: tuple[Record, ...]


class HistoryReply(Reply):
    records: tuple[Record, ...]


class OrphanReply(Reply):
    """A stream that no job keeps up any more: a replica, or what is left of one."""

    pool: str
    sr: str
    replica: str
    """UUID; empty where there is none any more."""
    name: str
    """Of the replica; of the source VM where there is none."""
    vm: str
    """UUID of the source VM."""
    job: str
    """The job that made it."""
    points: int
    newest_point_at: datetime | None
    stream: str = ""
    """`<source pool>/<source VM>/<target SR>`, UUIDs."""
    source: str = ""
    """Name of the source pool; empty where none of those that answer is it."""
    source_vm_exists: bool = False
    """The source VM is still in that pool."""
    snapshots: int = 0
    """Snapshots of the source VM that stand for this target."""
    disks: int = 0
    """On the target, those of restore points included."""
    signs_of_use: tuple[Sentence, ...] = ()
    """What shows that somebody used the replica."""
    power_state: str = "Halted"
    """Of the replica."""
    known: bool = False
    """This daemon remembers a run of it."""
    possible_job: str = ""
    """A job with this target whose source does not answer."""


class UnresolvedReply(Reply):
    """An object that may be ours and that no run touches, and what settles it."""

    pool: str
    kind: str
    """`VDI` or `VM`."""
    uuid: str
    name: str
    sr: str
    size: int
    """Bytes on its SR."""
    since: datetime | None
    why: Sentence
    remove: str
    """The command that removes it."""
    keep: str
    """The command that makes it an object like any other."""


class OrphansReply(Reply):
    orphans: tuple[OrphanReply, ...]
    unresolved: tuple[UnresolvedReply, ...] = ()
    not_asked: dict[str, Sentence]
    """Pool → why it could not be asked."""


class ForgetPlanReply(Reply):
    """What giving up a stream would do, and what forbids it."""

    orphan: OrphanReply
    actions: tuple[Sentence, ...]
    objections: tuple[Sentence, ...]
    """Empty: it can be done."""


class ForgetReply(Reply):
    """One line of what giving up a stream tells; the last is `done`, or has an error."""

    step: Sentence = ""
    done: bool = False
    error: Sentence | None = None


class LinkReply(Reply):
    """Something that transports share and that can be slowed down."""

    name: str
    rate_bytes_per_s: float | None
    """What may pass now; null where nothing limits it."""
    reason: str
    """What sets the rate."""
    active_disks: int
    """Disks that are being carried over it."""
    sent_bytes: int
    """Since the daemon's start."""


class LinksReply(Reply):
    links: tuple[LinkReply, ...]


class Names(Reply):
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class ReloadReply(Reply):
    """What a reload changed."""

    jobs: Names
    pools: Names
    daemon: tuple[str, ...]
    """Keys of `[daemon]` that took effect."""
    needs_restart: tuple[str, ...]
    """Keys of `[daemon]` that take effect when the daemon is next started."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last line of an event stream: every record of the run, final."""

    records: tuple[RunRecord, ...]

    def to_json(self) -> dict[str, Any]:
        return {"finished": [record.to_json() for record in self.records]}


Event = RunRecord | Finished


def parse_event(plain: dict[str, Any]) -> Event:
    """Return what one line of an event stream says.

    Raises:
        KeyError, TypeError, ValueError: it is not such a line.
    """
    if "finished" in plain:
        return Finished(tuple(RunRecord.from_json(record) for record in plain["finished"]))
    return RunRecord.from_json(plain)
