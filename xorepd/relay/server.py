"""The relay: the connections of clients, and their disks.

    connection ─► channel ─► may this client write this disk? ─► a slot ─► ACCEPT ─► DiskWriter
                                            no ─► REFUSE

A lost connection fails its own disks and no others. A disk that fails leaves an import that XAPI
reports as failed, on a staging disk that the next run of the daemon removes. The relay sends DONE
only after the task of the import has succeeded.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack

import structlog

from xorepd.errors import DataError, XorepdError
from xorepd.process.lending import Pools
from xorepd.relay.authority import NotAllowed
from xorepd.relay.cache import BlockCache, MemoryBudget
from xorepd.relay.certificates import identity, server_context
from xorepd.relay.disks import STOPPING, Disks
from xorepd.relay.handshakes import Threshold
from xorepd.relay.listener import Caller
from xorepd.relay.protocol import messages as wire
from xorepd.relay.protocol.channel import Channel, Over
from xorepd.relay.protocol.frames import WireError
from xorepd.relay.protocol.messages import Code
from xorepd.relay.protocol.mux import Connection
from xorepd.relay.settings import RelaySettings
from xorepd.tasks import first_of
from xorepd.xapi.pool import Pool

log = structlog.get_logger(__name__)

FULL = "the relay has as many connections as it may have; see connections in its configuration"

CHANNELS = 256
"""Most open disks of one client; those beyond `disks` wait for their turn."""


class Relay:
    """Serves the clients of a relay. An async context manager; its exit ends all connections.

    Args:
        pools: Opens the configured pools, each when it is first needed.
    """

    def __init__(self, settings: RelaySettings, pools: Pools[Pool]) -> None:
        self.settings = settings
        self._disks = Disks(settings, pools)
        self._context = _context(settings)
        self._silence = settings.relay.silence
        self._cached = MemoryBudget(settings.relay.memory // 2)
        self._connections: set[Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.threshold = Threshold()
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Relay:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._disks.is_stopping = True
        bye = wire.Bye(Code.NORMAL, STOPPING)
        await asyncio.gather(*(each.close(bye) for each in self._connections))
        for task in self._serving:
            task.cancel()  # including those without a greeting
        await self._group.__aexit__(None, None, None)

    @property
    def clients(self) -> int:
        """Number of connected clients."""
        return len(self._connections)

    @property
    def disks(self) -> int:
        """Number of disks that are being written."""
        return self._disks.count

    def apply(self, settings: RelaySettings) -> None:
        """Put a new configuration in force, for connections and disks from now on.

        Raises:
            Refused: its certificates are invalid.
        """
        self._context = _context(settings)
        self.settings = settings
        self._disks.apply(settings)

    async def drain(self, grace: float) -> None:
        """Accept no more disks, and wait up to `grace` seconds for the current ones."""
        await self._disks.drain(grace)

    def came(self, caller: Caller) -> None:
        """Take over a new connection (`listener.listening`)."""
        if self._disks.is_stopping:
            caller.hang_up()
            return
        task = self._group.create_task(self._serve(caller), name=f"client {caller.address}")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    # -- connections -------------------------------------------------------------------------------

    async def _serve(self, caller: Caller) -> None:
        """Serve one connection to its end, and log why it ended."""
        try:
            async with AsyncExitStack() as stack:
                with self.threshold.at(caller.host):
                    secured = await caller.secure(self._context)
                stream = await stack.enter_async_context(secured)
                client = identity(stream.certificate)
                stack.enter_context(
                    structlog.contextvars.bound_contextvars(client=client, address=caller.address)
                )
                what = f"client {client} at {caller.address}"
                most = self.settings.relay.connections
                if len(self._serving) - len(self.threshold) > 2 * most:
                    log.warning("client.limit_reached", there=len(self._serving))
                    return  # too many to answer each
                connection = await Connection.start(
                    stream, what, "relay", channels=CHANNELS, silence=self._silence
                )
                stack.push_async_callback(connection.close)
                if len(self._connections) >= most:
                    log.warning("client.limit_reached", there=len(self._connections))
                    await connection.close(wire.Bye(Code.BUSY, FULL))
                    return
                self._connections.add(connection)
                stack.callback(self._connections.discard, connection)
                log.info("client.connected", software=connection.peer.software)
                await self._serve_disks(connection, client)
        except (DataError, ValueError, OSError) as error:
            said = str(error) or type(error).__name__
            log.info("client.failed", address=caller.address, reason=said)
        except Exception:
            log.exception("connection.internal_error", address=caller.address)

    async def _serve_disks(self, connection: Connection, client: str) -> None:
        cache = BlockCache(self._cached)
        try:
            async with asyncio.TaskGroup() as group:
                while not connection.ended.is_set():
                    try:
                        channel, asked = await connection.opened()
                    except DataError as error:
                        log.info("client.disconnected", reason=str(error))
                        return
                    group.create_task(
                        self._serve_disk(connection, channel, asked, client, cache),
                        name=f"disk {asked.vdi}",
                    )
        finally:
            cache.clear()

    async def _serve_disk(
        self,
        connection: Connection,
        channel: Channel,
        asked: wire.Open,
        client: str,
        cache: BlockCache,
    ) -> None:
        """Serve one disk until its verdict, or until the client gives it up."""
        verdict: wire.Verdict = wire.Failed(Code.CANCELLED, "it was given up")

        async def work() -> None:
            nonlocal verdict
            verdict = await self._verdict(connection, channel, asked, client, cache)

        with structlog.contextvars.bound_contextvars(vdi=asked.vdi, run_id=asked.run):
            await first_of(work(), channel.given_up.wait())
            facts = {"disk": asked.what, "verdict": verdict.kind.name}
            match verdict:
                case wire.Done():
                    log.info(
                        "disk.written",
                        **facts,
                        received_bytes=verdict.received,
                        cached_bytes=verdict.cached,
                        written_bytes=verdict.written,
                    )
                case wire.Refuse() | wire.Failed():
                    log.warning("disk.failed", **facts, reason=verdict.sentence)
                case wire.Digested():
                    log.info("disk.read", **facts)
        channel.end(verdict)

    async def _verdict(
        self,
        connection: Connection,
        channel: Channel,
        asked: wire.Open,
        client: str,
        cache: BlockCache,
    ) -> wire.Verdict:
        """Write or read a disk; return the verdict. A protocol violation ends the connection."""
        try:
            if self._disks.is_stopping:
                return wire.Refuse(Code.BUSY, STOPPING)
            if asked.read_only:
                return await self._disks.read(channel, asked, client)
            return await self._disks.write(channel, asked, client, cache)
        except NotAllowed as error:
            return wire.Refuse(Code.NOT_ALLOWED, str(error))
        except WireError as error:
            log.warning("client.protocol_violation", what=asked.what, reason=str(error))
            await connection.refuse(error)
            return wire.Failed(Code.VIOLATION, str(error))
        except Over:
            return wire.Failed(Code.CANCELLED, "it was given up")
        except XorepdError as error:
            return wire.Failed(Code.POOL, str(error))
        except Exception as error:
            log.exception("disk.internal_error", what=asked.what)
            return wire.Failed(Code.POOL, f"an error of the relay itself, {type(error).__name__}")


def _context(settings: RelaySettings) -> ssl.SSLContext:
    relay = settings.relay
    return server_context(relay.certificate, relay.key, relay.ca)
