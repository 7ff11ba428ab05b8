"""Bodies of uploads whose client has gone before anybody looks at them."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

import pytest
import trustme

from xorepd_lab.wire.http import Connection

BODY = bytes(range(256)) * 64


def contexts(with_tls: bool) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """Return those of the server and of the client."""
    if not with_tls:
        return None, None
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("with_tls", [False, True])
async def test_body_of_a_client_that_closed_right_after_it_is_read_to_its_end(
    with_tls: bool,
) -> None:
    on_server, on_client = contexts(with_tls)
    found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, body = Connection(reader, writer), b""
        assert await connection.read_request() is not None
        await closed.wait()
        try:
            while with_tls and not writer.is_closing():  # noqa: ASYNC110 -- no event tells
                await asyncio.sleep(0)  # in clear, only one direction is closed by that
            inflow = await connection.inflow()
            while piece := await inflow.read(1):
                body += bytes(piece)
            found.set_result(body)
        except BaseException as error:
            found.set_exception(error)
            raise
        finally:
            await connection.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=on_server)
    async with server:
        host, port = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(host, port, ssl=on_client)
        writer.write(b"PUT / HTTP/1.1\r\nconnection: close\r\n\r\n" + BODY)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        closed.set()
        assert await found == BODY
