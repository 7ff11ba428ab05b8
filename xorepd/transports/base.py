"""The transport interface: what carries the data of a disk from its reader to its target.

A transport is found by name in the entry-point group `xorepd.transports`. It parses its own
options. Everything else it receives: its surroundings, the reader and the target. It neither
retries nor hashes; the daemon does both around it.

Version 2 added the surroundings. Version 3 passes a target instead of a function that opens a
writer: a transport that writes elsewhere learns from it which disk to write, and reports to it what
was sent and what the pool has confirmed.
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
"""Version of this interface. A transport states the version that it was written for."""


@dataclass(frozen=True, slots=True)
class TargetDisk:
    """The disk to write, for transports that write elsewhere."""

    pool: str
    """UUID of the target pool."""
    vdi: str
    """UUID of the staging disk."""
    base: str
    """UUID of the restore point's disk that it was cloned from; empty for a new, zero disk."""
    stream: str
    """`<source pool>/<vm>/<sr>`, UUIDs as in the staging disk's `xorepd:mark`."""
    run: str
    """Id of the run, as in that mark."""
    what: str
    """The disk, for messages."""


class Target(Protocol):
    """What a transport writes to, in one of two ways: through the writer of `open`, or elsewhere.

    A transport that writes elsewhere calls `pay` before it sends bytes, `left` after, and
    `confirmed` when the pool has confirmed them. The writer of `open` does all three itself.
    """

    @property
    def disk(self) -> TargetDisk: ...

    def open(
        self, virtual_size: int, extents: Iterable[Extent]
    ) -> AbstractAsyncContextManager[Writer]:
        """Open the target disk for writing these extents, at most once.

        Raises:
            DataError: the pool refuses the import.
        """

    async def pay(self, size: int) -> None:
        """Wait until `size` bytes may be sent elsewhere: rate limits apply to both ways."""

    def left(self, size: int) -> None:
        """Count `size` bytes that were sent elsewhere."""

    def confirmed(self, offset: int) -> None:
        """Note that the pool has confirmed all data below this offset of the disk.

        The virtual size of the disk means that it is complete.
        """


class Transport(Protocol):
    """A transport that is open, with its options."""

    async def carry(self, reader: Reader, target: Target) -> None:
        """Send all data of the reader to the target; return when the pool has confirmed it.

        One transport carries several disks of a VM at once.

        Raises:
            DataError: the transfer failed, and the content of the target disk is undefined.
        """


@runtime_checkable
class Verifier(Protocol):
    """A transport that can digest the written data on the target side."""

    async def digest(self, target: Target, extents: Sequence[Extent]) -> str:
        """Return the digest of the disk (`xorepd.data.digest.Digest`).

        Args:
            extents: Sorted, disjoint.

        Raises:
            DataError: the disk cannot be read on that side; the daemon may still read it itself.
        """


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The context in which a transport is opened."""

    job: str
    source: str
    """Name of the source pool."""
    target: str
    """Name of the target pool."""
    links: Links
    """The rate limits that the transports of this daemon share."""
    clock: Callable[[], datetime]
    """Returns the current time, aware, in UTC, for timetables. To measure time use the event
    loop."""
    opener: Callable[[str, Mapping[str, Any], Surroundings], Transport]

    def open(self, name: str, options: Mapping[str, Any]) -> Transport:
        """Return another transport, for one that wraps it.

        Raises:
            ValueError: it is not available, or its options are invalid.
        """
        return self.opener(name, options, self)


class TransportFactory(Protocol):
    """What an entry point refers to."""

    name: str
    api: int

    def open(self, options: Mapping[str, Any], surroundings: Surroundings) -> Transport:
        """Return the transport with these options; called in a thread, and must not wait.

        Raises:
            ValueError: the options are invalid; the message names option and remedy.
        """
