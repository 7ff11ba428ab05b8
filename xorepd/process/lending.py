"""Pools that stay open between runs, each held by its own task, and lent to runs.

The session and event feed of a pool outlive the run that opened them. They close when the
configuration has dropped or changed the pool and its last user has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import structlog

from xorepd.config.models import PoolSettings
from xorepd.ids import PoolName
from xorepd.tasks import lone_error

log = structlog.get_logger()

P = TypeVar("P")


@dataclass(eq=False, slots=True)
class _Kept(Generic[P]):
    settings: PoolSettings
    opened: asyncio.Future[P]
    users: int = 0
    retired: bool = False
    """No longer lent; closes after its last user."""
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Pools(Generic[P]):
    """The open pools. An async context manager that closes all at its end."""

    def __init__(self, open_pool: Callable[[PoolSettings], AbstractAsyncContextManager[P]]) -> None:
        self._open_pool = open_pool
        self._kept: dict[PoolName, _Kept[P]] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.retain({})
        with lone_error():
            await self._group.__aexit__(*exc_info)

    def open(self) -> dict[PoolName, P]:
        """Return the open pools that can be lent."""
        return {
            name: kept.opened.result()
            for name, kept in self._kept.items()
            if kept.opened.done() and not kept.opened.exception()
        }

    @asynccontextmanager
    async def lend(self, settings: PoolSettings) -> AsyncIterator[P]:
        """Lend a pool while a block lasts; open it if needed, or if its settings have changed.

        Raises:
            Exception: the pool cannot be opened.
        """
        kept = self._kept.get(settings.name)
        if kept is None or kept.settings != settings:
            if kept is not None:
                self._retire(kept)
            kept = _Kept(settings, asyncio.get_running_loop().create_future())
            self._kept[settings.name] = kept
            self._group.create_task(
                self._keep(kept),
                name=f"pool {settings.name}",
                # Without the log context of the run that happens to need it first.
                context=contextvars.Context(),
            )
        kept.users += 1
        try:
            # Shielded: a cancelled run must not cancel the opening that others wait for.
            yield await asyncio.shield(kept.opened)
        finally:
            kept.users -= 1
            if kept.retired and kept.users == 0:
                kept.done.set()

    def retain(self, pools: Mapping[PoolName, PoolSettings]) -> None:
        """Close every pool whose settings differ from these, after its last user."""
        for name, kept in list(self._kept.items()):
            if pools.get(name) != kept.settings:
                self._retire(kept)

    def _retire(self, kept: _Kept[P]) -> None:
        if self._kept.get(kept.settings.name) is kept:
            del self._kept[kept.settings.name]
        kept.retired = True
        if kept.users == 0:
            kept.done.set()

    async def _keep(self, kept: _Kept[P]) -> None:
        """Hold one pool open, in one task from start to end as its task group requires."""
        try:
            async with self._open_pool(kept.settings) as pool:
                kept.opened.set_result(pool)
                await kept.done.wait()
        except Exception as error:
            if not kept.opened.done():
                # Those who wait for the pool raise the error; a later caller opens it again.
                kept.opened.set_exception(error)
                kept.opened.exception()
            else:
                log.exception("pool.lost", pool=kept.settings.name)
            self._retire(kept)
