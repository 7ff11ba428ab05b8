"""What storage asks of its pool, and a garbage collector of its SR."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from xorepd_lab.disks.store import DiskStore
from xorepd_lab.model.clock import Clock
from xorepd_lab.model.registry import Registry

P = ParamSpec("P")
T = TypeVar("T")


class Operations(Protocol):
    def refresh(self, cls: str, ref: str) -> None:
        """Write anew which operations an object allows."""


class Pool(Protocol):
    db: Registry
    clock: Clock
    log: Any

    @property
    def operations(self) -> Operations: ...

    def sr_directory(self, uuid: str) -> Path: ...

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Run something that a restart of the toolstack does not touch: a guest, a collector.

        Returns:
            The task; None when the lab stops.
        """

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on a disk in a thread; it ends before this does, cancelled or not."""


class Repository(Protocol):
    ref: str
    store: DiskStore

    async def change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def reconcile(self, scan: bool = ...) -> None: ...
