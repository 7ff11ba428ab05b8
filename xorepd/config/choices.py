"""The choices of a job: enumerations of its options."""

from __future__ import annotations

from enum import StrEnum


class PowerState(StrEnum):
    """Power state of a VM."""

    RUNNING = "running"
    HALTED = "halted"
    PAUSED = "paused"
    SUSPENDED = "suspended"


class Empty(StrEnum):
    """Result of a run whose patterns and tags match no VM."""

    WARN = "warn"
    FAIL = "fail"


class Fulls(StrEnum):
    """Whether a disk may be sent whole."""

    ALLOW = "allow"
    ASK = "ask"
    """The first copy of a VM may be full; any other full copy needs the consent of an operator."""
    NEVER = "never"


class BaseData(StrEnum):
    """What happens to the data of the source snapshot that is the base of the next delta."""

    KEEP = "keep"
    """The data stays, and the source keeps a chain for it."""
    DESTROY = "destroy"
    """The data is destroyed; the changed-block metadata stays."""


class SnapshotKind(StrEnum):
    """The state of a source VM during its snapshot."""

    PLAIN = "plain"
    """As it is: the disks are crash-consistent."""
    OFFLINE = "offline"
    """Shut down cleanly before the snapshot, and started again right after it."""
    MEMORY = "memory"
    """With its memory, if it runs: the VM is paused while its memory is saved."""
