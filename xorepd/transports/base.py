"""The seam: what carries the data of a disk from its reader to its target.

A transport is found by name in the entry-point group `xorepd.transports`. It reads its own options
with its own model, and is told everything else: the reader to take from, and how a writer to the
target disk is opened. It retries nothing and counts nothing; that wraps it from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from xorepd.data.reader import Reader
from xorepd.data.writer import Writer
from xorepd.extents import Extent

GROUP = "xorepd.transports"
API = 1
"""Version of this seam. A transport states the one it was written for."""

OpenWriter = Callable[[int, Iterable[Extent]], AbstractAsyncContextManager[Writer]]
"""Open the target disk: (virtual size, the extents that will come)."""


class Transport(Protocol):
    """Ready to carry, with its options read."""

    async def carry(self, reader: Reader, open_writer: OpenWriter) -> None:
        """Move all that the reader gives to the target; return when it is confirmed there.

        Raises:
            DataError: it is not, and the target disk is worth nothing.
        """


class TransportFactory(Protocol):
    """What an entry point names."""

    name: str
    api: int

    def open(self, options: Mapping[str, Any]) -> Transport:
        """Return the transport with these options.

        Raises:
            ValueError: the options are not valid; the message names option and remedy.
        """
