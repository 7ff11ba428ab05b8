"""The seam: what carries the data of a disk from its reader to its target.

A transport is found by name in the entry-point group `xorepd.transports`. It reads its own options
with its own model, and is told everything else: where it stands, the reader to take from, and how a
writer to the target disk is opened. It retries nothing and counts nothing; that wraps it from
outside. Version 2 added the surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from xorepd.data.reader import Reader
from xorepd.data.writer import Writer
from xorepd.extents import Extent
from xorepd.transports.links import Links

GROUP = "xorepd.transports"
API = 2
"""Version of this seam. A transport states the one it was written for."""

OpenWriter = Callable[[int, Iterable[Extent]], AbstractAsyncContextManager[Writer]]
"""Open the target disk: (virtual size, the extents that will come)."""


class Transport(Protocol):
    """Ready to carry, with its options read."""

    async def carry(self, reader: Reader, open_writer: OpenWriter) -> None:
        """Move all that the reader gives to the target; return when it is confirmed there.

        Several disks of a VM are carried at once by one transport.

        Raises:
            DataError: it is not, and the target disk is worth nothing.
        """


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a transport may want to know of where it is opened."""

    job: str
    source: str
    """Name of the source pool."""
    target: str
    """Name of the target pool."""
    links: Links
    """What this daemon's transports share, by name."""
    clock: Callable[[], datetime]
    """Now, aware, in UTC: for timetables. Whoever measures time takes the event loop's."""
    opener: Callable[[str, Mapping[str, Any], Surroundings], Transport]

    def open(self, name: str, options: Mapping[str, Any]) -> Transport:
        """Return another transport, for one that wraps it.

        Raises:
            ValueError: it cannot be had, or refuses its options.
        """
        return self.opener(name, options, self)


class TransportFactory(Protocol):
    """What an entry point names."""

    name: str
    api: int

    def open(self, options: Mapping[str, Any], surroundings: Surroundings) -> Transport:
        """Return the transport with these options; called in a thread, and must not wait.

        Raises:
            ValueError: the options are not valid; the message names option and remedy.
        """
