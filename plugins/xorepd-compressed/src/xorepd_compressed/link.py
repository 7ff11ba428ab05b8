"""The connection to one relay as one client, shared by all disks of all jobs that go there.

It is opened when the first disk needs it, kept for a while when the last has gone, and opened anew
when it has broken. `xorepctl throttle` shows it among the links; its rate is set by `throttled`.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog

from xorepd.plugin import DataError, LinkState, Refused, to_the_end
from xorepd.relay.certificates import client_context
from xorepd.relay.protocol.mux import Connection
from xorepd_compressed.errors import NotTrusted
from xorepd_compressed.options import Access
from xorepd_compressed.room import House

log = structlog.get_logger(__name__)

LINGER_S = 20.0
"""A run reads back what it sent, and VMs of one job follow each other: a new connection would cost
each of them three round trips, and the relay's memory of what it has seen."""
SILENCE_S = 30.0
"""A relay that is alive answers three times as often; one that hangs costs the run so long."""
CLOSE_S = 10.0
PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Between attempts to connect. A relay that restarts is back by then."""


@dataclass(slots=True, eq=False)
class _Line:
    """A connection, and who uses it."""

    access: Access
    connection: Connection
    places: asyncio.Semaphore
    users: int = 0
    visits: int = 0
    """How often a disk has used it; voids an idle timeout that began before the last use."""
    farewell: asyncio.Task[None] | None = None

    @property
    def is_good(self) -> bool:
        return not self.connection.ended.is_set()


class RelayLink:
    """What the disks on a link share (`xorepd.transports.links.Link`)."""

    def __init__(self, terms: Access) -> None:
        self.terms = terms
        self.house = House()
        self._line: _Line | None = None
        self._connecting: asyncio.Lock | None = None
        self._attempts = 0
        self._refusal = ""
        self._streams = self._passed = 0

    # -- what the operator sees ------------------------------------------------------------------

    def renew(self, terms: Access) -> None:
        """Live by these terms: disks under way stay on the connection that they have."""
        self.terms = terms

    def set_rate(self, rate: float | None) -> None:
        raise ValueError(
            "the connection to a relay has no rate of its own; "
            "wrap compressed in throttled (through = …) and set the rate of that link"
        )

    def state(self) -> LinkState:
        return LinkState(math.inf, "configuration", self._streams, self._passed)

    # -- what disks use --------------------------------------------------------------------------

    def passed(self, size: int) -> None:
        """Count bytes that went to the relay."""
        self._passed += size

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """Provide the connection to one disk, with a place for it at the relay.

        Raises:
            DataError: the relay is not available.
        """
        line = await self._open()
        line.users, line.visits = line.users + 1, line.visits + 1
        self._streams += 1
        try:
            async with line.places:
                line.connection.check()
                yield line.connection
        finally:
            self._streams -= 1
            line.users -= 1
            if not line.users:
                line.farewell = asyncio.get_running_loop().create_task(
                    self._leave(line, line.visits), name=f"idle {line.connection.what}"
                )

    async def _open(self) -> _Line:
        """Return a connection that stands: the one there is, or a new one."""
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        seen = self._attempts
        async with self._connecting:
            line = self._line
            if line is not None and line.is_good and line.access == self.terms:
                return line
            if self._attempts > seen:  # another disk has just tried, while this one waited
                raise DataError(self._refusal)
            access = self.terms
            try:
                connection = await _dial(access)
            except DataError as error:
                self._attempts += 1
                self._refusal = str(error)
                raise
            places = asyncio.Semaphore(connection.peer.channels)
            self._line = _Line(access, connection, places)
            return self._line

    async def _leave(self, line: _Line, visits: int) -> None:
        """Close an idle connection after a while; a broken one at once.

        Args:
            visits: of the line when its last user left.
        """
        try:
            if line is self._line:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        await line.connection.ended.wait()
        finally:  # also when the loop ends
            if line.visits == visits:
                if self._line is line:  # no disk may use it any more
                    self._line = None
                await to_the_end(line.connection.close(), CLOSE_S)


async def _dial(access: Access) -> Connection:
    """Connect; try again where a moment may help.

    Raises:
        DataError: it did not help.
    """
    try:
        context = await asyncio.to_thread(client_context, access.certificate, access.key, access.ca)
    except Refused as error:
        raise NotTrusted(f"relay {access.address}: {error}") from error
    for pause in PAUSES_S:
        try:
            return await _connect(access, context)
        except DataError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise NotTrusted(str(error)) from error
            if not isinstance(error.__cause__, ConnectionError):
                raise  # a name does not mend itself, and silence took its time
            log.warning("relay.unreachable", relay=access.address, reason=str(error))
        await asyncio.sleep(pause)
    return await _connect(access, context)


async def _connect(access: Access, context: ssl.SSLContext) -> Connection:
    return await Connection.dial(access.host, access.port, context, access.name, silence=SILENCE_S)
