"""The configuration as a tree of frozen values: what the operator wrote, typed.

Every field says its unit, its effect and, where that is not obvious, why its default is what it is.
`config/xorepd.toml` shows the same fields to operators; a test keeps the two equal.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from xorepd.config.fields import (
    Cron,
    Duration,
    FilePath,
    Fingerprints,
    Grace,
    Options,
    Size,
    Text,
    TextMap,
    Texts,
    Url,
    UuidText,
    Zone,
    freeze,
)
from xorepd.ids import JobName, PoolName
from xorepd.units import GiB

JOB_NAMESPACE = uuid.UUID("5f1c3d0e-8a52-5b7e-9c55-0d1f2f6f7a11")
"""Namespace of the UUIDs that jobs get from their names. Fixed for ever: restore points carry
them, and a job whose id changes would not recognise its own."""

NOTHING: Mapping[Any, Any] = MappingProxyType({})

PASSWORD_SOURCES = ("password", "password_file", "password_env", "password_credential")


class _Model(BaseModel):
    """Frozen, and strict: TOML has types, so `keep = "3"` is a mistake and not a number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True
    )


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
    """What becomes of a replica that somebody started or wrote to since its last restore point."""

    REFUSE = "refuse"
    REPLACE = "replace"


class DaemonSettings(_Model):
    """The process itself."""

    state_dir: FilePath = Path("/var/lib/xorepd")
    """Directory of the history and the lock. Losing it loses history, never a replica."""
    socket: FilePath = Path("/run/xorepd/control.sock")
    """Unix socket that `xorepctl` talks to."""
    max_vms: Annotated[int, Field(ge=1, le=64)] = 4
    """VMs in transfer at once, over all jobs. Memory per transfer is a few MiB; what four of them
    saturate is usually the network of a pool master, which all disks pass through."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
    """`auto`: for people when standard error is a terminal, else one JSON object per line."""
    grace: Grace = 60.0
    """Seconds that running runs may take to end when the daemon is told to stop."""
    history: Duration = 90 * 86400.0
    """Seconds that finished runs are remembered."""


class PoolSettings(_Model):
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
    """Allow `http://`: password and disks travel readable. For laboratories."""
    nbd: bool = True
    """Read disks over NBD where a network of the pool has the purpose `nbd`."""
    connections: Annotated[int, Field(ge=1, le=16)] = 4
    """XAPI calls at once. XAPI serialises most of them anyway; more only queue there."""

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


class TargetSettings(_Model):
    """Where replicas go."""

    pool: PoolName
    sr: Text
    """UUID or exact name of a storage repository."""


class TransportSettings(_Model):
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


class JobSettings(_Model):
    """What to replicate, from where, to where, when, and how carefully."""

    name: JobName
    id: UuidText = ""
    """Written to snapshots and restore points for Xen Orchestra; nothing is decided by it here.
    Defaults to a UUID made of the job's name."""
    source: PoolName
    vms: Texts
    """UUIDs or exact names of VMs."""
    target: TargetSettings
    schedule: Cron | None = None
    """Five cron fields; absent: the job runs only when told to."""
    timezone: Zone = Field(default_factory=lambda: ZoneInfo("UTC"))
    keep: Annotated[int, Field(ge=1, le=24)] = 3
    """Restore points on the target. A chain of VHDs may be 30 deep: 24 points, the replica itself
    and the clone that a run writes to leave room for a chain that has not been coalesced yet."""
    max_vms: Annotated[int, Field(ge=1, le=64)] = 2
    """VMs of this job in transfer at once."""
    verify: Annotated[Verify, Field(strict=False)] = Verify.SAMPLE
    changed_blocks: Annotated[ChangedBlocks, Field(strict=False)] = ChangedBlocks.USE
    """`use`: where it is on. `enable`: also switch it on for the disks of the job; XAPI refuses to
    move such disks to another SR until it is off again. `off`: never."""
    networks: TextMap = Field(default_factory=lambda: NOTHING)
    """Source network → target network, UUIDs or names; `""` leaves the interface out."""
    transport: TransportSettings = Field(default_factory=TransportSettings)
    source_reserve: Size = GiB
    """Free bytes that a run leaves on every source SR: snapshots grow while they are read."""
    target_reserve: Size = GiB
    """Free bytes that a run leaves on the target SR."""
    diverged: Annotated[Diverged, Field(strict=False)] = Diverged.REFUSE
    """`refuse`: a replica that somebody worked on stays as it is, and the run fails and says so.
    `replace`: the next restore point takes its place, and that work is lost."""
    deadline: Duration = 86400.0
    """Seconds after which the run of a VM is cancelled."""
    enabled: bool = True
    """`false`: no scheduled runs; it can still be run by hand."""

    @model_validator(mode="before")
    @classmethod
    def _id_from_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and "id" not in value and isinstance(value.get("name"), str):
            return {**value, "id": str(uuid.uuid5(JOB_NAMESPACE, value["name"]))}
        return value


Pools = Annotated[Mapping[PoolName, PoolSettings], AfterValidator(freeze)]
Jobs = Annotated[Mapping[JobName, JobSettings], AfterValidator(freeze)]


class Settings(_Model):
    """A whole configuration, checked."""

    daemon: DaemonSettings = Field(default_factory=DaemonSettings)
    pools: Pools = Field(default_factory=lambda: NOTHING)
    jobs: Jobs = Field(default_factory=lambda: NOTHING)
    file: Path
    """Where it was read from, and where a reload reads again."""
