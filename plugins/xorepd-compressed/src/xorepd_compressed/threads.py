"""Threads that hash and compress, so that the event loop never waits for either.

They are the daemon's, shared by all links: there are no more processors for two links than for one.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import zstandard

T = TypeVar("T")

COUNT = max(1, min(4, os.cpu_count() or 1))
_pool = ThreadPoolExecutor(COUNT, "compressed")
_own = threading.local()


def begin(work: Callable[[], T]) -> asyncio.Future[T]:
    """Let a thread work; return its result as a future. Cancelling the future does not stop it."""
    return asyncio.get_running_loop().run_in_executor(_pool, work)


def compressor(level: int) -> zstandard.ZstdCompressor:
    """Return this thread's compressor of that level: making one costs as much as a small block."""
    if getattr(_own, "level", None) != level:  # one at a time: those of high levels are large
        _own.level, _own.compressor = level, zstandard.ZstdCompressor(level)
    made: zstandard.ZstdCompressor = _own.compressor
    return made
