"""The protocol between the daemon and its clients: the shape of every reply, versioned.

HTTP with JSON over a Unix socket. `API` grows when an older client would misunderstand a reply.
A new member does not change `API`: clients ignore members that they do not know.

    GET  /version              VersionReply
    GET  /status               StatusReply
    GET  /jobs                 JobsReply
    POST /jobs/{job}/run       202 RunAccepted      409 already running
         ?allow_full=true      send whole disks although the job has full = "ask"
    POST /jobs/{job}/cancel    202 RunAccepted      409 not running
    GET  /runs/{run_id}        RunReply
    GET  /runs/{run_id}/events NDJSON: records as they change; last {"finished": [records]}
    GET  /history?job=&limit=  HistoryReply
    GET  /orphans              OrphansReply
    GET  /forget?stream=       ForgetPlanReply      what forgetting a replica would do
    POST /forget?stream=       NDJSON: each step; last {"done": true} or an error
         &keep_replica=true &even_if_used=true &even_if_unknown=true &leave_source=true
    GET  /links                LinksReply
    POST /links/{link}?rate=   LinkReply            a rate, `unlimited`, or `auto` (as configured)
    POST /reload               ReloadReply          422 what is wrong with the file

    any error                  {"error": "one sentence"}; for a bad file, one line per mistake
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
"""Most records in one reply. A client that needs more reads the database."""


def _record(value: Any) -> RunRecord:
    return value if isinstance(value, RunRecord) else RunRecord.from_json(value)


Record = Annotated[RunRecord, PlainValidator(_record), PlainSerializer(RunRecord.to_json)]
"""A `RunRecord` in Python, its JSON on the wire."""


Sentence = Annotated[str, AfterValidator(without_references)]
"""Text for people, without XAPI references."""


class Reply(BaseModel):
    """Base of all replies. Frozen; ignores the members that a newer daemon adds."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)


class ErrorReply(Reply):
    error: Sentence


class VersionReply(Reply):
    version: str
    api: int = API


class TargetReply(Reply):
    """One target of a job, from the current configuration."""

    pool: str
    sr: str
    """As the configuration names it."""
    keep: str
    """Such as `3`, or `last 3, daily 7`."""
    transport: str


class VmStatus(Reply):
    """One VM of a job on one of its targets, from the history."""

    vm: str
    """The name from the configuration. For a VM that a pattern or tag has matched, its UUID. Before
    anything has matched, the patterns and tags themselves."""
    name: str
    """Name of the VM if it is known, else the same as `vm`."""
    pool: str
    """Target pool."""
    sr: str
    """Target SR, as the configuration names it."""
    last: Record | None = None
    """The last finished run; null before the first."""
    newest_point_at: datetime | None = None
    """Point in time of the newest restore point."""
    age_s: float | None = None
    """Age of that restore point in seconds."""
    is_late: bool = False
    """The replica is so old that the schedule has missed a whole turn."""


class ExcludedVmReply(Reply):
    """A VM that a job's patterns or tags match, but that the job does not replicate."""

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
    """The current run; null if the job is not running."""
    vms: tuple[VmStatus, ...]
    """One entry for each VM and target."""
    excluded_replicas: tuple[ExcludedVmReply, ...] = ()
    """Replicas that the job's patterns or tags match. They are not replicated again."""


class PoolStatus(Reply):
    """One open pool: how fast it answers, and how many VMs are in transfer."""

    name: str
    latency_s: float | None
    """Median duration of the last read-only XAPI calls, in seconds; null before the first."""
    is_slow: bool
    """The pool answers so slowly that the daemon starts fewer VMs at once."""
    max_vms: int | None
    """Most VMs in transfer at once; null: only the daemon's limit holds."""
    active_vms: int
    waiting_vms: int
    """VMs that wait for their turn."""
    clock_ahead_s: int | None = None
    """Seconds by which the pool's clock is ahead; negative: behind; null: not measured yet."""


class MemoryStatus(Reply):
    """Memory for data in transit (`[daemon] memory`)."""

    size_bytes: int
    held_bytes: int
    """Bytes that disks in transfer use."""
    waiting: int
    """Disks and shared reads that wait for memory."""


class HistoryStatus(Reply):
    """Why the daemon cannot write the history, and what is affected."""

    problem: str
    """The reason, one sentence."""
    pending: int
    """Finished runs that wait to be written. They show everywhere all the same."""
    dropped: int
    """Finished runs that were dropped because too many were waiting."""


class StatusReply(Reply):
    version: str
    api: int = API
    pid: int
    started_at: datetime
    stopping: bool
    """The daemon starts no new runs and waits for the current ones."""
    jobs: tuple[JobStatus, ...]
    running: tuple[Record, ...]
    pools: tuple[PoolStatus, ...] = ()
    memory: MemoryStatus | None = None
    history: HistoryStatus | None = None
    """Null while the history can be written."""
    set_aside: tuple[str, ...] = ()
    """One sentence for each damaged file that the daemon has moved aside and replaced."""


class JobReply(Reply):
    """One job, from the current configuration."""

    name: str
    id: str
    enabled: bool
    source: str
    vms: tuple[str, ...]
    """VMs that the job names one by one."""
    found_by: str
    """Patterns and tags that match further VMs."""
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
    """Targets (`pool/SR`) that the run leaves out: an earlier run of the job is still busy
    there."""
    resumable: bool = False
    """For a cancelled run: the next run can continue its transfers (`resume` of the job)."""


class RunReply(Reply):
    run_id: str
    job: str
    running: bool
    records: tuple[Record, ...]


class HistoryReply(Reply):
    records: tuple[Record, ...]


class OrphanReply(Reply):
    """A replica, or the remains of one, that no job maintains any more."""

    pool: str
    sr: str
    replica: str
    """UUID; empty if the replica is gone."""
    name: str
    """Name of the replica, or of the source VM if the replica is gone."""
    vm: str
    """UUID of the source VM."""
    job: str
    """The job that created it."""
    points: int
    newest_point_at: datetime | None
    stream: str = ""
    """`<source pool>/<source VM>/<target SR>`, UUIDs."""
    source: str = ""
    """Name of the source pool; empty if no pool that answers is the source pool."""
    source_vm_exists: bool = False
    """The source pool still has the VM."""
    snapshots: int = 0
    """Snapshots of the source VM that are kept for this target."""
    disks: int = 0
    """Disks on the target, including those of restore points."""
    signs_of_use: tuple[Sentence, ...] = ()
    """Signs that the replica was used."""
    power_state: str = "Halted"
    """Power state of the replica."""
    known: bool = False
    """This daemon's history has a run of it."""
    possible_job: str = ""
    """A job with this target whose source pool does not answer: it may replicate this VM."""


class UnresolvedReply(Reply):
    """An object that may be ours. No run touches it until an operator decides."""

    pool: str
    kind: str
    """`VDI` or `VM`."""
    uuid: str
    name: str
    sr: str
    size: int
    """Bytes that it occupies on its SR."""
    since: datetime | None
    why: Sentence
    remove: str
    """The command that removes it."""
    keep: str
    """The command that makes it an ordinary object."""


class OrphansReply(Reply):
    orphans: tuple[OrphanReply, ...]
    unresolved: tuple[UnresolvedReply, ...] = ()
    not_asked: dict[str, Sentence]
    """Pool → why it did not answer."""


class ForgetPlanReply(Reply):
    """What forgetting a replica would do, and what forbids it."""

    orphan: OrphanReply
    actions: tuple[Sentence, ...]
    objections: tuple[Sentence, ...]
    """Empty if the replica can be forgotten."""


class ForgetReply(Reply):
    """One line of the progress of a forget. The last one has `done` or an error."""

    step: Sentence = ""
    done: bool = False
    error: Sentence | None = None


class LinkReply(Reply):
    """A rate limit that transports share."""

    name: str
    rate_bytes_per_s: float | None
    """The current limit; null if there is none."""
    reason: str
    """What sets the limit: the configuration, a period of the timetable, or a command."""
    active_disks: int
    """Disks in transfer over the link."""
    sent_bytes: int
    """Bytes sent since the daemon's start."""


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
    """Keys of `[daemon]` that have taken effect."""
    needs_restart: tuple[str, ...]
    """Keys of `[daemon]` that take effect at the next start of the daemon."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last line of an event stream: all records of the run, final."""

    records: tuple[RunRecord, ...]

    def to_json(self) -> dict[str, Any]:
        return {"finished": [record.to_json() for record in self.records]}


Event = RunRecord | Finished


def parse_event(plain: dict[str, Any]) -> Event:
    """Parse one line of an event stream.

    Raises:
        KeyError, TypeError, ValueError: the line is not an event.
    """
    if "finished" in plain:
        return Finished(tuple(RunRecord.from_json(record) for record in plain["finished"]))
    return RunRecord.from_json(plain)
