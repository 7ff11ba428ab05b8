"""What happens to a pool, whoever asks what: crashes, restarts, full disks, clocks that jump.

An incident happens when somebody says so (`Lab.happen`, `xorepd-lab incident`) or when a fault
meets a request. A new kind is a coroutine under `@incident`; nothing else changes.
"""

from collections.abc import Awaitable, Callable
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from pydantic import ConfigDict

from xorepd_lab.calls.call import Pool
from xorepd_lab.classes.hosts import database
from xorepd_lab.disks.storage import Repository


@dataclass(frozen=True, slots=True)
class Incident:
    """One thing that happens. What is not given is that of the request that a fault met."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: str
    pool: str | None = None
    """Name of the pool."""
    host: str | None = None
    """Name of the host; the master where none is given or known."""
    sr: str | None = None
    """Name of the SR; all of the pool where none is given."""
    seconds: float = 0.0
    """By how much a clock jumps."""
    bytes: int = 0
    """How many bytes an SR still takes."""
    originator: str | None = None
    """Whose sessions are lost; everybody's where none is given."""

    def __post_init__(self) -> None:
        if self.kind not in INCIDENTS:
            raise ValueError(f"no incident {self.kind!r}; choose one of {', '.join(INCIDENTS)}")
        if self.bytes < 0:
            raise ValueError("bytes must be 0 or more")

    def at(self, pool: str, host: str) -> "Incident":
        """Return it with the place filled in: a host only where the pool is that of the request."""
        if self.pool not in (None, pool):
            return self
        return replace(self, pool=pool, host=self.host or host)

    def to_json(self) -> dict[str, Any]:
        """Return the members that are not as they are by default."""
        return {
            declared.name: getattr(self, declared.name)
            for declared in fields(self)
            if declared.default is MISSING or getattr(self, declared.name) != declared.default
        }


Happen = Callable[[Pool, Incident], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kind:
    tells: str
    happen: Happen


INCIDENTS: dict[str, Kind] = {}
"""By name, as they are listed for people."""


def incident(name: str, tells: str) -> Callable[[Happen], Happen]:
    """Make a kind of incident known."""

    def declare(happen: Happen) -> Happen:
        INCIDENTS[name] = Kind(tells, happen)
        return happen

    return declare


def _host(pool: Pool, what: Incident) -> str:
    return pool.master if what.host is None else pool.host(what.host)


def _repositories(pool: Pool, what: Incident) -> list[Repository]:
    """Return the SR that is meant, or all.

    Raises:
        LookupError: No SR of disks is called that.
    """
    found = [
        repository
        for ref, repository in pool.storage.repositories.items()
        if what.sr in (None, pool.db.get("SR", ref, "name_label"))
    ]
    if not found:
        raise LookupError(f"pool {pool.name} has no SR {what.sr}")
    return found


# -- hosts and toolstacks --------------------------------------------------------------------------


@incident(
    "toolstack-restart",
    "the host's toolstack dies and comes back, and leaves disks attached; the master's loses all",
)
async def _toolstack_restart(pool: Pool, what: Incident) -> None:
    await pool.life.restart_toolstack(_host(pool, what))


@incident("host-crash", "the host loses its power, and stays off")
async def _host_crash(pool: Pool, what: Incident) -> None:
    await pool.life.crash(_host(pool, what))


@incident("host-restart", "the host boots, after a crash if it was up")
async def _host_restart(pool: Pool, what: Incident) -> None:
    await pool.life.restart(_host(pool, what))


@incident("host-unreachable", "the host is unreachable; its VMs continue to run")
async def _host_unreachable(pool: Pool, what: Incident) -> None:
    pool.life.isolate(_host(pool, what))


@incident("host-reachable", "the host can be reached again")
async def _host_reachable(pool: Pool, what: Incident) -> None:
    await pool.life.reconnect(_host(pool, what))


@incident("master-change", "another host becomes master: the one given, else any other")
async def _master_change(pool: Pool, what: Incident) -> None:
    wanted = None if what.host is None else pool.host(what.host)
    able = [ref for ref in pool.db.refs("host") if ref != pool.master and pool.life.has_power(ref)]
    if not able:
        raise LookupError(f"pool {pool.name} has no other host that is on")
    if wanted in (None, pool.master):
        await pool.life.change_master(able[0])
    elif wanted in able:
        await pool.life.change_master(wanted)
    else:
        raise LookupError(f"host {what.host} is off")


@incident("session-loss", "sessions end: all, or those of one originator")
async def _session_loss(pool: Pool, what: Incident) -> None:
    for ref in pool.db.refs("session"):
        if what.originator in (None, pool.db.get("session", ref, "originator")):
            pool.db.destroy("session", ref)


@incident("database-saved", "the pool's database reaches its master's disk; no later one does")
async def _database_saved(pool: Pool, what: Incident) -> None:
    pool.saved_database = database.save(pool)


@incident("database-rollback", "the master's toolstack is killed; it comes back with the saved one")
async def _database_rollback(pool: Pool, what: Incident) -> None:
    if pool.saved_database is None:
        raise LookupError(f"pool {pool.name} has saved no database; let database-saved happen")
    await pool.life.roll_back(pool.saved_database)


@incident("clock-jump", "the clock of the pool's hosts jumps by so many seconds, either way")
async def _clock_jump(pool: Pool, what: Incident) -> None:
    pool.clock.jump(what.seconds)


# -- storage ---------------------------------------------------------------------------------------


@incident("sr-full", "the SR takes no more than so many bytes from now on (0)")
async def _sr_full(pool: Pool, what: Incident) -> None:
    for repository in _repositories(pool, what):
        space, store = repository.space, repository.store
        spent = space.spent if space.is_lvm else await pool.in_thread(store.spent)
        repository.shrink_capacity(spent + what.bytes)


@incident("sr-free", "the SR is as large again as its record says")
async def _sr_free(pool: Pool, what: Incident) -> None:
    for repository in _repositories(pool, what):
        repository.restore_capacity()


@incident("coalesce-stuck", "the SR's garbage collector does nothing any more")
async def _coalesce_stuck(pool: Pool, what: Incident) -> None:
    for repository in _repositories(pool, what):
        repository.garbage.stuck = True


@incident("coalesce-resumed", "the SR's garbage collector works again")
async def _coalesce_resumed(pool: Pool, what: Incident) -> None:
    for repository in _repositories(pool, what):
        repository.garbage.stuck = False
        repository.garbage.kick()


@incident("pbd-unplugged", "the host no longer sees the SR, even if it is in use")
async def _pbd_unplugged(pool: Pool, what: Incident) -> None:
    _set_plugged(pool, what, plugged=False)


@incident("pbd-plugged", "the host sees the SR again")
async def _pbd_plugged(pool: Pool, what: Incident) -> None:
    _set_plugged(pool, what, plugged=True)


def _set_plugged(pool: Pool, what: Incident, plugged: bool) -> None:
    host, db = _host(pool, what), pool.db
    for repository in _repositories(pool, what):
        for pbd in db.select("PBD", SR=repository.ref, host=host):
            db.set("PBD", pbd, currently_attached=plugged)
        pool.operations.refresh("SR", repository.ref)
        for vdi in db.get("SR", repository.ref, "VDIs"):
            pool.operations.refresh("VDI", vdi)
