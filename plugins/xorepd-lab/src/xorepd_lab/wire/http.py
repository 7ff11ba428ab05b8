"""HTTP/1.x as XAPI's own server speaks it, quirks included: no library would answer like this.

Source: xapi: ocaml/libs/http-lib/http_svr.ml, http.ml, ocaml/xapi-consts/constants.ml.
"""

import asyncio
import base64
import binascii
import contextlib
import html
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import parse_qsl, unquote

from xorepd_lab.disks.vhd_file import FileRange
from xorepd_lab.model.schema import parse_integer
from xorepd_lab.wire.inflow import Inflow

MAX_HEADER = 1024
"""Bytes of a whole request header on TCP."""
MAX_BODY = 307200
"""Bytes of an RPC."""
READ_TIMEOUT_S = 10.0
HEADER_TIMEOUT_S = 60.0
READ_SIZE = 1 << 20
SEND_STEP = 1 << 18
"""More at once only costs memory: what the socket does not take is copied."""
NO_CACHE = "cache-control: no-cache, no-store"


class HttpError(Exception):
    """The request cannot be understood; the status line says why, and the connection closes."""

    def __init__(self, status: str, additional: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.additional = additional

    def page(self) -> bytes:
        if self.additional:
            return internal_error_page(self.additional)
        return error_page(self.status, f"<h1>HTTP {self.status.lower()}</h1>")


UNREADABLE = HttpError("500 Internal Error", "The HTTP headers could not be parsed.")


class Disconnected(Exception):
    """The other side is gone, or this side wants the connection cut without a word."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    raw_query: str
    version: str
    """1.0 or 1.1: how answers begin, whatever else the client says."""
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def keep_alive(self) -> bool:
        wanted = self.headers.get("connection", "").lower()
        if wanted in ("close", "keep-alive"):
            return wanted == "keep-alive"
        return self.version != "1.0"

    @property
    def content_length(self) -> int | None:
        """What the header says; None when it says nothing, or a negative number."""
        length = parse_integer(self.headers.get("content-length", ""))
        return length if length is not None and length >= 0 else None

    @property
    def basic_credentials(self) -> tuple[str, str] | None:
        scheme, _, encoded = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, colon, password = base64.b64decode(encoded).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return (user, password) if colon else None

    @property
    def task_keys(self) -> dict[str, str]:
        """What `x-http-other-config-<k>` headers put into `other_config` of the call's task."""
        prefix = "x-http-other-config-"
        return {
            f"http:{name.removeprefix(prefix)}": value
            for name, value in self.headers.items()
            if name.startswith(prefix)
        }

    def parameter(self, name: str) -> str | None:
        """Return a parameter of the query, else of the cookie."""
        return self.query.get(name, self.cookies.get(name))


def parse_header(raw: bytes) -> Request:
    lines = [line.strip() for line in raw.decode("latin-1").split("\n")]
    words = lines[0].split()
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise UNREADABLE
    method, target, version = words
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    if parse_integer(headers.get("content-length", "0")) is None:
        raise UNREADABLE
    path, _, raw_query = target.partition("?")
    cookies = {
        name.strip(): unquote(value.strip())
        for name, _, value in (
            part.partition("=") for part in re.split("[;&]", headers.get("cookie", ""))
        )
        if name.strip()
    }
    return Request(
        method=method,
        path=unquote(path),
        raw_query=raw_query,
        version="1.0" if version == "HTTP/1.0" else "1.1",
        query=dict(parse_qsl(raw_query, keep_blank_values=True)),
        headers=headers,
        cookies=cookies,
    )


class Connection:
    """One client's connection: reading with what was read too far, writing with back-pressure."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()
        self._first = True

    async def read_request(self) -> Request | None:
        """Return the next request, None when the client is done.

        Raises:
            HttpError: 431 for a header of more than 1024 bytes, 408 for a slow first one. Later
                requests on a connection that was kept open may take any time.
        """
        try:
            async with asyncio.timeout(HEADER_TIMEOUT_S if self._first else None):
                while (end := self._buffer.find(b"\r\n\r\n")) < 0:
                    if len(self._buffer) > MAX_HEADER:
                        raise HttpError("431 Request Header Fields Too Large")
                    async with asyncio.timeout(READ_TIMEOUT_S if self._first else None):
                        piece = await self._receive(READ_SIZE)
                    if not piece:
                        return None
                    self._buffer += piece
        except TimeoutError:
            raise HttpError("408 Request Timeout") from None
        if end + 4 > MAX_HEADER:
            raise HttpError("431 Request Header Fields Too Large")
        raw = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        self._first = False
        return parse_header(raw)

    async def read(self, limit: int = READ_SIZE) -> bytes:
        """Return up to `limit` bytes of a body, b"" at the end of the connection."""
        if self._buffer:
            piece = bytes(self._buffer[:limit])
            del self._buffer[:limit]
            return piece
        return await self._receive(limit)

    async def inflow(self) -> Inflow:
        """Return what receives the rest of a body; nothing else may read from here afterwards."""
        # Both ways, though streams promise only one, and uvloop's are of no class of asyncio's.
        transport = cast("asyncio.Transport", self._writer.transport)
        early, ended = bytes(self._buffer), False
        self._buffer.clear()
        with contextlib.suppress(TimeoutError):  # nothing more is here
            while not ended:
                transport.pause_reading()
                async with asyncio.timeout(0):
                    piece = await self._receive(READ_SIZE)
                early, ended = early + piece, not piece
        outer = cast("asyncio.Protocol | None", transport.get_protocol())
        if outer is None:  # the connection is gone, with TLS: what came before it is all there is
            return Inflow(transport, asyncio.Protocol(), early, ended=True)
        return Inflow(transport, outer, early, ended)

    async def read_exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            piece = await self.read(length - len(parts))
            if not piece:
                raise Disconnected
            parts += piece
        return bytes(parts)

    async def gone(self) -> None:
        """Wait until the client, which has nothing more to say, closes its side."""
        while await self._receive(READ_SIZE):
            pass

    async def send(self, data: bytes) -> None:
        """Write, and wait while the client is slower than we are."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), SEND_STEP):
                if self._writer.is_closing():
                    raise Disconnected
                self._writer.write(view[start : start + SEND_STEP])
                await self._writer.drain()
        except (ConnectionError, OSError) as error:
            raise Disconnected from error

    @property
    def plain(self) -> bool:
        """Whether bytes go out as they are, without TLS."""
        return self._writer.get_extra_info("sslcontext") is None

    async def send_file(self, part: FileRange) -> None:
        """Let the kernel send a range of a file, if this event loop can; on a plain connection."""
        if self._writer.is_closing():
            raise Disconnected
        loop = asyncio.get_running_loop()
        try:
            with part.opened() as file:
                sent = await loop.sendfile(
                    self._writer.transport, file, part.offset, part.length, fallback=False
                )
        except (NotImplementedError, asyncio.SendfileNotAvailableError):
            await self.send(part.read())
            return
        except (ConnectionError, OSError, RuntimeError) as error:
            raise Disconnected from error
        if sent != part.length:
            raise Disconnected

    def cut(self) -> None:
        """Reset the connection: nothing more is sent, not even what was written."""
        self._writer.transport.abort()

    async def close(self) -> None:
        try:
            self._writer.close()
            await self._writer.wait_closed()
        except (ConnectionError, OSError):
            self.cut()

    async def _receive(self, limit: int) -> bytes:
        try:
            return await self._reader.read(limit)
        except (ConnectionError, OSError) as error:
            raise Disconnected from error


CORS = ("Access-Control-Allow-Origin: *", "Access-Control-Allow-Headers: X-Requested-With")
"""What answers to calls say, and nothing else, so that pages of other sites may make them."""
_BARE = ("Connection: close", "Cache-Control: no-cache, no-store")


def _head(lines: Iterable[str]) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def response(
    body: bytes,
    content_type: str,
    keep_alive: bool = False,
    version: str = "1.1",
    extra: tuple[str, ...] = (),
) -> bytes:
    """Return the answer to a call, with a length."""
    lines = [
        f"HTTP/{version} 200 OK",
        f"content-length: {len(body)}",
        f"connection: {'keep-alive' if keep_alive else 'close'}",
        NO_CACHE,
        f"content-type: {content_type}",
        *extra,
    ]
    return _head(lines) + body


def file_response(body: bytes) -> bytes:
    """Return a page of the website; the connection is said to stay, whatever the client asked."""
    lines = [
        "HTTP/1.1 200 OK",
        f"content-length: {len(body)}",
        "connection: keep-alive",
        "content-type: text/html",
    ]
    return _head(lines) + body


def stream_head(task: str, content_type: str, *extra: str) -> bytes:
    """Return the header that the disk handlers send before they start to work."""
    lines = [
        "HTTP/1.1 200 OK",
        "Connection: close",
        "Cache-Control: no-cache, no-store",
        f"task-id:{task}",
        f"content-type:{content_type}",
        *extra,
    ]
    return _head(lines)


def missing() -> bytes:
    return _head(["HTTP/1.0 404 Not Found", *_BARE])


def bad_request() -> bytes:
    return _head(["HTTP/1.1 400 Bad Request", *_BARE])


def forbidden() -> bytes:
    return _head(["HTTP/1.1 403 Forbidden", *_BARE])


def redirect(location: str) -> bytes:
    return _head(["HTTP/1.1 302 Found", *_BARE, f"Location: {location}"])


def error_page(status: str, text: str, version: str = "1.1", extra: tuple[str, ...] = ()) -> bytes:
    """Return the HTML page of a status; it repeats the version of the request."""
    body = f"<html><body>{text}</body></html>".encode()
    lines = [
        f"HTTP/{version} {status}",
        f"content-length: {len(body)}",
        "content-type: text/html",
        "connection: close",
        NO_CACHE,
        *extra,
    ]
    return _head(lines) + body


def missing_page(path: str) -> bytes:
    """Return what the website says where it has no file."""
    shown = html.escape(path)
    body = f"<html><body><h1>Not Found</h1>There is no {shown} here.</body></html>".encode()
    lines = [
        "HTTP/1.1 404 Not Found",
        f"content-length: {len(body)}",
        "connection: close",
        NO_CACHE,
    ]
    return _head(lines) + body


def internal_error_page(additional: str, version: str = "1.1") -> bytes:
    text = (
        "<h1>HTTP 500 internal server error</h1>An unexpected error occurred; please wait a while"
        " and try again. If the problem persists, please contact your support representative."
        f"<h1> Additional information </h1>{html.escape(additional, quote=False)}"
    )
    return error_page("500 Internal Error", text, version)


def forbidden_page(version: str = "1.1") -> bytes:
    return error_page(
        "403 Forbidden",
        "<h1>HTTP 403 forbidden</h1>Access to the requested resource is forbidden.",
        version,
    )


def unknown_method_page(method: str, version: str) -> bytes:
    shown = html.escape(method)
    return error_page(
        "501 Method not implemented",
        f"<h1>HTTP 501 Method Not Implemented</h1><p>{shown} not supported.<br /></p>",
        version,
    )


def preflight(request: Request) -> bytes:
    """Return the answer to OPTIONS, which browsers ask before they call another site."""
    wanted = request.headers.get("access-control-request-headers")
    allowed = f"{wanted}, X-Requested-With" if wanted else "X-Requested-With"
    lines = [
        f"HTTP/{request.version} 200 OK",
        "content-length: 0",
        f"connection: {'keep-alive' if request.keep_alive else 'close'}",
        NO_CACHE,
        "Access-Control-Allow-Origin: *",
        f"Access-Control-Allow-Headers: {allowed}",
        "Access-Control-Allow-Methods: PUT",
    ]
    return _head(lines)


def unauthorised_page(realm: str, version: str = "1.1") -> bytes:
    return error_page(
        "401 Unauthorised",
        "<h1>HTTP 401 unauthorised</h1>Please check your credentials and retry.",
        version,
        (f'WWW-Authenticate: Basic realm="{realm}"',),
    )
