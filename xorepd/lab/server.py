"""The front of one pool member: connections, requests, and which door they go to.

Source: xapi: ocaml/libs/http-lib/http_svr.ml, ocaml/xapi/api_server.ml, xapi_http.ml.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from xorepd.lab import http, jsonrpc, xmlrpc
from xorepd.lab.dispatch import dispatch
from xorepd.lab.doors import Unauthorised, Visit
from xorepd.lab.exports import export_raw_vdi
from xorepd.lab.failures import ApiError
from xorepd.lab.faults import Fault
from xorepd.lab.http import Connection, Disconnected, HttpError, Request
from xorepd.lab.imports import import_raw_vdi
from xorepd.lab.pools import Pool

KNOWN_METHODS = {"GET", "PUT", "POST", "OPTIONS", "CONNECT"}
EMPTY_PAGE = b"<html><body>xorepd lab</body></html>"
DOORS: dict[tuple[str, str], tuple[Callable[[Visit], Awaitable[None]], str]] = {
    ("GET", "/export_raw_vdi"): (export_raw_vdi, "VDI.export_raw"),
    ("PUT", "/import_raw_vdi"): (import_raw_vdi, "VDI.import"),
}
"""Handlers by method and longest prefix of the path; the second is the realm of their 401."""
STREAM_LIMIT = 1 << 20
"""How much asyncio reads ahead of us; bounds memory per connection."""


class Front:
    """What listens on one member's address."""

    def __init__(self, pool: Pool, host: str) -> None:
        self._pool = pool
        self.host = host
        self._servers: list[asyncio.Server] = []

    async def listen(self, address: str, port: int, certificate: Any = None) -> int:
        """Listen, with TLS when there is a certificate's context; return the port."""
        options: dict[str, Any] = {}
        if certificate is not None:
            options = {"ssl": certificate, "ssl_shutdown_timeout": 2.0}
        server = await asyncio.start_server(
            self._accept, address, port, limit=STREAM_LIMIT, reuse_address=True, **options
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pool.lab.spawn(self._serve(Connection(reader, writer)), "connection")

    async def _serve(self, connection: Connection) -> None:
        try:
            while True:
                request = await connection.read_request()
                if request is None or not await self._answer(request, connection):
                    break
        except HttpError as error:
            await self._last_words(connection, http.response(error.status))
        except Disconnected:
            connection.cut()
        except asyncio.CancelledError:
            connection.cut()
            raise
        await connection.close()

    async def _last_words(self, connection: Connection, data: bytes) -> None:
        try:
            await connection.send(data)
        except Disconnected:
            connection.cut()

    async def _answer(self, request: Request, connection: Connection) -> bool:
        """Serve one request; say whether the connection goes on."""
        version = request.version
        if request.method not in KNOWN_METHODS:
            page = http.error_page(
                "501 Method not implemented", "<h1>HTTP 501 method not implemented</h1>", version
            )
            await connection.send(page)
            return False
        if request.method == "OPTIONS":
            extra = ("access-control-allow-methods: PUT, POST, GET, OPTIONS",)
            await connection.send(
                http.response("200 OK", keep_alive=request.keep_alive, extra=extra)
            )
            return request.keep_alive
        for (method, prefix), (door, realm) in DOORS.items():
            if request.method == method and request.path.startswith(prefix):
                await self._visit(request, connection, door, realm)
                return False
        if request.method == "POST":
            return await self._rpc(request, connection)
        await connection.send(http.response("200 OK", EMPTY_PAGE, keep_alive=request.keep_alive))
        return request.keep_alive

    # -- disk handlers --------------------------------------------------------------------------

    async def _visit(
        self,
        request: Request,
        connection: Connection,
        door: Callable[[Visit], Awaitable[None]],
        realm: str,
    ) -> None:
        pool, lab = self._pool, self._pool.lab
        kind = "export" if request.method == "GET" else "import"
        name = request.parameter("format") or "raw"
        host_name = pool.db.get("host", self.host, "name_label")
        query = tuple(sorted((k, v) for k, v in request.query.items() if k != "session_id"))
        record = lab.recorder.note(pool.name, host_name, kind, name, query)
        fault = lab.faults.pick(
            "export" if kind == "export" else "import", name, pool.name, host_name
        )
        if fault is not None and fault.reset:
            record.outcome = "reset"
            connection.cut()
            raise Disconnected
        visit = Visit(pool, self.host, request, connection, record, fault)
        try:
            await door(visit)
        except Unauthorised:
            record.outcome = "401"
            await connection.send(http.unauthorised_page(realm, request.version))
        except ApiError as error:
            record.outcome = error.code
            await connection.send(http.internal_error_page(str(error), request.version))
        finally:
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
        try:
            if request.path.startswith("/jsonrpc"):
                call = jsonrpc.decode_call(body)
                name, params = call.method, call.params
                succeed, fail = call.success, call.failure
                content_type = "application/json"
            else:
                name, params = xmlrpc.decode_call(body)
                succeed, fail = xmlrpc.success, xmlrpc.failure
                if name == "system.listMethods":
                    succeed = xmlrpc.encode_response
                content_type = "text/xml"
        except xmlrpc.Malformed as error:
            await connection.send(http.internal_error_page(str(error), request.version))
            return False
        answer, fault = await self._call(connection, name, params, request.task_keys, succeed, fail)
        if fault is not None and fault.drop_response:
            connection.cut()
            raise Disconnected
        await connection.send(
            http.response("200 OK", answer, content_type, keep_alive=request.keep_alive)
        )
        return request.keep_alive

    async def _call(
        self,
        connection: Connection,
        name: str,
        params: list[Any],
        task_keys: dict[str, str],
        succeed: Callable[[Any], bytes],
        fail: Callable[[list[str]], bytes],
    ) -> tuple[bytes, Fault | None]:
        pool, lab = self._pool, self._pool.lab
        host_name = pool.db.get("host", self.host, "name_label")
        arguments = params if name.startswith("session.login") else params[1:]
        record = lab.recorder.note(pool.name, host_name, "rpc", name, tuple(arguments))
        fault = lab.faults.pick("rpc", name.removeprefix("Async."), pool.name, host_name)
        if fault is not None and fault.reset:
            record.outcome = "reset"
            connection.cut()
            raise Disconnected
        try:
            answer = succeed(await dispatch(pool, self.host, name, params, fault, task_keys))
        except ApiError as error:
            record.outcome = error.code
            return fail(error.description), fault
        record.outcome = "ok"
        return answer, fault
