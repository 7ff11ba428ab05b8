"""Everything of one pool member that listens: opened, closed and cut as one."""

import asyncio

from xorepd_lab.calls.call import Pool
from xorepd_lab.faults.faults import Faults
from xorepd_lab.front.certificates import server_context
from xorepd_lab.front.nbd_server import NbdFront
from xorepd_lab.front.server import Front


class Frontage:
    """The servers of one member, always at the same ports."""

    def __init__(self, pool: Pool, host: str, faults: Faults) -> None:
        self._pool = pool
        self.host = host
        self.front = Front(pool, host, faults)
        self.nbd = NbdFront(pool, host, faults)
        self._opening = asyncio.Lock()
        self._closed = 0
        """How often it was closed: who opens sees whether that happened meanwhile."""
        self.listening = False

    async def open(self) -> None:
        """Listen: with TLS, and without unless the host is https-only."""
        async with self._opening:
            if self.listening:
                return
            closed = self._closed
            pool, address = self._pool, self._pool.address(self.host)
            context = server_context(pool.certificates[self.host])
            await self.front.listen(address, pool.https_port, context)
            if not pool.db.get("host", self.host, "https_only"):
                await self.front.listen(address, pool.http_port)
            if not self.nbd.listening:
                await self.nbd.listen(address, pool.nbd_port)
            self.listening = closed == self._closed
            if not self.listening:
                self.front.close()

    async def set_plain(self, opened: bool) -> None:
        """Open or close the port without TLS; connections to it go on."""
        if self.listening:
            self.front.close(self._pool.http_port)
            if opened:
                await self.front.listen(self._pool.address(self.host), self._pool.http_port)

    def close(self) -> None:
        """Stop listening as a toolstack does that ends; connections and NBD go on."""
        self.listening = False
        self._closed += 1
        self.front.close()

    def cut(self, streams: bool) -> None:
        """Cut all connections; those that carry disks, and NBD as a whole, only if told so."""
        self.front.cut(streams)
        if streams:
            self.nbd.close()
