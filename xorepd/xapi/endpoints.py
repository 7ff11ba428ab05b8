"""The HTTP side of a pool: where the disks of an SR are exported and imported.

A host that does not see the SR answers with a redirect. So requests go to a host that has the SR
attached, preferably the master. Redirects name only `https://<host.address>`; scheme and port stay
the ones that are known to work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

from yarl import URL

from xorepd.errors import Refused, Remedy
from xorepd.ids import Ref, VdiUuid
from xorepd.stream import ByteStream
from xorepd.tasks import background
from xorepd.xapi.contents import ContentKeeper
from xorepd.xapi.pool import Pool
from xorepd.xapi.rpc import tls
from xorepd.xapi.rpc.explained import explain
from xorepd.xapi.rpc.failures import redact
from xorepd.xapi.rpc.session import is_address


class DiskEndpoint:
    """Requests for the disks of one SR; implements `data.endpoint.Endpoint`."""

    def __init__(self, pool: Pool, sr: Ref) -> None:
        self._pool, self._sr = pool, sr

    @property
    def pool(self) -> str:
        return self._pool.name

    async def connect(self, url: URL, stall: float) -> ByteStream:
        """Open a connection for a request, with the certificate checks of this pool."""
        session = self._pool.session
        fingerprints = session.fingerprints
        host, port = url.host or "", url.port or 443
        if url.scheme == "http":
            stream = await ByteStream.connect(host, port, stall=stall)
        else:
            stream = await ByteStream.connect(
                host,
                port,
                stall=stall,
                tls=session.ssl_context,
                check_peer=partial(tls.check_fingerprint, fingerprints=fingerprints)
                if fingerprints
                else None,
            )
        stream.guard = self._pool.check
        return stream

    def url(self, path: str, query: Mapping[str, str]) -> URL:
        """Return the URL of a request. It contains the session: never log it."""
        base = URL(self._base())
        return base.with_path(path).with_query(
            {"session_id": self._pool.session.session_ref, **query}
        )

    def redirected(self, location: str, asked: URL) -> URL:
        """Return the URL of a redirect, with the scheme and port that are known to work."""
        target = urlsplit(location)
        base = URL(self._pool.session.url_of(target.hostname or asked.host or ""))
        if target.port is not None:
            base = base.with_port(target.port)
        return base.with_path(asked.path).with_query(asked.query)

    async def renew(self) -> None:
        """Make sure that the session is valid: a request does not notice that it was lost."""
        await self._pool.call("pool.get_all")

    def _base(self) -> str:
        """Return scheme, address and port of a host that has the SR attached."""
        cache = self._pool.cache
        hosts = {
            pbd.host for pbd in cache.pbds.values() if pbd.sr == self._sr and pbd.currently_attached
        }
        able = [
            host
            for ref, host in cache.hosts.items()
            if ref in hosts and host.enabled and is_address(host.address)
        ]
        if not able:
            name = cache.describe("SR", self._sr) or "an SR that is gone"
            raise Refused(
                f"pool {self.pool}: no enabled host has {name} attached; plug one of its PBDs"
            )
        able.sort(key=lambda host: (host.ref != cache.pool.master, host.name_label))
        if able[0].ref == cache.pool.master:
            return self._pool.session.url  # known to work, unlike the address in the record
        return self._pool.session.url_of(able[0].address)

    async def begin(self, label: str) -> Ref:
        """Create the task that shows the result of a request."""
        return await self._pool.create_task(label)

    async def outcome(self, task_ref: Ref, timeout: float) -> Sequence[str]:
        """Wait for the end of a request's task; return its error, or nothing if it succeeded.

        Raises:
            XapiError: the result is unknown: the task is gone, or the pool does not answer.
            TimeoutError: the task did not end within `timeout` seconds.
        """
        task = await self._pool.finished_task(task_ref, timeout)
        if task.status == "success":
            return ()
        return [redact(text) for text in task.error_info] or [f"TASK_{task.status.upper()}"]

    async def discard(self, task_ref: Ref) -> None:
        await self._pool.discard_request(task_ref)

    @asynccontextmanager
    async def keeping(self, vdi: VdiUuid, content: str, task: Ref) -> AsyncIterator[ContentKeeper]:
        """Keep the content id of a disk until the block ends; `settle` at its good end."""
        keeper = ContentKeeper(self._pool, vdi, content, task)
        async with background((f"content {vdi}", keeper.watch())):
            yield keeper

    def explain(self, code: str, params: Sequence[str]) -> tuple[str, Remedy]:
        """Return a sentence with advice for an error of the pool, and its remedy."""
        told = explain(code, params, self._pool.cache.describe)
        return told.text, told.remedy
