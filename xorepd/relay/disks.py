"""The disks of a relay: permissions, turns, and the pools of the disks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import structlog

from xorepd.config.models import PoolSettings
from xorepd.data.http.chunked import open_chunked
from xorepd.data.nbd.reader import NbdConnectionLimit
from xorepd.errors import XapiError
from xorepd.process.lending import Pools
from xorepd.relay.authority import NotAllowed, disk_for
from xorepd.relay.cache import BlockCache
from xorepd.relay.disk import DiskWriter
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.channel import Channel
from xorepd.relay.protocol.ledger import Ledger
from xorepd.relay.protocol.messages import Code
from xorepd.relay.readback import digest_of, receive_extents
from xorepd.relay.settings import ClientTable, RelaySettings
from xorepd.tasks import background
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool, task_owner
from xorepd.xapi.records import OWNER_PREFIX

log = structlog.get_logger(__name__)

STOPPING = "the relay is being stopped"

HOLD_S = 20.0
"""Interval between signs of life to a client whose disk waits for its turn, perhaps for hours."""


class Disks:
    """The disks that one relay writes and reads.

    Args:
        pools: Opens the configured pools, each when it is first needed.
    """

    def __init__(self, settings: RelaySettings, pools: Pools[Pool]) -> None:
        self._settings, self._pools = settings, pools
        self._window = settings.relay.window
        self._slots = asyncio.Semaphore(settings.relay.disks)
        self._nbd = NbdConnectionLimit()
        self._uuids: dict[str, PoolSettings] = {}
        """Pools with known UUIDs."""
        self._writing: set[str] = set()
        """UUIDs of the disks that are written or wait for their turn."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_stopping = False

    @property
    def count(self) -> int:
        """Return the number of disks that are being written."""
        return len(self._writing)

    def apply(self, settings: RelaySettings) -> None:
        """Put a new configuration in force, for disks from now on."""
        self._settings = settings
        self._uuids.clear()
        self._pools.retain(settings.pools)

    async def drain(self, grace: float) -> None:
        """Accept no more disks, and wait up to `grace` seconds for the current ones."""
        self.is_stopping = True
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            log.warning("relay.grace_expired", disks=self.count)

    async def write(
        self, channel: Channel, asked: wire.Open, client: str, cache: BlockCache
    ) -> wire.Verdict:
        """Write a disk with the data of a client.

        Raises:
            NotAllowed: the client may not write the disk.
            WireError: the client violates the protocol.
            XorepdError: the pool fails, or the connection is lost.
        """
        task_owner.set(OWNER_PREFIX + asked.stream)
        what = f"{asked.what}, through the relay"
        async with AsyncExitStack() as stack:
            if asked.vdi in self._writing:
                return wire.Refuse(Code.BUSY, f"disk {asked.vdi} is being written already")
            stack.enter_context(self._as_writing(asked.vdi))
            await stack.enter_async_context(self._turn(channel))
            if self.is_stopping:
                return wire.Refuse(Code.BUSY, STOPPING)
            pool = await stack.enter_async_context(self._lend(asked.pool))
            vdi, sr, mark = disk_for(asked, pool.cache, client, self._allowed(client))
            ledger = Ledger(asked.virtual_size)
            disk: DiskWriter | None = None

            def segment_ended(_: int) -> None:
                if disk is not None:
                    disk.segment_ended()

            writer = await stack.enter_async_context(
                open_chunked(
                    DiskEndpoint(pool, sr.ref),
                    vdi.uuid,
                    fresh=not asked.base,
                    what=what,
                    confirmed_to=segment_ended,
                    content=mark.content,
                )
            )
            disk = DiskWriter(channel, ledger, writer, cache)
            log.info("disk.opened", disk=asked.what, base=asked.base, sr=sr.uuid)
            channel.accept(self._window, wire.Feature.REFERENCES)
            return await disk.run()

    async def read(self, channel: Channel, asked: wire.Open, client: str) -> wire.Verdict:
        """Read a disk back and return the digest; raises as `write`."""
        task_owner.set(OWNER_PREFIX + asked.stream)
        async with self._turn(channel), self._lend(asked.pool) as pool:
            vdi, sr, _ = disk_for(asked, pool.cache, client, self._allowed(client))
            channel.accept(self._window, wire.Feature(0))
            extents = await receive_extents(channel, asked.virtual_size)
            what = f"{asked.what}, check"
            return wire.Digested(
                await digest_of(pool, vdi, sr, asked.base, extents, self._nbd, what)
            )

    def _allowed(self, client: str) -> tuple[str, ...]:
        return self._settings.clients.get(client, ClientTable()).pools

    @contextmanager
    def _as_writing(self, vdi: str) -> Iterator[None]:
        self._writing.add(vdi)
        self._idle.clear()
        try:
            yield
        finally:
            self._writing.discard(vdi)
            if not self._writing:
                self._idle.set()

    @asynccontextmanager
    async def _turn(self, channel: Channel) -> AsyncIterator[None]:
        """Wait for a free slot, and send the client signs of life meanwhile."""

        async def hold() -> None:
            while True:
                await asyncio.sleep(HOLD_S)
                channel.hold()

        async with AsyncExitStack() as stack:
            async with background(("holding", hold())):
                await stack.enter_async_context(self._slots)
            yield

    @asynccontextmanager
    async def _lend(self, uuid: str) -> AsyncIterator[Pool]:
        """Provide the configured pool with this UUID, with current records.

        Raises:
            NotAllowed: no configured pool has this UUID.
            XapiError: a pool does not answer, so its UUID is unknown.
        """
        failure: XapiError | None = None
        known = self._uuids.get(uuid)
        for settings in (known,) if known else tuple(self._settings.pools.values()):
            async with AsyncExitStack() as stack:
                pool = await stack.enter_async_context(self._pools.lend(settings))
                try:
                    await pool.refresh()
                except XapiError as error:
                    failure = error
                    continue
                if pool.cache.pool.uuid == uuid:
                    self._uuids[uuid] = settings
                    yield pool
                    return
        if failure is not None:
            raise failure
        raise NotAllowed(f"this relay has no pool {uuid!r} in its configuration")
