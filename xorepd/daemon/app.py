"""The composition root: builds the daemon from its parts, each after the ones that it needs.

    lock ─► history ─► engine (pools, replication) ─► runs ─► service ─► control socket ─► READY

The daemon closes its parts in the opposite order, whatever ends it.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import structlog

from xorepd.config.diff import Changes
from xorepd.config.models import Settings
from xorepd.control.server import serve
from xorepd.daemon.checking import Checked, load_checked
from xorepd.daemon.engine import open_engine
from xorepd.daemon.runs import Runs
from xorepd.daemon.service import Service
from xorepd.errors import XorepdError
from xorepd.process.lock import locked
from xorepd.process.logs import set_level
from xorepd.process.signals import Intent, intents
from xorepd.process.systemd import Notifier
from xorepd.state.history import History, check_history
from xorepd.state.identity import read_identity
from xorepd.state.maps import open_maps
from xorepd.state.store import open_store
from xorepd.tasks import background
from xorepd.version import VERSION

log = structlog.get_logger()


async def run_daemon(checked: Checked) -> None:
    """Run until a signal asks to stop, and complete or undo all work before returning.

    Raises:
        XorepdError: the daemon cannot start; the message says what to change.
    """
    settings = checked.settings
    daemon = settings.daemon
    notifier = Notifier()
    async with AsyncExitStack() as stack:
        # First, so that a signal during a slow start takes effect after it and does not kill us.
        signals = stack.enter_context(intents())
        stack.enter_context(locked(daemon.state_dir))
        opened = open_store(daemon.state_dir / "history.db", check=check_history)
        store = await stack.enter_async_context(opened)
        history = await History.open(store)
        daemon_id = read_identity(daemon.state_dir)
        opening = open_maps(daemon.state_dir / "maps.db", daemon.maps, utc_now)
        maps = await stack.enter_async_context(opening)
        engine = await stack.enter_async_context(open_engine(settings, utc_now, daemon_id, maps))
        engine.offer(checked.links)
        engine.adopt_links()
        runs = await stack.enter_async_context(Runs(engine.run, engine.board, history, utc_now))

        def load() -> Settings:
            again = load_checked(settings.file, utc_now, running=daemon)
            engine.offer(again.links)
            return again.settings

        def apply(new: Settings, changes: Changes) -> None:
            engine.apply(new)
            set_level(new.daemon.log_level)

        service = Service(
            settings,
            runs=runs,
            board=engine.board,
            history=history,
            notifier=notifier,
            clock=utc_now,
            load=load,
            apply=apply,
            links=engine.links,
            budget=engine.budget,
            orphans=engine.orphans,
            pool_states=engine.pool_states,
        )
        await stack.enter_async_context(serve(service, daemon.socket))
        await service.begin()
        log.info(
            "daemon.ready", version=VERSION, config=str(settings.file), socket=str(daemon.socket)
        )
        async with background(
            ("schedules", service.run_schedules()),
            ("history expiry", service.expire_history()),
            ("watchdog", notifier.feed_watchdog()),
        ):
            await _obey(signals, service)
            hurry = asyncio.Event()
            async with background(("second signal", _await_second(signals, hurry))):
                await service.drain(hurry)
    log.info("daemon.stopped")


async def _obey(signals: asyncio.Queue[Intent], service: Service) -> None:
    """Handle signals until one asks to stop."""
    while True:
        match await signals.get():
            case Intent.RELOAD:
                try:
                    await service.reload()
                except XorepdError:
                    continue  # the reload has logged it; the old configuration stays in force
            case Intent.STOP:
                return


async def _await_second(signals: asyncio.Queue[Intent], hurry: asyncio.Event) -> None:
    while await signals.get() is not Intent.STOP:
        continue
    log.warning("daemon.stop_forced")
    hurry.set()


def utc_now() -> datetime:
    """Return the wall-clock time."""
    return datetime.now(UTC)
