"""The front of one pool member: connections, requests, and which handler they go to.

Source: xapi: ocaml/libs/http-lib/http_svr.ml, ocaml/xapi/api_server.ml, xapi_http.ml.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from xorepd_lab.calls.call import Pool
from xorepd_lab.calls.dispatch import dispatch
from xorepd_lab.calls.recorder import OutsideCall
from xorepd_lab.calls.tasks import TaskWish
from xorepd_lab.faults.bodies import send_spoilt
from xorepd_lab.faults.faults import Fault, Faults
from xorepd_lab.front import xva_handlers
from xorepd_lab.front.exports import export_raw_vdi
from xorepd_lab.front.handlers import Exchange, Forbidden, Unauthorised, admitted
from xorepd_lab.front.imports import import_raw_vdi
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.http_actions import ACTIONS, HttpAction, find_action
from xorepd_lab.wire import http, jsonrpc, xmlrpc
from xorepd_lab.wire.http import Connection, Disconnected, HttpError, Request

PAGE = b"<html><body>xorepd lab</body></html>"
PAGE_PATHS = ("/", "/index.html")
"""Where the website has its one page."""
HANDLERS: dict[str, tuple[Callable[[Exchange], Awaitable[None]], str]] = {
    "get_export_raw_vdi": (export_raw_vdi, ""),
    "put_import_raw_vdi": (import_raw_vdi, ""),
    "get_export_metadata": (xva_handlers.export_metadata, "metadata"),
    "put_import_metadata": (xva_handlers.import_metadata, "metadata"),
    "get_export": (xva_handlers.export, "xva"),
    "put_import": (xva_handlers.import_, "xva"),
}
"""Handlers by their names, with the format that calls and faults are known by, unless the request
names it."""
RPC = ("post_root", "post_RPC2", "post_json", "post_jsonrpc")
NEEDED = {"rrd_updates": "start", "vm_rrd": "uuid", "get_vm_rrds": "uuid", "sr_rrd": "uuid"}
"""What a handler that the lab only guards must be told."""
MAX_CONNECTIONS = 800
"""Of one member; who comes later is accepted and not listened to."""
STREAM_LIMIT = 1 << 20
"""How much asyncio reads ahead of us; bounds memory per connection."""

CLOSE_S = 60.0
"""For a client to read what is left of an answer; as stunnel's TIMEOUTclose, in front of XAPI."""


class Front:
    """What listens on one member's address."""

    def __init__(self, pool: Pool, host: str, faults: Faults) -> None:
        self._pool = pool
        self._faults = faults
        self.host = host
        self._servers: list[asyncio.Server] = []
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._streams: set[Connection] = set()
        """Those of the connections that carry disks."""
        self.places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def listen(self, address: str, port: int, certificate: Any = None) -> int:
        """Listen, with TLS when there is a certificate's context; return the port."""
        options: dict[str, Any] = {}
        if certificate is not None:
            options = {"ssl": certificate, "ssl_shutdown_timeout": CLOSE_S}
        server = await asyncio.start_server(
            self._accept, address, port, limit=STREAM_LIMIT, reuse_address=True, **options
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def close(self, port: int | None = None) -> None:
        """Stop listening, on all ports or on one; connections go on."""
        for server in list(self._servers):
            if port in (None, *(each.getsockname()[1] for each in server.sockets)):
                server.close()
                self._servers.remove(server)

    def cut(self, streams: bool) -> None:
        """Cut the connections and give up what they asked for, streams of disks if told so."""
        for connection, serving in list(self._connections.items()):
            if streams or connection not in self._streams:
                connection.cut()
                serving.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        serving = self._pool.spawn(self._serve(connection), "connection")
        if serving is not None:
            self._connections[connection] = serving
            serving.add_done_callback(lambda _: self._connections.pop(connection, None))

    async def _serve(self, connection: Connection) -> None:
        try:
            async with self.places:
                await self._converse(connection)
        except HttpError as error:
            await self._last_words(connection, error.page())
        except Disconnected:
            connection.cut()
        except asyncio.CancelledError:
            connection.cut()
            raise
        except Exception as error:
            self._pool.log.exception("connection.failed")
            await self._last_words(connection, http.internal_error_page(repr(error)))
        await connection.close()

    async def _converse(self, connection: Connection) -> None:
        while True:
            request = await connection.read_request()
            if request is None or not await self._answer(request, connection):
                return

    async def _last_words(self, connection: Connection, data: bytes) -> None:
        try:
            await connection.send(data)
        except Disconnected:
            connection.cut()

    async def _answer(self, request: Request, connection: Connection) -> bool:
        """Serve one request; say whether the connection goes on."""
        action = find_action(request.method, request.path)
        if action is None:
            if any(each.method == request.method for each in ACTIONS):
                await connection.send(http.forbidden_page())
            else:
                await connection.send(http.unknown_method_page(request.method, request.version))
            return False
        if action.method == "OPTIONS":
            await connection.send(http.preflight(request))
            return request.keep_alive
        if action.name in RPC:
            return await self._rpc(request, connection)
        if action.name == "get_root":
            return await self._website(request, connection)
        try:
            if action.name in HANDLERS:
                await self._exchange(request, connection, action)
            else:
                await self._guard(request, connection, action)
        except Unauthorised:
            await connection.send(http.unauthorised_page(action.name, request.version))
        except Forbidden:
            await connection.send(http.forbidden_page(request.version))
        return False

    async def _website(self, request: Request, connection: Connection) -> bool:
        """Show the one page, and it with TLS only."""
        if not connection.plain and request.path in PAGE_PATHS:
            await connection.send(http.file_response(PAGE))
            return request.keep_alive
        if connection.plain:
            await connection.send(http.forbidden_page(request.version))
        else:
            await connection.send(http.missing_page(request.path))
        return False

    async def _guard(self, request: Request, connection: Connection, action: HttpAction) -> None:
        """Answer for a handler behind which the lab has nothing.

        XAPI hands many of these requests on, those for statistics to xcp-rrdd; so it answers when
        that does not run.
        """
        if not action.public:
            async with admitted(self._pool, self.host, request, action):
                pass
        told = NEEDED.get(action.name)
        lacking = told is not None and told not in request.query
        await connection.send(http.bad_request() if lacking else http.missing())

    # -- disk handlers --------------------------------------------------------------------------

    async def _exchange(self, request: Request, connection: Connection, action: HttpAction) -> None:
        pool = self._pool
        handler, format_ = HANDLERS[action.name]
        name = format_ or request.parameter("format") or "raw"
        kind = "export" if request.method == "GET" else "import"
        host_name = pool.db.get("host", self.host, "name_label")
        query = tuple(sorted((k, v) for k, v in request.query.items() if k != "session_id"))
        caller = pool.caller(request.parameter("session_id"))
        record = pool.recorder.note(pool.name, host_name, kind, name, query, caller)
        fault = self._faults.pick(kind, name, pool.name, host_name, query)
        await _arrive(fault, record, connection)
        exchange = Exchange(pool, self.host, request, action, connection, record, fault)
        self._streams.add(connection)
        try:
            await handler(exchange)
        except Unauthorised:
            record.outcome = "401"
            raise
        except Forbidden:
            record.outcome = "403"
            raise
        except ApiError as error:
            record.outcome = error.code
            await connection.send(http.internal_error_page(str(error), request.version))
        finally:
            self._streams.discard(connection)
            record.outcome = record.outcome or "ok"

    # -- remote calls ---------------------------------------------------------------------------

    async def _rpc(self, request: Request, connection: Connection) -> bool:
        length = request.content_length
        if length is None or length > http.MAX_BODY:
            await connection.send(
                http.internal_error_page("the body is too long, or has no length", request.version)
            )
            return False
        body = await connection.read_exactly(length)
        content_type = "text/xml"
        try:
            if request.path.startswith("/jsonrpc"):
                call = jsonrpc.decode_call(body)
                name, params = call.method, call.params
                succeed, fail = call.success, call.failure
                content_type = "application/json"
            else:
                # Also at `/json`, whose name promises something else.
                name, params = xmlrpc.decode_call(body)
                succeed, fail = xmlrpc.success, xmlrpc.failure
                if name == "system.listMethods":
                    succeed = xmlrpc.encode_response
        except xmlrpc.Malformed as error:
            await connection.send(http.internal_error_page(str(error), request.version))
            return False
        except ApiError as error:
            early = jsonrpc.early_failure(error.description)
            await connection.send(
                http.response(early, "application/json", request.keep_alive, request.version)
            )
            return request.keep_alive
        wish = TaskWish(
            request.task_keys,
            request.headers.get("task-id", ""),
            request.headers.get("subtask-of", NULL),
        )
        answer, fault = await self._call(connection, name, params, wish, succeed, fail)
        response = http.response(
            answer, content_type, request.keep_alive, request.version, extra=http.CORS
        )
        if fault is None:
            await connection.send(response)
            return request.keep_alive
        return await send_spoilt(connection, response, fault) and request.keep_alive

    async def _call(
        self,
        connection: Connection,
        name: str,
        params: list[Any],
        wish: TaskWish,
        succeed: Callable[[Any], bytes],
        fail: Callable[[list[str]], bytes],
    ) -> tuple[bytes, Fault | None]:
        pool = self._pool
        host_name = pool.db.get("host", self.host, "name_label")
        is_login = name.startswith(("session.login", "session.slave_l"))
        arguments = tuple(params if is_login else params[1:])
        caller = pool.caller(None if is_login or not params else params[0])
        record = pool.recorder.note(pool.name, host_name, "rpc", name, arguments, caller)
        plain_name = name.removeprefix("Async.")
        fault = self._faults.pick("rpc", plain_name, pool.name, host_name, arguments)
        await _arrive(fault, record, connection)
        try:
            answer = succeed(await dispatch(pool, self.host, name, params, fault, wish))
        except ApiError as error:
            record.outcome = error.code
            return fail(error.description), fault
        record.outcome = "ok"
        return answer, fault


async def _arrive(fault: Fault | None, record: OutsideCall, connection: Connection) -> None:
    """Let a fault meet the request before anything is done."""
    if fault is None:
        return
    try:
        await fault.arrive(connection)
    except Disconnected:
        record.outcome = fault.outcome
        raise
