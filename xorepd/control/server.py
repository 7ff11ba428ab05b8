"""The control interface on a Unix socket: who may use it, within what bounds, how errors read."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from xorepd.control.commands import ENDLESS, ROUTES, SERVICE, Service
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
BACKLOG = 64


@asynccontextmanager
async def serve(service: Service, path: Path) -> AsyncIterator[None]:
    """Answer requests on a Unix socket while a block lasts.

    Raises:
        StateError: something else is at that path, or another daemon listens there.
    """
    listener = _bind(path)
    group = os.stat(path).st_gid
    inode = os.stat(path).st_ino
    app = web.Application(
        client_max_size=MAX_REQUEST_BYTES, middlewares=[_guard(os.getuid(), group)]
    )
    app[SERVICE] = service
    for method, route, handler in ROUTES:
        app.router.add_route(method, route, handler)
    runner = web.AppRunner(
        app,
        access_log=None,
        # A client that goes ends its event stream, not only at the next event.
        handler_cancellation=True,
        # By now the runs have ended, and with them every stream that somebody still reads.
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        assert runner.server is not None
        # create_unix_server and not a SockSite, which uvloop does not let have a Unix socket.
        server = await asyncio.get_running_loop().create_unix_server(
            runner.server, sock=listener, backlog=BACKLOG
        )
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()
        listener.close()
        _remove(path, inode)


def _guard(own_uid: int, group: int) -> Middleware:
    """Return the middleware that every request passes: peer, bounds, and errors as sentences."""
    streams = asyncio.Semaphore(MAX_STREAMS)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _authorise(request, own_uid, group)
            if request.match_info.handler not in ENDLESS:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    return _stamped(await handler(request))
            if streams.locked():
                raise ControlError(f"{MAX_STREAMS} clients watch runs already", status=503)
            async with streams:
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
            log.exception("control.crashed", method=request.method, path=request.path)
            return _error("internal error; the daemon's log has the details", 500)

    return guard


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


def _bind(path: Path) -> socket.socket:
    """Return a socket bound to a path, not yet listening, with mode 0660."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        _clear(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(os.fspath(path))
            # Nobody can connect before this: a socket that does not listen refuses.
            os.chmod(path, 0o660)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise StateError(
            f"control socket {path} cannot be made ({error.strerror or error}); "
            "check [daemon] socket"
        ) from error
    listener.setblocking(False)
    return listener


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


def _remove(path: Path, inode: int) -> None:
    """Remove our socket, but not that of a daemon which has taken the path over."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        return
