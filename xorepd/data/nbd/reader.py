"""Reader: any extents of a disk over NBD, from as many connections as it is given.

Requests go out in the order of the disk, round the connections, and are taken in that order. What a
server sends ahead of us waits in the socket's own buffer; so reading ahead takes no buffer of ours
and needs no worker: how far ahead is a number. It grows while we are the ones who wait, as far as
the daemon's memory goes, and shrinks while we never wait. What is in sockets counts as memory: the
kernel charges it to the daemon's control group.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import structlog

from xorepd.data.memory_budget import Allocation, ReadAhead
from xorepd.data.nbd.exports import NbdExport
from xorepd.data.nbd.protocol import NbdConnection, open_nbd
from xorepd.data.reader import Piece
from xorepd.errors import AddressFailed, DataError, ProtocolViolation
from xorepd.extents import Extent, split
from xorepd.units import MiB

log = structlog.get_logger(__name__)

PIECE = 1 * MiB
"""Largest read: beyond it nothing gets cheaper (`make bench-relay`)."""
FIRST_WINDOW = 2 * MiB
"""Bytes under way at the beginning, on all connections of a disk together."""
LARGEST_READ_AHEAD = 16 * MiB
"""Bytes under way for each connection at most: they cover 1 Gbit/s at 130 ms."""
EASY = 8
"""The window shrinks by a piece when so many times its size has come without our waiting for it."""
MOST_READS = 256
"""Reads under way for each connection at most: their requests fit into any socket."""
TRIES, PAUSE_S = 5, 1.0
"""How often the connections are opened anew without a byte in between, and the first pause. A
server that restarts, or lets go of a disk, takes seconds; the pause doubles each time."""

FAILED_S, LONGEST_FAILED_S = 60.0, 1800.0
"""How long an address that failed is not asked by other disks; it doubles each time."""
FINDING_S = 60.0
"""After so long no further address of a disk is tried."""

OpenConnections = Callable[[], AbstractAsyncContextManager[Sequence[NbdConnection]]]
"""Open the connections of one disk: at least one."""


class NbdReader:
    """One disk, or some extents of it, read over NBD; make it with `open_nbd_reader`."""

    def __init__(
        self,
        open_connections: OpenConnections,
        virtual_size: int,
        extents: Iterable[Extent],
        what: str,
        allocation: Allocation | None = None,
    ) -> None:
        self._open, self._what, self._allocation = open_connections, what, allocation
        self.virtual_size, self.extents = virtual_size, extents
        self._stack = AsyncExitStack()
        self._connections: Sequence[NbdConnection] = ()
        self.reconnects = 0

    def narrow(self, extents: Iterable[Extent]) -> None:
        """Read other extents instead; before the first piece."""
        self.extents = extents

    async def connect(self) -> None:
        """Open the connections, or open them anew.

        Raises:
            DataError: the disk is not served, or another one is.
        """
        await self.close()
        self._connections = await self._stack.enter_async_context(self._open())
        for connection in self._connections:
            if connection.size < self.virtual_size:
                raise ProtocolViolation(
                    self._what,
                    f"NBD serves {connection.size} bytes, the disk has {self.virtual_size}",
                )

    async def close(self) -> None:
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        requests = (part for extent in self.extents for part in split(extent, PIECE))
        asked: deque[Extent] = deque()
        buffer = memoryview(bytearray(PIECE))
        tries = 0
        largest = LARGEST_READ_AHEAD * len(self._connections)
        with closing(ReadAhead(self._allocation, FIRST_WINDOW, largest)) as window:
            while True:
                try:
                    if tries:
                        await self.connect()
                    ahead = _Ahead(self._connections, window)
                    await ahead.ask(asked)  # what broken connections owed us
                    while True:
                        if ahead.has_room:
                            more = list(ahead.fill(requests))
                            asked.extend(more)
                            await ahead.ask(more)
                        if not asked:
                            return
                        part = asked[0]
                        data = buffer[: part.length]
                        await ahead.take(data)
                        asked.popleft()
                        tries = 0
                        yield part.offset, data
                except DataError as error:
                    tries += 1
                    if tries >= TRIES:
                        raise
                    self.reconnects += 1
                    log.warning(
                        "nbd.reconnecting", disk=self._what, error=str(error), attempt=tries
                    )
                    await asyncio.sleep(PAUSE_S * 2 ** (tries - 1))


class _Ahead:
    """The reads under way on some connections: a window of bytes, which grows while we wait."""

    def __init__(self, connections: Sequence[NbdConnection], window: ReadAhead) -> None:
        self._connections = connections
        self._turns = cycle(connections)
        self._owners: deque[NbdConnection] = deque()
        self._window = window
        self._under_way = 0
        self._easily = 0
        """Bytes that came since we last waited for any."""

    @property
    def has_room(self) -> bool:
        """Whether it is time to ask for more: not for each read, but for many together."""
        reads = MOST_READS * len(self._connections)
        return self._under_way <= self._window.size // 2 and len(self._owners) <= reads // 2

    def fill(self, requests: Iterator[Extent]) -> Iterator[Extent]:
        """Take from some requests what may be asked for now."""
        self._window.fit(self._under_way)
        size, reads = self._under_way, len(self._owners)
        while size < self._window.size and reads < MOST_READS * len(self._connections):
            request = next(requests, None)
            if request is None:
                return
            yield request
            size, reads = size + request.length, reads + 1

    async def ask(self, parts: Collection[Extent]) -> None:
        """Ask for some reads, the connections in turn."""
        shares: dict[NbdConnection, list[Extent]] = {}
        for part, owner in zip(parts, self._turns, strict=False):
            shares.setdefault(owner, []).append(part)
            self._owners.append(owner)
            self._under_way += part.length
        for owner, share in shares.items():
            await owner.ask(*share)

    async def take(self, target: memoryview) -> None:
        """Wait for the oldest read."""
        owner = self._owners.popleft()
        if owner.is_behind:
            self._easily = 0
            self._window.widen(PIECE)
        else:
            self._easily += len(target)
            if self._easily > EASY * self._window.size:
                self._easily = 0
                self._window.narrow(PIECE)
        await owner.take(target)
        self._under_way -= len(target)


@asynccontextmanager
async def open_nbd_reader(
    open_connections: OpenConnections,
    virtual_size: int,
    extents: Iterable[Extent],
    what: str,
    allocation: Allocation | None = None,
) -> AsyncIterator[NbdReader]:
    """Open a disk for reading some extents of it.

    Args:
        open_connections: called now, and again after a connection broke.
        virtual_size: what the pool says the disk has; the export may be rounded up.
        extents: sorted, disjoint, multiples of 512 bytes.
        what: the disk, for messages.
        allocation: what reading ahead takes its memory from; None lets it take what it likes.

    Raises:
        DataError: the disk is not served over NBD at this moment.
    """
    reader = NbdReader(open_connections, virtual_size, extents, what, allocation)
    try:
        await reader.connect()
        yield reader
    finally:
        await reader.close()


class NbdConnectionLimit:
    """How many connections we have open to each host: XAPI's server takes 16 from all its clients.

    It remembers which addresses failed, for all disks of the daemon: each that asks there again
    waits in vain for as long as the first did.

    Args:
        per_host: ours among them.
    """

    def __init__(self, per_host: int = 8) -> None:
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(per_host)
        )
        self._failures: dict[tuple[str, int], _Failure] = {}

    @asynccontextmanager
    async def connections(
        self,
        exports: Sequence[NbdExport],
        most: int,
        what: str,
        *,
        stall: float,
        again: bool = False,
    ) -> AsyncIterator[list[NbdConnection]]:
        """Open up to `most` connections, spread over the hosts that serve a disk.

        They are opened one after the other, because each attaches the disk. The first has to
        succeed on some host, after waiting for a free slot there; others are a bonus.

        Args:
            again: whether the disk had connections before; then addresses that failed are asked
                all the same, for they may be about to come back.

        Raises:
            DataError: no host serves the disk.
        """
        async with AsyncExitStack() as stack:
            opened = [await self._first(stack, exports, what, stall, again)]
            for export in islice(cycle(exports), most - 1):
                if self._slots[export.address].locked():
                    continue
                try:
                    opened.append(await self._enter(stack, export, what, stall, again=False))
                except DataError as error:
                    log.info("nbd.fewer_connections", disk=what, reason=str(error))
                    break
            yield opened

    async def _first(
        self,
        stack: AsyncExitStack,
        exports: Sequence[NbdExport],
        what: str,
        stall: float,
        again: bool,
    ) -> NbdConnection:
        failure: DataError = ProtocolViolation(what, "no host serves the disk over NBD")
        until = asyncio.get_running_loop().time() + FINDING_S
        for export in sorted(exports, key=self._rank):
            if asyncio.get_running_loop().time() > until:
                break
            try:
                return await self._enter(stack, export, what, stall, again)
            except DataError as error:
                failure = error
        raise failure

    def _rank(self, export: NbdExport) -> tuple[bool, bool]:
        """Return what sorts exports: those at hand first."""
        return self._failing(export) is not None, self._slots[export.address].locked()

    async def _enter(
        self, stack: AsyncExitStack, export: NbdExport, what: str, stall: float, again: bool
    ) -> NbdConnection:
        async with AsyncExitStack() as own:
            await own.enter_async_context(self._slots[export.address])
            failing = None if again else self._failing(export)
            if failing is not None:
                raise AddressFailed(what, f"{failing.reason}, and is not asked again for a while")
            try:
                connection = await own.enter_async_context(open_nbd(export, what, stall=stall))
            except AddressFailed as error:
                self._note(export, error)
                raise
            self._failures.pop(export.place, None)
            connection.on_stall = partial(self._note, export)
            stack.push_async_exit(own.pop_all())
            return connection

    def _failing(self, export: NbdExport) -> _Failure | None:
        failure = self._failures.get(export.place)
        now = asyncio.get_running_loop().time()
        return failure if failure is not None and now < failure.until else None

    def _note(self, export: NbdExport, error: DataError) -> None:
        """Remember that an address failed: each time for twice as long as before."""
        now = asyncio.get_running_loop().time()
        before = self._failures.get(export.place)
        count = 1 if before is None else before.count + 1
        pause = min(FAILED_S * 2 ** min(count - 1, 16), LONGEST_FAILED_S)
        for place in [p for p, each in self._failures.items() if each.until + pause < now]:
            del self._failures[place]
        reason = error.reason if isinstance(error, ProtocolViolation) else str(error)
        self._failures[export.place] = _Failure(reason, count, now + pause)
        log.warning("nbd.failing", address=export.address, port=export.port, pause_s=pause)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why an address is left alone, and until when (loop time)."""

    reason: str
    count: int
    until: float
