"""The control interface on a Unix socket: access, limits, and errors as sentences."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from xorepd.control.commands import (
    ENDLESS,
    ROUTES,
    SERVICE,
    STREAMS,
    WRITE_TIMEOUT_S,
    Service,
)
from xorepd.control.peers import is_allowed, peer_of
from xorepd.control.protocol import API, API_HEADER, ErrorReply
from xorepd.errors import ConfigError, ControlError, StateError, XorepdError
from xorepd.version import VERSION

log = structlog.get_logger()

REQUEST_TIMEOUT_S = 30.0
"""A reload reads files and a status reads the database: both take seconds at worst."""
MAX_REQUEST_BYTES = 64 * 1024
MAX_STREAMS = 64
"""Most event streams at once. Each costs a task and a socket, so a runaway script is bounded."""
MAX_CONNECTIONS = 256
"""Most clients at once. Each takes a file descriptor of the daemon."""
HEAD_TIMEOUT_S = 10.0
"""The server closes a connection that sends no complete request within this time."""
LOOK_S = 2.0
"""Period at which the server checks that its socket is still at its path."""
BACKLOG = 64


@asynccontextmanager
async def serve(service: Service, path: Path) -> AsyncIterator[None]:
    """Answer requests on a Unix socket while a block lasts.

    Raises:
        StateError: something else is at that path, or another daemon listens there.
    """
    endpoint = _Door(path)
    group = os.stat(path).st_gid
    app = web.Application(
        client_max_size=MAX_REQUEST_BYTES, middlewares=[_guard(os.getuid(), group)]
    )
    app[SERVICE] = service
    for method, route, handler in ROUTES:
        app.router.add_route(method, route, handler)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_library_log(),
        keepalive_timeout=HEAD_TIMEOUT_S,
        auto_decompress=False,
        # A client that disconnects ends its event stream at once, not at the next event.
        handler_cancellation=True,
        # By now the runs have ended, and with them every event stream.
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        assert runner.server is not None
        async with endpoint.open(runner.server):
            yield
    finally:
        await runner.cleanup()
        endpoint.remove()


def _library_log() -> logging.Logger:
    """Return a log for aiohttp that drops the faults of clients, which it logs as our errors."""

    def is_ours(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, web.RequestPayloadError | HttpProcessingError | OSError)

    logger = logging.getLogger("aiohttp.server.control")
    logger.filters = [is_ours]
    return logger


class _Door:
    """A socket at a path. It is created again when it has been removed.

    Raises:
        StateError: something else is at that path, or another daemon listens there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener, self._inode = _bind(path)
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def open(self, web_server: web.Server) -> AsyncIterator[None]:
        """Accept clients while a block lasts."""

        def accept() -> asyncio.Protocol:
            if len(web_server.connections) >= MAX_CONNECTIONS:
                log.warning("control.limit_reached", there=MAX_CONNECTIONS)
                return _Refusal()
            return web_server()

        loop = asyncio.get_running_loop()
        await self._listen(accept)
        looking = loop.create_task(self._keep_there(accept), name="control socket")
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait({looking})
            self._close()

    def remove(self) -> None:
        """Remove the socket, if it is ours."""
        self._listener.close()
        if _inode_of(self._path) == self._inode:
            with suppress(OSError):
                self._path.unlink()

    async def _listen(self, accept: Callable[[], asyncio.Protocol]) -> None:
        # Not a SockSite: uvloop does not let it have a Unix socket.
        self._server = await asyncio.get_running_loop().create_unix_server(
            accept, sock=self._listener, backlog=BACKLOG
        )

    async def _keep_there(self, accept: Callable[[], asyncio.Protocol]) -> None:
        said = ""
        while True:
            await asyncio.sleep(LOOK_S)
            if _inode_of(self._path) == self._inode:
                continue
            try:
                listener, inode = _bind(self._path)
                self._close()  # no client can reach the one that is gone
                self._listener, self._inode = listener, inode
                await self._listen(accept)
            except (StateError, OSError) as error:
                if str(error) != said:
                    log.error("control.socket_lost", error=str(error))  # noqa: TRY400 -- says all
                said = str(error)
                continue
            said = ""
            log.warning("control.socket_recreated", path=str(self._path))

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()


class _Refusal(asyncio.Protocol):
    """Closes a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _guard(own_uid: int, group: int) -> Middleware:
    """Return the middleware of every request: access, limits, and errors as sentences."""
    streams = asyncio.Semaphore(MAX_STREAMS)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await answer(request, handler)
        if not response.prepared:
            if request.get(STREAMS):
                _abort(request)  # the response has begun: too late for an error
            async with _within(request, WRITE_TIMEOUT_S):
                await response.prepare(request)
                await response.write_eof()
        return response

    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _authorise(request, own_uid, group)
            if request.match_info.handler not in ENDLESS:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    return _stamped(await handler(request))
            if streams.locked():
                raise ControlError(f"{MAX_STREAMS} clients already watch runs", status=503)
            async with streams, _within(request, None):
                return await handler(request)
        except ControlError as error:
            return _error(str(error), error.status)
        except ConfigError as error:
            return _error(str(error), 422)
        except XorepdError as error:
            return _error(str(error), 500)
        except web.HTTPException as error:
            reason = f"{request.method} {request.path}: {error.reason.lower()}"
            return _error(reason, error.status)
        except TimeoutError:
            return _error(f"the daemon did not answer within {REQUEST_TIMEOUT_S:.0f} s", 503)
        except ConnectionError:
            raise  # the client has disconnected, which is no fault
        except Exception:
            log.exception("control.internal_error", method=request.method, path=request.path)
            return _error("internal error; the daemon's log has the details", 500)

    return guard


@asynccontextmanager
async def _within(request: web.Request, seconds: float | None) -> AsyncIterator[None]:
    """Close the connection of a client that does not read its response in time.

    Raises:
        ConnectionResetError: the client took too long.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        log.warning("control.client_stalled", path=request.path)
        _abort(request)


def _abort(request: web.Request) -> NoReturn:
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError("the daemon closed the connection")


def _authorise(request: web.Request, own_uid: int, group: int) -> None:
    if request.transport is None:
        raise ControlError("the connection is gone", status=400)
    peer = peer_of(request.transport.get_extra_info("socket").fileno())
    if not is_allowed(peer, own_uid=own_uid, group=group):
        log.warning("control.refused", uid=peer.uid, pid=peer.pid, path=request.path)
        raise ControlError(
            "not allowed; be root, or a member of the group that the control socket belongs to",
            status=403,
        )
    if request.method != "GET":
        log.info(
            "control.called", method=request.method, path=request.path, uid=peer.uid, pid=peer.pid
        )


def _error(sentence: str, status: int) -> web.StreamResponse:
    reply = ErrorReply(error=sentence)
    return _stamped(
        web.Response(
            text=reply.model_dump_json() + "\n", status=status, content_type="application/json"
        )
    )


def _stamped(response: web.StreamResponse) -> web.StreamResponse:
    response.headers[API_HEADER] = str(API)
    response.headers["Server"] = f"xorepd/{VERSION}"
    return response


def _bind(path: Path) -> tuple[socket.socket, int]:
    """Return a socket bound to a path, not yet listening, with mode 0660; and its inode."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(os.fspath(path))
            # No client can connect before this: a socket that does not listen refuses.
            os.chmod(path, 0o660)
            inode = os.stat(path).st_ino
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise StateError(
            f"cannot create the control socket {path} ({error.strerror or error}); "
            "check [daemon] socket"
        ) from error
    listener.setblocking(False)
    return listener, inode


def _clear(path: Path) -> None:
    """Remove a socket that a crashed daemon has left behind."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StateError(f"control socket {path}: the path exists and is not a socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass  # a full backlog: a daemon listens, if slowly
    raise StateError(
        f"control socket {path}: another daemon answers there; stop it, or set [daemon] socket"
    )


def _inode_of(path: Path) -> int | None:
    """Return the inode, which tells our socket from one that another daemon has put there."""
    try:
        return path.lstat().st_ino
    except OSError:
        return None
