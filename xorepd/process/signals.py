"""Signals as intents: what the sender wants, taken one by one by the daemon's main loop."""

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
    """End in good order; a second one means at once."""


_INTENTS = {
    signal.SIGHUP: Intent.RELOAD,
    signal.SIGTERM: Intent.STOP,
    signal.SIGINT: Intent.STOP,
}


@contextmanager
def intents() -> Iterator[asyncio.Queue[Intent]]:
    """Turn signals into intents on a queue while a block lasts; the running loop receives them."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Intent] = asyncio.Queue()
    for number, intent in _INTENTS.items():
        loop.add_signal_handler(number, queue.put_nowait, intent)
    try:
        yield queue
    finally:
        for number in _INTENTS:
            loop.remove_signal_handler(number)
