from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from tests.patience import patience
from xorepd.errors import Refused
from xorepd.relay.certificates import client_context, server_context
from xorepd.relay.listener import Caller, listening


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_client_may_speak_before_it_is_looked_at(
    certificates: Path, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    d = certificates
    relay = server_context(d / "relay.pem", d / "relay.key", d / "ca.pem")
    client = client_context(d / "paris.pem", d / "paris.key", d / "ca.pem")
    received: list[bytes] = []

    def call(port: int) -> None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=patience()) as plain,
            client.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            received.append(secured.recv(10))

    async def body() -> None:
        callers: asyncio.Queue[Caller] = asyncio.Queue()
        async with listening("127.0.0.1", 0, callers.put_nowait, silence=patience()) as port:
            thread = threading.Thread(target=call, args=(port,))
            thread.start()
            caller = await callers.get()
            # Its first bytes are there when the handshake begins.
            await asyncio.to_thread(select.select, [caller.connection], [], [], patience())
            async with await caller.secure(relay) as stream:
                await stream.write(b"welcome")
                await asyncio.to_thread(thread.join)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(body(), 20))
    assert received == [b"welcome"]


async def test_a_port_that_is_taken_is_named() -> None:
    async with listening("127.0.0.1", 0, Caller.hang_up, silence=20) as port:
        with pytest.raises(Refused, match=f"127.0.0.1:{port} cannot be listened on"):
            async with listening("127.0.0.1", port, Caller.hang_up, silence=20):
                pass


async def test_whoever_shows_no_certificate_is_not_let_in(certificates: Path) -> None:
    d = certificates
    relay = server_context(d / "relay.pem", d / "relay.key", d / "ca.pem")
    nobody = ssl.create_default_context(cafile=d / "ca.pem")
    callers: asyncio.Queue[Caller] = asyncio.Queue()
    async with listening("127.0.0.1", 0, callers.put_nowait, silence=patience()) as port:
        opening = asyncio.open_connection("127.0.0.1", port, ssl=nobody)
        calling = asyncio.get_running_loop().create_task(opening)
        caller = await callers.get()

        with pytest.raises(ssl.SSLError):
            await caller.secure(relay)

        _, writer = await calling
        writer.close()
