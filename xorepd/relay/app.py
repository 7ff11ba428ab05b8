"""The process of the relay: builds it from its parts, handles signals, notifies systemd.

    pools ─► relay ─► listening ─► READY

The relay closes its parts in the opposite order, whatever ends it.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import structlog

from xorepd.config.models import PoolSettings
from xorepd.config.secrets import read_password
from xorepd.errors import XorepdError
from xorepd.process.lending import Pools
from xorepd.process.logs import set_level
from xorepd.process.signals import Intent, intents
from xorepd.process.systemd import Notifier
from xorepd.relay.listener import listening
from xorepd.relay.server import Relay
from xorepd.relay.settings import RelaySettings, load_relay
from xorepd.tasks import background, first_of
from xorepd.version import VERSION
from xorepd.xapi.pool import Pool

log = structlog.get_logger(__name__)

AT_START = ("listen", "disks", "memory", "silence")
"""Settings that a reload does not change; the log says so."""


async def run_relay(settings: RelaySettings) -> None:
    """Run until a signal asks to stop.

    Raises:
        XorepdError: the relay cannot start; the message says what to change.
    """
    table = settings.relay
    notifier = Notifier()

    def open_pool(pool: PoolSettings) -> Pool:
        return Pool(pool, partial(read_password, pool, file=settings.file))

    async with AsyncExitStack() as stack:
        # First, so that a signal during a slow start takes effect after it and does not kill us.
        signals = stack.enter_context(intents())
        pools = await stack.enter_async_context(Pools(open_pool))
        relay = await stack.enter_async_context(Relay(settings, pools))
        async with listening(*table.place, relay.came, silence=table.silence) as port:
            log.info("relay.ready", version=VERSION, config=str(settings.file), port=port)
            notifier.ready(f"listening on port {port}")
            async with background(("watchdog", notifier.feed_watchdog())):
                await _obey(signals, relay, notifier)
        notifier.stopping(f"stopping, disks to end: {relay.disks}")
        async with background(("watchdog", notifier.feed_watchdog())):
            await first_of(relay.drain(table.grace), _second(signals))
    log.info("relay.stopped")


async def _obey(signals: asyncio.Queue[Intent], relay: Relay, notifier: Notifier) -> None:
    """Handle signals until one asks to stop."""
    while True:
        match await signals.get():
            case Intent.RELOAD:
                notifier.reloading()
                try:
                    await _reload(relay)
                except XorepdError as error:
                    log.error("reload.refused", error=str(error))  # noqa: TRY400 -- says all
                notifier.ready(f"clients: {relay.clients}, disks: {relay.disks}")
            case Intent.STOP:
                return


async def _reload(relay: Relay) -> None:
    """Reload the file: pools, clients, certificates and limits of connections.

    Raises:
        XorepdError: the file is invalid; the old configuration stays in force.
    """
    old = relay.settings
    new = await asyncio.to_thread(load_relay, old.file)
    relay.apply(new)
    set_level(new.relay.log_level)
    log.info("reload.completed", pools=sorted(new.pools), clients=sorted(new.clients))
    kept = [key for key in AT_START if getattr(old.relay, key) != getattr(new.relay, key)]
    if kept:
        log.warning("reload.needs_restart", keys=[f"relay.{key}" for key in kept])


async def _second(signals: asyncio.Queue[Intent]) -> None:
    while await signals.get() is not Intent.STOP:
        continue
    log.warning("relay.stop_forced")
