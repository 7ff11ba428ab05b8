"""The configuration as a tree of frozen values: what the operator wrote, typed.

Every field says its unit, its effect and, where that is not obvious, why its default is what it is.
`config/xorepd.toml` shows the same fields to operators; a test keeps the two equal.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, SecretStr, model_validator

from xorepd.config.choices import BaseData, Fulls, SnapshotKind
from xorepd.config.fields import (
    NOTHING,
    Command,
    Cron,
    Duration,
    FilePath,
    Fingerprints,
    Grace,
    Options,
    Size,
    Table,
    Text,
    TextMap,
    Url,
    UuidText,
    Zone,
    freeze,
)
from xorepd.config.keep import Keep
from xorepd.config.scope import Scope
from xorepd.ids import JobName, PoolName
from xorepd.units import GiB, MiB

JOB_NAMESPACE = uuid.UUID("5f1c3d0e-8a52-5b7e-9c55-0d1f2f6f7a11")
"""Namespace of the UUIDs that jobs get from their names. Never change it: restore points carry
these UUIDs, and a job with a new id would not recognise its own."""

MAX_TARGETS = 16
"""Of one job. All of them read the same snapshot at the same time, through one source pool."""

LEAST_MEMORY, MOST_MEMORY = 16 * MiB, 64 * GiB
"""For data on its way. The least is four disks at once, or one on its way to three targets."""

PASSWORD_SOURCES = ("password", "password_file", "password_env", "password_credential")


class Verify(StrEnum):
    """How much of what arrived is read back and compared before a restore point is committed."""

    SAMPLE = "sample"
    FULL = "full"
    OFF = "off"


class ChangedBlocks(StrEnum):
    """Whether deltas follow changed-block tracking, which knows 64 KiB where VHDs know 2 MiB."""

    USE = "use"
    ENABLE = "enable"
    OFF = "off"


class Diverged(StrEnum):
    """What happens to a replica that was started or written to since its last restore point."""

    REFUSE = "refuse"
    REPLACE = "replace"


def _memory(size: int) -> int:
    if not LEAST_MEMORY <= size <= MOST_MEMORY:
        raise ValueError(
            f'must be between "{LEAST_MEMORY // MiB}MiB" and "{MOST_MEMORY // GiB}GiB"'
        )
    return size


class DaemonSettings(Table):
    """The process itself."""

    state_dir: FilePath = Path("/var/lib/xorepd")
    """Directory of the history and the lock. Losing it loses history, never a replica."""
    socket: FilePath = Path("/run/xorepd/control.sock")
    """Unix socket that `xorepctl` talks to."""
    max_vms: Annotated[int, Field(ge=1, le=64)] = 4
    """VMs in transfer at once, over all jobs. What four of them saturate is usually the network of
    a pool master, which all disks pass through."""
    memory: Annotated[Size, AfterValidator(_memory)] = 256 * MiB
    """Bytes that all transfers together may take for data on its way: 16 disks of 4 VMs to three
    targets each begin at once. What is left over makes reading ahead deeper."""
    maps: Size = 4 * GiB
    """Bytes that the fingerprints of what the newest restore points hold may take in `state_dir`:
    about 300 KiB for each GiB that a disk has allocated, and target. With them a delta of 2 MiB
    blocks sends only the 64 KiB that differ. 0 keeps none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
    """`auto`: for people when standard error is a terminal, else one JSON object per line."""
    grace: Grace = 60.0
    """Seconds that running runs may take to end when the daemon is told to stop."""
    lease: Annotated[Duration, Field(ge=5, le=3600)] = 120.0
    """Seconds after which another daemon may begin to take over a VM whose daemon died in a run,
    and within which a run whose target pool does not answer stops. Toolstacks restart within one
    minute; three renewals may fail in a row."""
    history: Duration = 90 * 86400.0
    """Seconds that finished runs are remembered."""


class PoolSettings(Table):
    """One pool: where it is, who we are there, and why we believe that it is the one."""

    name: PoolName
    url: Url
    """`https://host` of any host of the pool: a member names the master, and we follow."""
    username: Text = "root"
    password: SecretStr | None = None
    password_file: FilePath | None = None
    password_env: Text | None = None
    """Name of an environment variable."""
    password_credential: Text | None = None
    """Name of a systemd credential (`LoadCredential=`)."""
    ca_file: FilePath | None = None
    """PEM file; only certificates that it signed, or that it holds, are trusted."""
    fingerprint: Fingerprints = ()
    """SHA-256 of the certificates that are trusted: one for each host of the pool."""
    plaintext: bool = False
    """Allow `http://`, and NBD without TLS: password, sessions and disks travel readable. For
    laboratories."""
    nbd: bool = True
    """Read disks over NBD where a network of the pool has the purpose `nbd`."""
    connections: Annotated[int, Field(ge=1, le=16)] = 4
    """XAPI calls at once. XAPI serialises most of them anyway; more only queue there."""
    max_vms: Annotated[int, Field(ge=1, le=64)] | None = None
    """VMs in transfer at once from or to this pool, over all jobs; absent: the daemon's own limit
    is the only one."""
    max_vms_per_sr: Annotated[int, Field(ge=1, le=64)] | None = None
    """The same for each of its SRs, as the VM's own or as its target."""
    max_vms_per_host: Annotated[int, Field(ge=1, le=64)] | None = None
    """The same for the source VMs that run on one of its hosts."""
    slow_answer: Duration = 1.0
    """Seconds. When half of the calls that only read take longer, fewer VMs are begun at once on
    this pool, down to one, until it is quick again. A healthy pool needs milliseconds, and the
    round trip."""

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        given = [source for source in PASSWORD_SOURCES if getattr(self, source) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(
                f"needs exactly one of {', '.join(PASSWORD_SOURCES)}; there is {found}"
            )
        return self

    @model_validator(mode="after")
    def _trust(self) -> Self:
        if self.ca_file is not None and self.fingerprint:
            raise ValueError("has both ca_file and fingerprint; keep the one that you can maintain")
        if self.url.startswith("http://"):
            if not self.plaintext:
                raise ValueError(
                    "url is http://, which sends the password readable; write https://, "
                    "or set plaintext = true if that is what you want"
                )
            if self.ca_file is not None or self.fingerprint:
                raise ValueError("ca_file and fingerprint mean nothing with an http:// url")
        return self


class TransportSettings(Table):
    """What carries the extents. Options stay raw until the transport's own model reads them."""

    name: Text = "direct"
    options: Options = Field(default_factory=lambda: NOTHING)

    @model_validator(mode="before")
    @classmethod
    def _from_toml(cls, value: Any) -> Any:
        match value:
            case str():
                return {"name": value}
            case {"name": name, **options} if "options" not in value:
                return {"name": name, "options": options}
            case _:
                return value


class TargetSettings(Table):
    """Where replicas go."""

    pool: PoolName
    sr: Text
    """UUID or exact name of a storage repository."""
    keep: Keep | None = None
    """Restore points here; absent: as many as the job says."""
    transport: TransportSettings | None = None
    """What carries the extents to here; absent: the transport of the job."""

    @property
    def place(self) -> str:
        """Return its name within its job."""
        return f"{self.pool}/{self.sr}"


def _distinct_targets(targets: tuple[TargetSettings, ...]) -> tuple[TargetSettings, ...]:
    if not targets:
        raise ValueError("name at least one")
    places = [(target.pool, target.sr) for target in targets]
    for index, (pool, sr) in enumerate(places):
        if (pool, sr) in places[:index]:
            raise ValueError(f"storage repository {sr!r} of pool {pool!r} stands there twice")
    return targets


Targets = Annotated[
    tuple[TargetSettings, ...],
    Field(strict=False, max_length=MAX_TARGETS),
    AfterValidator(_distinct_targets),
]


class HookSettings(Table):
    """Programs on the daemon's machine, run beside every snapshot of a source VM."""

    before: Command = ()
    """Absolute path and arguments. Where it fails there is no snapshot, and the run fails."""
    after: Command = ()
    """Runs in any case, even where `before` or the snapshot failed."""
    timeout: Duration = 60.0
    """Seconds after which either of them is killed."""


def id_of_job(name: str) -> str:
    """Return the id of a job that the file gives none."""
    return str(uuid.uuid5(JOB_NAMESPACE, name))


class JobSettings(Scope):
    """What to replicate, from where, to where, when, and how carefully."""

    name: JobName
    id: UuidText = ""
    """Written to snapshots and restore points for Xen Orchestra; nothing is decided by it here.
    Defaults to a UUID made of the job's name."""
    source: PoolName
    targets: Targets
    """Where replicas go; each target has its own base, restore points and fate. A file may write
    one as `target = {…}`."""
    schedule: Cron | None = None
    """Five cron fields; absent: the job runs only when told to."""
    timezone: Zone = Field(default_factory=lambda: ZoneInfo("UTC"))
    keep: Keep = Keep(last=3)
    """Restore points on each target; days and weeks are those of `timezone`."""
    max_vms: Annotated[int, Field(ge=1, le=64)] = 2
    """VMs of this job in transfer at once."""
    verify: Annotated[Verify, Field(strict=False)] = Verify.SAMPLE
    changed_blocks: Annotated[ChangedBlocks, Field(strict=False)] = ChangedBlocks.USE
    """`use`: where it is on. `enable`: also switch it on for the disks of the job; XAPI refuses to
    move such disks to another SR until it is off again. `off`: never."""
    base_data: Annotated[BaseData, Field(strict=False)] = BaseData.KEEP
    """`keep`: the base of the next delta keeps its data, and the source a chain for it. `destroy`:
    once every target has it, only what changed-block tracking knows of it stays; should tracking
    be lost, both sides are read and compared."""
    snapshot: Annotated[SnapshotKind, Field(strict=False)] = SnapshotKind.PLAIN
    """`plain`: as the VM runs. `offline`: shut down cleanly for it, and started again after it.
    `memory`: with its memory, which is sent whole to each target, so that each restore point has a
    suspended VM beside it; a VM that does not run is taken as with `plain`."""
    hooks: HookSettings = Field(default_factory=lambda: HookSettings())
    """Programs that run before and after each snapshot of a VM."""
    networks: TextMap = Field(default_factory=lambda: NOTHING)
    """Source network → target network, UUIDs or names; `""` leaves the interface out."""
    transport: TransportSettings = Field(default_factory=TransportSettings)
    source_reserve: Size = GiB
    """Free bytes that a run leaves on every source SR: snapshots grow while they are read."""
    target_reserve: Size = GiB
    """Free bytes that a run leaves on the target SR."""
    diverged: Annotated[Diverged, Field(strict=False)] = Diverged.REFUSE
    """`refuse`: a replica that was used stays as it is, and the run fails and says so. `replace`:
    the next restore point replaces its content, and that work is lost."""
    full: Annotated[Fulls, Field(strict=False)] = Fulls.ALLOW
    """Whether disks may be sent whole when there is no base for a delta."""
    full_every: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Deltas after which a disk is sent whole all the same; absent: never for that reason."""
    resync: bool = True
    """Where there is no base but a replica, read and compare both sides and send what differs: few
    bytes leave, but all of both disks are read, the target's over the line between."""
    resume: Grace = 86400.0
    """Seconds for which an interrupted transfer can be continued by a later run, and its snapshot
    stays on the source for that; zero: it is removed at once, and no stream is taken up again."""
    deadline: Duration = 86400.0
    """Seconds after which the run of a VM is cancelled."""
    hold_bases: Duration = 30 * 86400.0
    """Seconds that a source snapshot stands for a target that does not come, while another target
    of its VM does: the chain on the source grows by it. After that the target costs a full copy."""
    enabled: bool = True
    """`false`: no scheduled runs; it can still be run by hand."""

    def keep_on(self, target: TargetSettings) -> Keep:
        """Return which restore points stay on one of the targets."""
        return self.keep if target.keep is None else target.keep

    def transport_to(self, target: TargetSettings) -> TransportSettings:
        """Return what carries the extents to one of the targets."""
        return target.transport or self.transport

    @model_validator(mode="after")
    def _full_may_be_sent_when_due(self) -> Self:
        if self.full_every is not None and self.full is not Fulls.ALLOW:
            raise ValueError(
                f'sends disks whole after full_every deltas, which full = "{self.full.value}" '
                "would hold; remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _bases_without_data_need_tracking(self) -> Self:
        if self.base_data is BaseData.DESTROY and self.changed_blocks is ChangedBlocks.OFF:
            raise ValueError(
                'destroys the data of bases, and changed_blocks = "off" leaves nothing that tells '
                "what changed since; remove one of the two"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _targets_from_target(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "target" not in value:
            return value
        if "targets" in value:
            raise ValueError("has both target and targets; write all of them to targets")
        others = {key: given for key, given in value.items() if key != "target"}
        return {**others, "targets": [value["target"]]}

    @model_validator(mode="before")
    @classmethod
    def _id_from_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and "id" not in value and isinstance(value.get("name"), str):
            return {**value, "id": id_of_job(value["name"])}
        return value


Pools = Annotated[Mapping[PoolName, PoolSettings], AfterValidator(freeze)]
Jobs = Annotated[Mapping[JobName, JobSettings], AfterValidator(freeze)]


class Settings(Table):
    """A whole configuration, checked."""

    daemon: DaemonSettings = Field(default_factory=DaemonSettings)
    pools: Pools = Field(default_factory=lambda: NOTHING)
    jobs: Jobs = Field(default_factory=lambda: NOTHING)
    file: Path
    """Where it was read from, and where a reload reads again."""
