"""A typed client of a running daemon, for `xorepctl` and for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from pydantic import ValidationError
from pydantic_core import from_json

from xorepd.control.protocol import (
    API,
    API_HEADER,
    ErrorReply,
    Event,
    ForgetPlanReply,
    ForgetReply,
    HistoryReply,
    JobsReply,
    LinkReply,
    LinksReply,
    OrphansReply,
    ReloadReply,
    Reply,
    RunAccepted,
    RunReply,
    StatusReply,
    VersionReply,
    parse_event,
)
from xorepd.errors import ControlError

R = TypeVar("R", bound=Reply)

REPLY_TIMEOUT_S = 60.0
MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longest event. The last event of a run holds the records of all its VMs."""
MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Longest reply. A thousand records of the history take a few MiB."""


class NoDaemon(ControlError):
    """Nothing answers on the control socket."""

    def __init__(self, socket: Path, reason: str) -> None:
        self.socket = socket
        super().__init__(
            f"no daemon answers on {socket} ({reason}); is xorepd running?", status=503
        )


class Client:
    """A connection to the daemon behind one socket; an async context manager."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            "http://xorepd",
            connector=aiohttp.UnixConnector(str(self._socket)),
            timeout=aiohttp.ClientTimeout(total=REPLY_TIMEOUT_S),
            read_bufsize=MAX_LINE_BYTES,
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._http is not None
        await self._http.close()

    async def version(self) -> VersionReply:
        return await self._call("GET", "/version", VersionReply)

    async def status(self) -> StatusReply:
        return await self._call("GET", "/status", StatusReply)

    async def jobs(self) -> JobsReply:
        return await self._call("GET", "/jobs", JobsReply)

    async def start_run(self, job: str, *, allow_full: bool = False) -> RunAccepted:
        query = {"allow_full": "true"} if allow_full else None
        return await self._call("POST", f"/jobs/{_segment(job)}/run", RunAccepted, query)

    async def cancel_run(self, job: str) -> RunAccepted:
        return await self._call("POST", f"/jobs/{_segment(job)}/cancel", RunAccepted)

    async def run(self, run_id: str) -> RunReply:
        return await self._call("GET", f"/runs/{_segment(run_id)}", RunReply)

    async def history(self, job: str | None = None, limit: int = 50) -> HistoryReply:
        query = {"limit": str(limit)} | ({"job": typed(job)} if job is not None else {})
        return await self._call("GET", "/history", HistoryReply, query)

    async def orphans(self) -> OrphansReply:
        return await self._call("GET", "/orphans", OrphansReply)

    async def forget_plan(self, stream: str, terms: Collection[str] = ()) -> ForgetPlanReply:
        """Return what forgetting a replica would do, on terms such as `keep_replica`."""
        return await self._call("GET", "/forget", ForgetPlanReply, _forgotten(stream, terms))

    async def forget(
        self, stream: str, terms: Collection[str] = ()
    ) -> AsyncGenerator[ForgetReply, None]:
        """Forget a replica and yield each step. The daemon stops if the client disconnects.

        Raises:
            ControlError: the daemon refused, or did not complete the work.
        """
        forever = aiohttp.ClientTimeout(total=None)
        query = _forgotten(stream, terms)
        async with self._request("POST", "/forget", params=query, timeout=forever) as response:
            async for line in _lines(response):
                try:
                    told = ForgetReply.model_validate_json(line)
                except ValidationError as error:
                    raise _senseless("an event", error) from error
                yield told
                if told.done or told.error is not None:
                    return
        raise ControlError("the daemon stopped before it was done; forget it again", status=503)

    async def links(self) -> LinksReply:
        return await self._call("GET", "/links", LinksReply)

    async def set_rate(self, link: str, rate: str) -> LinkReply:
        path = f"/links/{_segment(link)}"
        return await self._call("POST", path, LinkReply, {"rate": typed(rate)})

    async def reload(self) -> ReloadReply:
        return await self._call("POST", "/reload", ReloadReply)

    async def watch_run(self, run_id: str) -> AsyncGenerator[Event, None]:
        """Yield the records of a run as they change; `Finished` is the last event.

        Raises:
            ControlError: the daemon refused, or stopped before the run ended.
        """
        # No timeout of any kind: hours may pass between two events.
        forever = aiohttp.ClientTimeout(total=None)
        path = f"/runs/{_segment(run_id)}/events"
        async with self._request("GET", path, timeout=forever) as response:
            async for line in _lines(response):
                try:
                    event = parse_event(from_json(line))
                except (KeyError, TypeError, ValueError) as error:
                    raise _senseless("an event", error) from error
                yield event

    async def _call(
        self, method: str, path: str, shape: type[R], query: dict[str, str] | None = None
    ) -> R:
        async with self._request(method, path, params=query) as response:
            body = await _body(response)
        try:
            return shape.model_validate_json(body)
        except ValidationError as error:
            raise _senseless(f"the reply to {method} {path}", error) from error

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request. A refusal or a lost connection raises `ControlError`."""
        assert self._http is not None, "used outside its context"
        requesting = self._http.request(method, path, allow_redirects=False, **options)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(REPLY_TIMEOUT_S):  # the body may take hours
                    response = await stack.enter_async_context(requesting)
                if response.status >= 300:
                    raise ControlError(await _refusal(response), status=response.status)
                spoken = response.headers.get(API_HEADER, str(API))
                if spoken != str(API):
                    raise ControlError(
                        f"the daemon speaks version {spoken} of the control interface, and this "
                        f"program version {API}; use the xorepctl of the daemon's version",
                        status=502,
                    )
                yield response
        except aiohttp.ClientConnectorError as error:
            cause = error.os_error
            if isinstance(cause, PermissionError):
                raise ControlError(
                    f"no permission to use {self._socket}; be root, or a member of its group",
                    status=403,
                ) from error
            raise NoDaemon(self._socket, cause.strerror or str(cause)) from error
        except aiohttp.ClientError as error:
            raise NoDaemon(self._socket, "the connection was lost") from error
        except TimeoutError as error:
            raise NoDaemon(self._socket, f"no reply within {REPLY_TIMEOUT_S:.0f} s") from error


def typed(text: str) -> str:
    """Return a command-line argument as text: the locale may have left undecoded bytes in it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _segment(text: str) -> str:
    """Return a text as one segment of a URL path."""
    return quote(typed(text), safe="")


def _forgotten(stream: str, terms: Collection[str]) -> dict[str, str]:
    return {"stream": stream} | dict.fromkeys(terms, "true")


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """Return the sentence of an error reply."""
    try:
        return ErrorReply.model_validate_json(await _body(response)).error
    except ValidationError:
        return f"the daemon refused with status {response.status}"


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of a reply, up to `MAX_REPLY_BYTES`."""
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > MAX_REPLY_BYTES:
            raise ControlError(
                f"the reply is longer than {MAX_REPLY_BYTES // 1024**2} MiB", status=502
            )
    return bytes(body)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a response, each up to `MAX_LINE_BYTES`."""
    while True:
        try:
            line = await response.content.readline()
        except (ValueError, LineTooLong) as error:
            raise ControlError(
                f"an event is longer than {MAX_LINE_BYTES // 1024**2} MiB", status=502
            ) from error
        if not line:
            return
        yield line


def _senseless(what: str, error: Exception) -> ControlError:
    first = " ".join(str(error).split())[:200]
    return ControlError(
        f"{what} cannot be parsed ({first}); use the xorepctl of the daemon's version", status=502
    )
