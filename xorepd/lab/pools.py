"""One pool: its objects, sessions, tasks, locks and disks."""

from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from xorepd.lab.dispatch import Call
from xorepd.lab.operations import Operations
from xorepd.lab.registry import Registry
from xorepd.lab.sessions import Sessions
from xorepd.lab.storage import Storage
from xorepd.lab.tasks import Tasks

if TYPE_CHECKING:
    from xorepd.lab.lab import Lab

USERNAME = "root"


@dataclass(frozen=True, slots=True)
class SrView:
    """What a test wants to know of an SR."""

    ref: str
    uuid: str
    name: str
    type: str
    shared: bool
    directory: Path


class Pool:
    """Everything that the members of a pool share."""

    def __init__(self, lab: "Lab", name: str, db: Registry, password: str) -> None:
        self.lab = lab
        self.name = name
        self.db = db
        self.username = USERNAME
        self.password = password
        self.clock = lab.clock
        self.log = structlog.get_logger("xorepd.lab").bind(pool=name)
        self.tasks = Tasks(db, lab.clock)
        self.sessions = Sessions(db, lab.clock, {USERNAME: password})
        self.operations = Operations(db, self.tasks, lab.clock)
        self.storage = Storage(self)
        self.https_port = 0
        self.http_port = 0
        self.ca_file = Path()
        self.certificates: dict[str, Path] = {}

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
        return self.lab.directory / "srs" / uuid

    def restart_toolstack(self) -> None:
        """Lose all sessions and tasks; VMs, streams and what was begun go on."""
        for cls in ("session", "task"):
            self.db.forget(cls)

    def internal_call(self) -> Call:
        """Return a call of the toolstack's own, on the master."""
        return Call(self, self.master)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.lab.spawn(work, name)
