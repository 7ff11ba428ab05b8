"""One function per command of the control interface, and the `Service` that they call.

A function parses the request, calls the `Service`, and returns a reply. It refuses a request by
raising `ControlError`, which `server` turns into a status and a sentence.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import fields
from typing import Protocol

from aiohttp import web

from xorepd.control.protocol import (
    MAX_HISTORY,
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
)
from xorepd.errors import ControlError
from xorepd.replication.deciding.forgetting import Terms
from xorepd.units import parse_rate

WRITE_TIMEOUT_S = 30.0
"""A client that reads no event for this long has gone silently, or hangs."""


class Service(Protocol):
    """The commands of the daemon. Each may raise `ControlError`."""

    def version(self) -> VersionReply: ...

    async def status(self) -> StatusReply: ...

    def jobs(self) -> JobsReply: ...

    def start_run(self, job: str, *, allow_full: bool = False) -> RunAccepted:
        """Start a run now; refused while the job is running.

        Args:
            allow_full: Let this run send whole disks although the job has `full = "ask"`.
        """
        ...

    def cancel_run(self, job: str) -> RunAccepted:
        """Cancel the current run. It first removes what the next run cannot continue."""
        ...

    async def run(self, run_id: str) -> RunReply: ...

    async def watch_run(self, run_id: str) -> AsyncGenerator[Event, None]:
        """Return the records of a run as they change, `Finished` last."""
        ...

    async def history(self, job: str | None, limit: int) -> HistoryReply: ...

    async def orphans(self) -> OrphansReply:
        """Return the replicas without a job, from all pools that answer."""
        ...

    async def forget_plan(self, stream: str, terms: Terms) -> ForgetPlanReply:
        """Return what forgetting a replica without a job would do."""
        ...

    async def forget(self, stream: str, terms: Terms) -> AsyncGenerator[ForgetReply, None]:
        """Forget a replica and yield each step. Closing the generator cancels the work."""
        ...

    def links(self) -> LinksReply: ...

    def set_rate(self, link: str, rate: float | None) -> LinkReply:
        """Limit a link to a rate in bytes per second; None: as configured."""
        ...

    async def reload(self) -> ReloadReply: ...


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SERVICE: web.AppKey[Service] = web.AppKey("service")
STREAMS = web.RequestKey("streams", bool)
"""Set on a request whose response has begun: it is too late to send an error."""


async def version(request: web.Request) -> web.Response:
    return _reply(_service(request).version())


async def status(request: web.Request) -> web.Response:
    return _reply(await _service(request).status())


async def jobs(request: web.Request) -> web.Response:
    return _reply(_service(request).jobs())


async def start_run(request: web.Request) -> web.Response:
    if unknown := request.query.keys() - {"allow_full"}:
        raise ControlError(f"run takes allow_full, not {min(unknown)}")
    allow_full = request.query.get("allow_full", "false")
    if allow_full not in {"true", "false"}:
        raise ControlError(f"allow_full is true or false, not {allow_full!r}")
    reply = _service(request).start_run(request.match_info["job"], allow_full=allow_full == "true")
    return _reply(reply, status=202)


async def cancel_run(request: web.Request) -> web.Response:
    return _reply(_service(request).cancel_run(request.match_info["job"]), status=202)


async def run(request: web.Request) -> web.Response:
    return _reply(await _service(request).run(request.match_info["run_id"]))


async def run_events(request: web.Request) -> web.StreamResponse:
    events = await _service(request).watch_run(request.match_info["run_id"])
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    request[STREAMS] = True
    async with aclosing(events) as lines:
        async for event in lines:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await response.write(json.dumps(event.to_json()).encode() + b"\n")
    await response.write_eof()
    return response


async def history(request: web.Request) -> web.Response:
    unknown = request.query.keys() - {"job", "limit"}
    if unknown:
        raise ControlError(f"history takes job and limit, not {min(unknown)}")
    try:
        limit = int(request.query.get("limit", "50"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= MAX_HISTORY:
        raise ControlError(f"limit must be a number from 1 to {MAX_HISTORY}")
    return _reply(await _service(request).history(request.query.get("job"), limit))


async def orphans(request: web.Request) -> web.Response:
    return _reply(await _service(request).orphans())


async def forget_plan(request: web.Request) -> web.Response:
    return _reply(await _service(request).forget_plan(*_forgotten(request)))


async def forget(request: web.Request) -> web.StreamResponse:
    events = await _service(request).forget(*_forgotten(request))
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    request[STREAMS] = True
    async with aclosing(events) as lines:
        async for event in lines:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await response.write(event.model_dump_json().encode() + b"\n")
    await response.write_eof()
    return response


def _forgotten(request: web.Request) -> tuple[str, Terms]:
    """Return the replica to forget, and on which terms."""
    names = {term.name for term in fields(Terms)}
    if unknown := request.query.keys() - names - {"stream"}:
        raise ControlError(f"forget takes stream, {', '.join(sorted(names))}, not {min(unknown)}")
    given = {name: request.query.get(name, "false") for name in names}
    for name, value in given.items():
        if value not in {"true", "false"}:
            raise ControlError(f"{name} is true or false, not {value!r}")
    stream = request.query.get("stream", "")
    if not stream:
        raise ControlError("name the replica as /orphans lists it")
    return stream, Terms(**{name: value == "true" for name, value in given.items()})


async def links(request: web.Request) -> web.Response:
    return _reply(_service(request).links())


async def set_rate(request: web.Request) -> web.Response:
    unknown = request.query.keys() - {"rate"}
    if unknown:
        raise ControlError(f"a link takes rate, not {min(unknown)}")
    rate: float | None
    match request.query.get("rate", ""):
        case "auto":
            rate = None
        case "unlimited":
            rate = math.inf
        case text:
            try:
                rate = parse_rate(text)
            except ValueError as error:
                raise ControlError(f"{error}, or unlimited, or auto") from None
    return _reply(_service(request).set_rate(request.match_info["link"], rate))


async def reload(request: web.Request) -> web.Response:
    return _reply(await _service(request).reload())


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/version", version),
    ("GET", "/status", status),
    ("GET", "/jobs", jobs),
    ("POST", "/jobs/{job}/run", start_run),
    ("POST", "/jobs/{job}/cancel", cancel_run),
    ("GET", "/runs/{run_id}", run),
    ("GET", "/runs/{run_id}/events", run_events),
    ("GET", "/history", history),
    ("GET", "/orphans", orphans),
    ("GET", "/forget", forget_plan),
    ("POST", "/forget", forget),
    ("GET", "/links", links),
    ("POST", "/links/{link}", set_rate),
    ("POST", "/reload", reload),
)
ENDLESS: frozenset[Handler] = frozenset({run_events, forget})
"""Commands that stream events and have no time limit."""


def _service(request: web.Request) -> Service:
    return request.app[SERVICE]


def _reply(reply: Reply, *, status: int = 200) -> web.Response:
    # The newline is for people with curl.
    return web.Response(
        text=reply.model_dump_json() + "\n", status=status, content_type="application/json"
    )
