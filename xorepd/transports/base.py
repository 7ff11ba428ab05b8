"""The seam: what carries the data of a disk from its reader to its target.

A transport is found by name in the entry-point group `xorepd.transports`. It reads its own options
with its own model, and is told everything else: where it stands, the reader to take from, and the
target to write to. It retries nothing, and hashes nothing; that wraps it from outside.

Version 2 added the surroundings. Version 3 gives a target in place of a function that opens a
writer: a transport that writes elsewhere learns from it which disk is meant, and tells it what was
sent and what the pool has confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from xorepd.data.reader import Reader
from xorepd.data.writer import Writer
from xorepd.extents import Extent
from xorepd.transports.links import Links

GROUP = "xorepd.transports"
API = 3
"""Version of this seam. A transport states the one it was written for."""


@dataclass(frozen=True, slots=True)
class TargetDisk:
    """Which disk is written, as far as another writer must know it."""

    pool: str
    """UUID of the target pool."""
    vdi: str
    """UUID of the staging disk."""
    base: str
    """UUID of the restore point's disk that it is a clone of; empty for a new disk, all zeroes."""
    stream: str
    """`<source pool>/<vm>/<sr>`, UUIDs as in the staging disk's `xorepd:mark`."""
    run: str
    """Id of the run, as in that mark."""
    what: str
    """The disk, for messages."""


class Target(Protocol):
    """What a transport writes to, in one of two ways: through the writer of `open`, or elsewhere.

    Who writes elsewhere calls `pay` before bytes leave, `left` after, and `confirmed` as the pool
    confirms them; the writer of `open` does all three by itself.
    """

    @property
    def disk(self) -> TargetDisk: ...

    def open(
        self, virtual_size: int, extents: Iterable[Extent]
    ) -> AbstractAsyncContextManager[Writer]:
        """Open the target disk for writing these extents, at most once.

        Raises:
            DataError: the pool does not take it.
        """

    async def pay(self, size: int) -> None:
        """Wait until `size` bytes may leave by another way than the writer: rates apply to both."""

    def left(self, size: int) -> None:
        """Count `size` bytes that have left by that other way."""

    def confirmed(self, offset: int) -> None:
        """Note that the pool has confirmed all that was read below this offset of the disk.

        The disk's virtual size says that it is complete.
        """


class Transport(Protocol):
    """Ready to carry, with its options read."""

    async def carry(self, reader: Reader, target: Target) -> None:
        """Move all that the reader gives to the target; return when it is confirmed there.

        Several disks of a VM are carried at once by one transport.

        Raises:
            DataError: it is not, and the target disk is worth nothing.
        """


@runtime_checkable
class Verifier(Protocol):
    """A transport that can read back what it wrote, without carrying it here."""

    async def digest(self, target: Target, extents: Sequence[Extent]) -> str:
        """Return the fingerprint of what the disk holds there (`xorepd.data.digest.Digest`).

        Args:
            extents: sorted, disjoint.

        Raises:
            DataError: it cannot be read there; it may still be read from here.
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
