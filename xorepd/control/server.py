"""The control interface on a Unix socket: who may use it, within what bounds, how errors read."""

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
"""A reload reads files, a status the database: seconds at worst."""
MAX_REQUEST_BYTES = 64 * 1024
MAX_STREAMS = 64
"""Event streams at once. One costs a task and a socket; a script gone wild must not cost more."""
MAX_CONNECTIONS = 256
"""Clients at once, watching or not: each has a descriptor of the daemon's."""
HEAD_TIMEOUT_S = 10.0
"""A connection on which no request comes, or none to its end, is given up."""
LOOK_S = 2.0
"""Between two looks whether the socket is still at its path."""
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
        # A client that goes ends its event stream, not only at the next event.
        handler_cancellation=True,
        # By now the runs have ended, and with them every stream that somebody still reads.
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
    """Return a log for aiohttp, which takes a client that garbles or hangs for an error of ours."""

    def is_ours(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, web.RequestPayloadError | HttpProcessingError | OSError)

    logger = logging.getLogger("aiohttp.server.control")
    logger.filters = [is_ours]
    return logger


class _Door:
    """A socket at a path, made anew when somebody removes it.

    Raises:
        StateError: something else is at that path, or another daemon listens there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener, self._inode = _bind(path)
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def open(self, web_server: web.Server) -> AsyncIterator[None]:
        """Let clients in while a block lasts."""

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
        """Take the socket away, if it is ours."""
        self._listener.close()
        if _inode_of(self._path) == self._inode:
            with suppress(OSError):
                self._path.unlink()

    async def _listen(self, accept: Callable[[], asyncio.Protocol]) -> None:
        # create_unix_server and not a SockSite, which uvloop does not let have a Unix socket.
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
                self._close()  # nobody can come through the one that is gone
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
    """Ends a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _guard(own_uid: int, group: int) -> Middleware:
    """Return the middleware that every request passes: peer, bounds, and errors as sentences."""
    streams = asyncio.Semaphore(MAX_STREAMS)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await answer(request, handler)
        if not response.prepared:
            if request.get(STREAMS):
                _abort(request)  # an error has no place in what was begun
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
                raise ControlError(f"{MAX_STREAMS} clients watch runs already", status=503)
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
            return _error(f"the daemon found no answer in {REQUEST_TIMEOUT_S:.0f} s", 503)
        except ConnectionError:
            raise  # the client went away: nobody to tell, nothing wrong
        except Exception:
            log.exception("control.internal_error", method=request.method, path=request.path)
            return _error("internal error; the daemon's log has the details", 500)

    return guard


@asynccontextmanager
async def _within(request: web.Request, seconds: float | None) -> AsyncIterator[None]:
    """Cut the connection of a client that does not take what it asked for.

    Raises:
        ConnectionResetError: it took too long.
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
    raise ConnectionResetError("the connection was cut")


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
            # Nobody can connect before this: a socket that does not listen refuses.
            os.chmod(path, 0o660)
            inode = os.stat(path).st_ino
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise StateError(
            f"control socket {path} cannot be made ({error.strerror or error}); "
            "check [daemon] socket"
        ) from error
    listener.setblocking(False)
    return listener, inode


def _clear(path: Path) -> None:
    """Remove the socket that a daemon left which did not end in good order."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StateError(f"control socket {path}: there is a file which is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except TimeoutError:
            pass  # a full backlog: somebody listens, if slowly
    raise StateError(
        f"control socket {path}: another daemon answers there; stop it, or set [daemon] socket"
    )


def _inode_of(path: Path) -> int | None:
    """Return what tells our socket from that of a daemon which has taken the path over."""
    try:
        return path.lstat().st_ino
    except OSError:
        return None
