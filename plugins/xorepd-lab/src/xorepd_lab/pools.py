"""One pool: its objects, sessions, tasks, locks and disks."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import structlog

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Operations
from xorepd_lab.calls.recorder import NOBODY, Caller, Recorder
from xorepd_lab.calls.sessions import Sessions
from xorepd_lab.calls.tasks import Tasks
from xorepd_lab.classes.hosts.life import Life
from xorepd_lab.disks.storage import Storage
from xorepd_lab.faults.faults import Faults
from xorepd_lab.front.frontage import Frontage
from xorepd_lab.model.clock import Clock
from xorepd_lab.model.old_events import OldEvents
from xorepd_lab.model.registry import Registry

P = ParamSpec("P")
T = TypeVar("T")

USERNAME = "root"
NBD_PORT = 10809
"""The one registered for NBD; a pool has another only when something else listens there."""


@dataclass(frozen=True, slots=True)
class SrView:
    """What a test wants to know of an SR."""

    ref: str
    uuid: str
    name: str
    type: str
    shared: bool
    directory: Path


class Lab(Protocol):
    """What a pool asks of the lab that it is in."""

    directory: Path
    clock: Clock
    faults: Faults
    recorder: Recorder

    def guest_still(self, vm: str) -> AbstractAsyncContextManager[None]: ...
    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None] | None": ...
    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    def opened_in_thread(
        self, opening: Callable[[], AbstractContextManager[T]]
    ) -> AbstractAsyncContextManager[T]: ...


class Pool:
    """Everything that the members of a pool share."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        db: Registry,
        password: str,
        accounts: Mapping[str, str] | None = None,
    ) -> None:
        self._lab = lab
        self.faults = lab.faults
        self.recorder = lab.recorder
        self.name = name
        self.db = db
        self.username = USERNAME
        self.password = password
        self.clock = Clock(lab.clock.scale)
        """The hosts' clock: it may be wrong without the other pools' being wrong."""
        self.log = structlog.get_logger("xorepd_lab").bind(pool=name)
        self.tasks = Tasks(db, self.clock)
        self.accounts = dict(accounts or {})
        """Passwords of users beside root."""
        self.sessions = Sessions(db, self.clock, self.tasks, {USERNAME: password, **self.accounts})
        self.operations = Operations(db, self.tasks, self.clock)
        self.old_events = OldEvents(db)
        self.storage = Storage(self)
        self.saved_database: str | None = None
        """As `database.save` has written it, at a moment that an incident chose."""
        self.last_domid = 0
        self.https_port = 0
        self.http_port = 0
        self.nbd_port = NBD_PORT
        self.ca_file = Path()
        self.certificates: dict[str, Path] = {}
        self.frontages: dict[str, Frontage] = {}
        """What listens, by host."""
        self.life = Life(self)
        self.operations.reach = self.life.check_reachable
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def master(self) -> str:
        pool = next(self.db.select("pool"))
        return str(self.db.get("pool", pool, "master"))

    @property
    def url(self) -> str:
        return f"https://{self.address(self.master)}:{self.https_port}"

    @property
    def plain_url(self) -> str:
        return f"http://{self.address(self.master)}:{self.http_port}"

    @property
    def srs(self) -> dict[str, SrView]:
        """The pool's storage repositories with disks, by name."""
        views = {}
        for ref, repository in self.storage.repositories.items():
            sr = self.db.record("SR", ref)
            views[sr["name_label"]] = SrView(
                ref, sr["uuid"], sr["name_label"], sr["type"], sr["shared"], repository.directory
            )
        return views

    def address(self, host: str) -> str:
        return str(self.db.get("host", host, "address"))

    def host(self, name: str) -> str:
        """Return the reference of a host by its name."""
        return self.db.one("host", name_label=name)

    def sr_directory(self, uuid: str) -> Path:
        return self._lab.directory / "srs" / uuid

    def restart_toolstack(self) -> None:
        """Lose all sessions and tasks; VMs, streams and what was begun go on."""
        for cls in ("session", "task"):
            self.db.forget(cls)

    async def crash_host(self, host: str) -> None:
        """Let a host lose its power; it stays off until `restart_host`."""
        await self.life.crash(host)

    async def restart_host(self, host: str) -> None:
        """Boot a host, after a crash if it was up; done when it serves again."""
        await self.life.restart(host)

    async def change_master(self, host: str) -> None:
        """Make another host the master; done when all members serve again."""
        await self.life.change_master(host)

    def caller(self, session: Any) -> Caller:
        """Return who stands behind a session's reference, as a request gives it."""
        if not isinstance(session, str) or not self.db.exists("session", session):
            return NOBODY
        return Caller(session, self.db.get("session", session, "originator"))

    def remove_host(self, host: str) -> None:
        """Forget what listens on a host that is no member any more."""
        self.frontages.pop(host)

    def guest_still(self, vm: str) -> AbstractAsyncContextManager[None]:
        """Let a guest read and write nothing while the block runs."""
        return self._lab.guest_still(vm)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on a disk in a thread, see `Lab.in_thread`."""
        return await self._lab.in_thread(work, *args, **kwargs)

    def opened_in_thread(
        self, opening: Callable[[], AbstractContextManager[T]]
    ) -> AbstractAsyncContextManager[T]:
        """Hold something open that is opened and closed in a thread, see `Lab.opened_in_thread`."""
        return self._lab.opened_in_thread(opening)

    def internal_call(self) -> Call:
        """Return a call of the toolstack's own, on the master."""
        return Call(self, self.master)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None] | None":
        """Run something that a restart of the toolstack does not touch: a guest, a collector."""
        return self._lab.spawn(work, name)

    def spawn_call(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run the work of an `Async.` call; it dies with the master's toolstack."""
        task = self._lab.spawn(work, name)
        if task is not None:
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    def cancel_calls(self) -> None:
        """Give up all `Async.` calls, as a toolstack does that dies."""
        for task in self._calls:
            task.cancel()
