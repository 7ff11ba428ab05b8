"""Reading a whole disk over NBD as cheaply as a client can: the other end of a measurement."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

DEPTH: Final = 2
"""Requests under way: while one is answered, the next is there already."""
_HEADER: Final = 16


@contextmanager
def purpose(session: Any, name: str) -> Iterator[None]:
    """Let the network `lan` be for NBD, in clear (`insecure_nbd`) or with TLS (`nbd`)."""
    (network,) = session.xenapi.network.get_by_name_label("lan")
    session.xenapi.network.add_purpose(network, name)
    try:
        yield
    finally:
        session.xenapi.network.remove_purpose(network, name)


def bench_nbd(session: Any, vdi: str, *, tls: bool, size: int = 2 << 20) -> int:
    """Read the VDI of that name, whose size is a multiple of `size`; return how many bytes."""
    with purpose(session, "nbd" if tls else "insecure_nbd"):
        (ref,) = session.xenapi.VDI.get_by_name_label(vdi)
        (info, *_) = session.xenapi.VDI.get_nbd_info(ref)
        length = int(session.xenapi.VDI.get_virtual_size(ref))
        with _exported(info, tls) as connection:
            _read(connection, length, size)
    return length


@contextmanager
def _exported(info: Mapping[str, str], tls: bool) -> Iterator[socket.socket]:
    with ExitStack() as stack:
        place = (info["address"], int(info["port"]))
        connection = stack.enter_context(socket.create_connection(place))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _take(connection, 18)
        connection.sendall(b"\0\0\0\1")
        if tls:
            _say(connection, 5, b"")
            _take(connection, 20)
            context = ssl.create_default_context(cadata=info["cert"])
            connection = stack.enter_context(
                context.wrap_socket(connection, server_hostname=info["subject"])
            )
        _say(connection, 1, info["exportname"].encode())
        _take(connection, 134)
        yield connection
        _ask(connection, 2, 0, 0)


def _read(connection: socket.socket, length: int, size: int) -> None:
    buffer = memoryview(bytearray(_HEADER + size))
    asked = 0
    for offset in range(0, length, size):
        while asked < min(length, offset + DEPTH * size):
            _ask(connection, 0, asked, size)
            asked += size
        filled = 0
        while filled < len(buffer):
            got = connection.recv_into(buffer[filled:])
            if not got:
                raise EOFError(f"the server closed at {offset}")
            filled += got


def _say(connection: socket.socket, option: int, data: bytes) -> None:
    connection.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)


def _ask(connection: socket.socket, command: int, offset: int, length: int) -> None:
    connection.sendall(struct.pack(">IIQQI", 0x25609513, command, offset, offset, length))


def _take(connection: socket.socket, length: int) -> None:
    while length:
        got = len(connection.recv(length))
        if not got:
            raise EOFError("the server closed")
        length -= got
