"""Compare two configurations: what a reload starts, stops and reopens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from xorepd.config.models import DaemonSettings, Settings
from xorepd.ids import JobName, PoolName

K = TypeVar("K", bound=str)

ONLY_AT_START = ("state_dir", "socket", "maps", "log_format")
"""Settings of the daemon that take effect only at its start."""


@dataclass(frozen=True, slots=True)
class Difference(Generic[K]):
    """Names that were added, removed or changed; each sorted."""

    added: tuple[K, ...] = ()
    removed: tuple[K, ...] = ()
    changed: tuple[K, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between the current configuration and a new one."""

    jobs: Difference[JobName]
    pools: Difference[PoolName]
    daemon: tuple[str, ...]
    """Keys of `[daemon]` that take effect at once."""
    needs_restart: tuple[str, ...]
    """Keys of `[daemon]` that take effect when the daemon is next started."""

    def __bool__(self) -> bool:
        return bool(self.jobs or self.pools or self.daemon or self.needs_restart)


def compare(old: Settings, new: Settings) -> Changes:
    """Return what changes from `old` to `new`.

    A pool counts as unchanged if only the content of its `ca_file` or password file is new: the
    password is read at every login, the CA file when the pool is opened.
    """
    changed = tuple(
        key
        for key in DaemonSettings.model_fields
        if getattr(old.daemon, key) != getattr(new.daemon, key)
    )
    return Changes(
        jobs=_difference(old.jobs, new.jobs),
        pools=_difference(old.pools, new.pools),
        daemon=tuple(key for key in changed if key not in ONLY_AT_START),
        needs_restart=tuple(key for key in changed if key in ONLY_AT_START),
    )


def _difference(old: Mapping[K, object], new: Mapping[K, object]) -> Difference[K]:
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
    )
