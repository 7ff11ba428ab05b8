"""One HTTP request on one connection, as XAPI's disk handlers take it: head out, head in.

    GET /export_raw_vdi?… ─► 200, headers, then the body until the connection ends
    PUT /import_raw_vdi?… ─► 200, headers; only then the body begins, and a late reply may follow

What comes after the heads is the caller's, on the connection itself: no byte of a disk goes through
an HTTP library. Heads are few and small; the standard library reads them.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message

from yarl import URL

from xorepd.stream import ByteStream

LARGEST_REQUEST_HEAD = 1024
"""XAPI answers 431 to more (xapi: ocaml/xapi/xapi_globs.ml, max_header_length_tcp)."""
LARGEST_RESPONSE_HEAD = 16 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?: |$)")


class HeadError(ValueError):
    """What came is no answer to an HTTP request, or the request is not possible."""


@dataclass(frozen=True, slots=True)
class Response:
    """The head of an answer; its body is what follows on `stream`."""

    status: int
    headers: Message
    """Names are looked up whatever their case."""
    stream: ByteStream

    async def text(self, limit: int, within: float) -> bytes:
        """Return the body: its first `limit` bytes, and what of them comes in `within` seconds."""
        body = memoryview(bytearray(limit))
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while size < limit and (more := await self.stream.read_some(body[size:])):
                    size += more
        return bytes(body[:size])


async def exchange(
    stream: ByteStream, method: str, url: URL, headers: Mapping[str, str]
) -> Response:
    """Send the head of a request and read the head of its answer.

    Raises:
        HeadError: the request is too long for XAPI, or the answer is not HTTP.
        OSError, EOFError: the connection broke or ended.
    """
    lines = [f"{method} {url.raw_path_qs} HTTP/1.1", f"Host: {url.authority}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    if len(head) > LARGEST_REQUEST_HEAD:
        raise HeadError(f"the request's head has {len(head)} bytes, XAPI takes 1024")
    await stream.write(head)
    try:
        answer = await stream.read_until(b"\r\n\r\n", LARGEST_RESPONSE_HEAD)
    except ValueError as error:
        raise HeadError("the answer is not HTTP, or its head does not end") from error
    status_line, _, rest = answer.partition(b"\r\n")
    begins = _STATUS_LINE.match(status_line)
    if begins is None:
        raise HeadError("the answer does not begin as HTTP does")
    status = int(begins[1])
    if status < 200:
        raise HeadError(f"the answer has status {status}, which XAPI never gives")
    try:
        found = http.client.parse_headers(io.BytesIO(rest))
    except http.client.HTTPException as error:
        raise HeadError(f"the answer's headers cannot be read: {error}") from error
    if found.get("Transfer-Encoding") is not None:
        raise HeadError("the answer has a transfer encoding, which XAPI never uses")
    return Response(status, found, stream)
