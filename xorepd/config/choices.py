"""What an operator chooses between, where a job can go about something in several ways."""

from __future__ import annotations

from enum import StrEnum


class PowerState(StrEnum):
    """Of a VM."""

    RUNNING = "running"
    HALTED = "halted"
    PAUSED = "paused"
    SUSPENDED = "suspended"


class Empty(StrEnum):
    """What a run is when patterns and tags match no VM."""

    WARN = "warn"
    FAIL = "fail"


class Fulls(StrEnum):
    """Whether a disk may be sent whole."""

    ALLOW = "allow"
    ASK = "ask"
    """The first copy of a VM may; any other is held until an operator allows it."""
    NEVER = "never"


class BaseData(StrEnum):
    """What becomes of the data in a source snapshot that stands as the base of the next delta."""

    KEEP = "keep"
    """It stays, and the source keeps a chain for it."""
    DESTROY = "destroy"
    """It goes; what changed-block tracking knows of it stays."""


class SnapshotKind(StrEnum):
    """In which state a source VM is snapshotted."""

    PLAIN = "plain"
    """As it is: its disks are those of a machine that lost its power."""
    OFFLINE = "offline"
    """Shut down cleanly, and started again right after the snapshot."""
    MEMORY = "memory"
    """With its memory, where it runs: the VM stands still until that is saved."""
