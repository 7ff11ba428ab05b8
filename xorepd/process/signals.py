"""Signals as intents, which the main loop of the daemon takes one by one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum


class Intent(Enum):
    """What a signal asks for."""

    RELOAD = "reload"
    STOP = "stop"
    """Stop after the grace time; a second one stops at once."""


_INTENTS = {
    signal.SIGHUP: Intent.RELOAD,
    signal.SIGTERM: Intent.STOP,
    signal.SIGINT: Intent.STOP,
}


@contextmanager
def intents() -> Iterator[asyncio.Queue[Intent]]:
    """Put an intent on a queue for each signal, while a block lasts."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Intent] = asyncio.Queue()
    for number, intent in _INTENTS.items():
        loop.add_signal_handler(number, queue.put_nowait, intent)
    try:
        yield queue
    finally:
        for number in _INTENTS:
            loop.remove_signal_handler(number)
