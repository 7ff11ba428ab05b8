"""Compare two configurations: what a reload starts, stops and re-opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from xorepd.config.models import DaemonSettings, Settings
from xorepd.ids import JobName, PoolName

K = TypeVar("K", bound=str)

ONLY_AT_START = ("state_dir", "socket", "maps", "log_format")
"""Settings of the daemon that it cannot change under itself."""


@dataclass(frozen=True, slots=True)
class Difference(Generic[K]):
    """Names that are new, gone, or no longer mean the same; each sorted."""

    added: tuple[K, ...] = ()
    removed: tuple[K, ...] = ()
    changed: tuple[K, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between the configuration in force and a new one."""

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

    A pool whose `ca_file` or password file has new content is not seen as changed: the password is
    read at every login, the CA file when the pool is opened.
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
