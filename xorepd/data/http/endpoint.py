"""A pool's HTTP side as the data plane sees it, and what its answers mean.

Facts (xapi: ocaml/xapi/export_raw_vdi.ml, import_raw_vdi.ml, ocaml/libs/http-lib/http_svr.ml):

- the status line comes before the work: 200 says nothing about success, only the task does;
- a failure after that arrives as a whole HTTP response inside the body;
- `302` names a host that sees the SR; query and method stay the same;
- `401` says that the session in the URL is dead, and comes before anything else is looked at;
- a request's header may have 1024 bytes in all.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from yarl import URL

from xorepd.data.http.exchange import HeadError, Response, exchange
from xorepd.errors import (
    NotServed,
    OutcomeUnknown,
    ProtocolViolation,
    Remedy,
    TransferFailed,
    XapiError,
    XorepdError,
)
from xorepd.ids import Ref, VdiUuid
from xorepd.stream import ByteStream, Stalled

STALL_S = 300.0
"""A stream that moves no byte for this long is given up: XAPI attaches disks one after the other
under load, which has been seen to take minutes."""
HEAD_S = 300.0
"""Longest wait for all of an answer's head, which may come after the disk was attached."""
OUTCOME_S = 600.0
"""Longest wait for a task to end after its stream has: flush and detach of the disk."""

_REDIRECTS = 3
_CODE = re.compile(rb"([A-Z][A-Z0-9_]{2,}): \[ ?([^\]]*)\]")
ERROR_PAGE_LIMIT = 4096
PAGE_S = 30.0
"""Longest wait for a page that says what went wrong."""


class Keeper(Protocol):
    """Keeps the content id of a disk that is written (see `xapi.contents`)."""

    is_settled: bool

    async def settle(self) -> None: ...
    async def settle_attached(self) -> None: ...


class Endpoint(Protocol):
    """Requests for the disks of one SR (implemented by `xapi.endpoints.DiskEndpoint`)."""

    @property
    def pool(self) -> str: ...
    async def connect(self, url: URL, stall: float) -> ByteStream: ...
    def url(self, path: str, query: Mapping[str, str]) -> URL: ...
    def redirected(self, location: str, asked: URL) -> URL: ...
    async def renew(self) -> None: ...
    async def begin(self, label: str) -> Ref: ...
    async def outcome(self, task_ref: Ref, timeout: float) -> Sequence[str]: ...
    async def discard(self, task_ref: Ref) -> None: ...
    def keeping(
        self, vdi: VdiUuid, content: str, task: Ref
    ) -> AbstractAsyncContextManager[Keeper]: ...
    def explain(self, code: str, params: Sequence[str]) -> tuple[str, Remedy]:
        """Return a sentence with advice for an error of the pool, and its remedy."""
        ...


@asynccontextmanager
async def task_of(endpoint: Endpoint, label: str) -> AsyncIterator[Ref]:
    """Provide a task for one request, and remove it afterwards, come what may."""
    task_ref = await endpoint.begin(label)
    try:
        yield task_ref
    finally:
        await endpoint.discard(task_ref)


@asynccontextmanager
async def respond(
    endpoint: Endpoint,
    method: str,
    path: str,
    query: Mapping[str, str],
    what: str,
    *,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Response]:
    """Send the head of a request, follow its redirects, and provide the answer once it is 200.

    Args:
        what: the disk and direction, for messages.

    Raises:
        DataError: any other status, or no answer.
    """
    url = endpoint.url(path, query)
    renewed = False
    for _ in range(_REDIRECTS + 1):
        try:
            stream = await endpoint.connect(url, STALL_S)
        except OSError as error:
            raise lost(what, error) from error
        except ValueError as error:  # a name that is none
            raise ProtocolViolation(what, f"{endpoint.pool} names a host that is none") from error
        async with stream:
            try:
                async with asyncio.timeout(HEAD_S):
                    response = await exchange(stream, method, url, headers or {})
                page = (
                    b"" if response.status == 200 else await response.text(ERROR_PAGE_LIMIT, PAGE_S)
                )
            except HeadError as error:
                raise ProtocolViolation(what, str(error)) from error
            except (OSError, EOFError) as error:
                raise lost(what, error) from error
            if response.status == 302:
                try:
                    url = endpoint.redirected(response.headers.get("Location", ""), url)
                except ValueError as error:
                    raise ProtocolViolation(
                        what, f"{endpoint.pool} redirects to nowhere"
                    ) from error
                continue
            if response.status == 401 and not renewed:
                await endpoint.renew()
                url, renewed = endpoint.url(path, query), True
                continue
            if response.status != 200:
                raise http_failure(endpoint, what, response.status, page)
            yield response
            return
    raise ProtocolViolation(what, f"{endpoint.pool} redirected {_REDIRECTS + 1} times")


def http_failure(endpoint: Endpoint, what: str, status: int, page: bytes) -> TransferFailed:
    """Return the error that an HTTP error page of XAPI stands for."""
    if status == 404:
        return NotServed(what, f"HTTP status {status}", [])
    found = _CODE.search(page)
    if found is None:
        return TransferFailed(what, f"HTTP status {status}", [])
    params = [p.strip() for p in found[2].decode("utf-8", "replace").split(";")]
    return refused(endpoint, what, found[1].decode(), params)


def refused(endpoint: Endpoint, what: str, code: str, params: Sequence[str]) -> TransferFailed:
    """Return the error for what a pool gives as the reason of a failed transfer."""
    said, remedy = endpoint.explain(code, params)
    return TransferFailed(what, code, [*params], said=said, remedy=remedy)


def lost(what: str, error: BaseException) -> ProtocolViolation:
    """Return the error for a connection that broke, without the URL, which is a credential."""
    if isinstance(error, Stalled):
        reason = f"no byte moved for {STALL_S:.0f} s"
    elif isinstance(error, TimeoutError):
        reason = "it took too long"
    elif isinstance(error, ssl.SSLError):
        reason = "the host's certificate is not trusted; set ca_file or fingerprint of its pool"
        if not isinstance(error, ssl.SSLCertVerificationError) and error.reason:
            reason = f"TLS failed with {error.reason}"
    elif isinstance(error, EOFError):
        reason = "it ended before the answer"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = type(error).__name__
    return ProtocolViolation(what, f"the connection broke ({reason})")


async def verdict(endpoint: Endpoint, task_ref: Ref, what: str, *, timeout: float) -> None:
    """Wait for the end of a request's task; only it tells whether the request succeeded.

    Raises:
        TransferFailed: what the task failed with, or that its outcome stays unknown.
    """
    try:
        error_info = await endpoint.outcome(task_ref, timeout)
    except (TimeoutError, XapiError) as error:
        reason = str(error) or f"its task did not end within {timeout:.0f} s"
        raise OutcomeUnknown(what, reason) from error
    if error_info:
        code, *params = error_info
        raise refused(endpoint, what, code, params)


BROKEN_S, SUSPECT_S = 5.0, 0.5
"""How long the task is asked why: of a connection that ended, and of one that carries nonsense. The
first kind of task has ended or is about to; the second may be waiting for us to read on."""


async def explained(
    endpoint: Endpoint, task_ref: Ref, what: str, error: XorepdError, *, timeout: float = BROKEN_S
) -> XorepdError:
    """Return the better explanation of a broken stream: the task's, when it has one.

    The server closed early because it had something to say; the task says it best.
    """
    try:
        await verdict(endpoint, task_ref, what, timeout=timeout)
    except TransferFailed as told:
        return told
    except OutcomeUnknown:
        pass
    return error
