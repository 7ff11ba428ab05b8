"""Whatever a client of NBD sends: the connection closes, and nothing of it stays."""

import asyncio
import gc
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patience import patience
from xorepd_lab.faults.bodies import EndedEarly
from xorepd_lab.front.nbd_server import CONNECTION_LIMIT, NbdConnection, pieces
from xorepd_lab.pools import Pool
from xorepd_lab.threaded import ThreadedLab, threaded_lab
from xorepd_lab.wire.nbd_protocol import (
    LONGEST_NAME,
    PIECE,
    SECTOR,
    SIGNED_LIMIT,
    Next,
    Option,
    ProtocolError,
    Reply,
    Request,
    answer_option,
    parse_export_name,
    parse_option,
    refusal,
)

pytestmark = pytest.mark.lab

SIZE = 32 << 20
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
OPTION_MAGIC = b"IHAVEOPT"


# -- decisions -------------------------------------------------------------------------------------


@given(U32, st.booleans(), st.booleans())
def test_an_export_is_served_only_where_the_server_wants_it(
    option: int, plain: bool, tls: bool
) -> None:
    reply, following = answer_option(option, plain=plain, tls=tls)

    assert (following is Next.SERVE) == (option == Option.EXPORT_NAME and not (plain and tls))
    assert (following is Next.ENCRYPT) == (option == Option.STARTTLS and plain and tls)
    if following is Next.ANOTHER:
        assert reply is not None
        assert reply is not Reply.ACK


@given(U64, U32, U32)
def test_options_are_taken_up_to_a_length(magic: int, option: int, length: int) -> None:
    good = int.from_bytes(OPTION_MAGIC, "big")
    for said in (magic, good):
        limit = LONGEST_NAME if option == Option.EXPORT_NAME else SIGNED_LIMIT - 1
        header = struct.pack(">QII", said, option, length)
        if said == good and length <= limit:
            assert parse_option(header) == (option, length)
        else:
            with pytest.raises(ProtocolError):
                parse_option(header)


@given(st.binary(max_size=200))
def test_any_name_of_an_export_can_be_read(name: bytes) -> None:
    uuid, session = parse_export_name(name)

    assert isinstance(uuid, str)
    assert session is None or isinstance(session, str)


@given(st.integers(0, 6), U64, U32)
def test_a_request_is_answered_in_pieces_of_the_disk(
    command: int, offset: int, length: int
) -> None:
    request = Request(command, 0, offset % (2 * SIZE), length)
    if refusal(request) is not None:
        assert command != 0 or request.offset % SECTOR or length % SECTOR
        return

    reached = request.offset
    try:
        for at, size in pieces(request, SIZE):
            assert at == reached
            assert 0 < size <= PIECE
            reached += size
        assert reached == request.offset + length
    except EndedEarly:
        assert reached <= SIZE or reached == request.offset
        assert min(reached + PIECE, request.offset + length) > SIZE


# -- real connections ------------------------------------------------------------------------------


@dataclass
class Target:
    """A running pool, and how to reach a disk of it."""

    lab: ThreadedLab
    pool: Pool
    info: dict[str, Any]

    def dial(self) -> socket.socket:
        place = (self.info["address"], int(self.info["port"]))
        return socket.create_connection(place, timeout=patience())

    def purpose(self, name: str) -> None:
        db = self.pool.db
        (network,) = db.select("network", name_label="lan")
        self.lab.call(db.set, "network", network, purpose=[name])

    def vbds(self) -> int:
        """Return how many VBDs control domains have."""
        db = self.pool.db
        doms = db.select("VM", is_control_domain=True)
        return sum(len(db.get("VM", dom, "VBDs")) for dom in doms)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that the lab is about to do."""

        async def wait() -> None:
            async with asyncio.timeout(patience()):
                while not holds():  # noqa: ASYNC110 -- there is no event for it
                    await asyncio.sleep(0.005)

        self.lab.run(wait())

    def read(self) -> None:
        """Read a little in good order."""
        with self.dial() as client:
            stream = client.makefile("rwb")
            assert len(stream.read(18)) == 18
            name = self.info["exportname"].encode()
            stream.write(b"\0\0\0\1" + say(1, name))
            stream.flush()
            assert len(stream.read(134)) == 134
            stream.write(ask(0, 0, 4096))
            stream.flush()
            assert len(stream.read(16 + 4096)) == 16 + 4096


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with threaded_lab(tmp_path_factory.mktemp("nbd"), time_scale=0.002) as lab:
        pool = lab.pools["prod"]
        session = lab.run(pool.sessions.login(pool.master, pool.username, pool.password, "fuzz"))
        (vdi,) = pool.db.select("VDI", name_label="web01-data")
        name = f"/{pool.db.get('VDI', vdi, 'uuid')}?session_id={session}"
        yield Target(
            lab,
            pool,
            {"address": pool.address(pool.master), "port": pool.nbd_port, "exportname": name},
        )


def say(option: int, data: bytes = b"", length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return OPTION_MAGIC + struct.pack(">II", option, size) + data


def ask(command: int, offset: int, length: int, magic: int = 0x25609513) -> bytes:
    return struct.pack(">IIQQI", magic, command, 1, offset, length)


options = st.one_of(
    st.builds(say, st.integers(0, 12), st.binary(max_size=80)),
    st.builds(say, U32, st.binary(max_size=20), U32),
    st.binary(max_size=40),
)
requests = st.one_of(
    st.builds(ask, st.just(0), st.integers(0, SIZE // 512).map(lambda n: n * 512),
              st.integers(0, 256).map(lambda n: n * 512)),
    st.builds(ask, st.integers(0, 7), U64, U32),
    st.builds(ask, U32, st.integers(0, SIZE), st.integers(0, 4096), U32),
    st.binary(max_size=60),
)  # fmt: skip


def converse(client: socket.socket, parts: list[bytes]) -> None:
    """Send all of it, say that there is no more, and read until the server closes."""
    try:
        for part in parts:
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 20):
            pass
    except TimeoutError:
        raise
    except OSError:
        pass  # reset, which is an end as well


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["nbd", "insecure_nbd"]),
    st.binary(max_size=4),
    st.lists(options, max_size=6),
    st.booleans(),
    st.lists(requests, max_size=6),
)
def test_any_sequence_of_messages_comes_to_an_end(
    target: Target,
    purpose: str,
    flags: bytes,
    negotiation: list[bytes],
    named: bool,
    asked: list[bytes],
) -> None:
    target.purpose(purpose)
    name = [say(1, target.info["exportname"].encode())] if named else []

    with target.dial() as client:
        converse(client, [flags.ljust(4, b"\1"), *negotiation, *name, *asked])


@settings(max_examples=40, deadline=None)
@given(st.lists(requests, min_size=1, max_size=8))
def test_any_sequence_of_requests_comes_to_an_end(target: Target, asked: list[bytes]) -> None:
    target.purpose("insecure_nbd")
    name = say(1, target.info["exportname"].encode())

    with target.dial() as client:
        converse(client, [b"\0\0\0\1", name, *asked])


def test_random_bytes_come_to_an_end_at_every_stage(target: Target) -> None:
    rng = random.Random(5)
    begun = [
        b"",
        b"\0\0\0\1",
        b"\0\0\0\1" + say(5),
        b"\0\0\0\1" + say(1, target.info["exportname"].encode()),
        b"\0\0\0\1" + say(1, target.info["exportname"].encode()) + ask(0, 0, 1 << 20),
    ]
    for purpose in ("nbd", "insecure_nbd"):
        target.purpose(purpose)
        for round_ in range(60):
            with target.dial() as client:
                converse(client, [begun[round_ % len(begun)], rng.randbytes(rng.randrange(3000))])


def test_clients_that_reset_at_any_time_leave_nothing(target: Target) -> None:
    target.purpose("insecure_nbd")
    name = say(1, target.info["exportname"].encode())
    whole = b"\0\0\0\1" + say(3) + name + ask(0, 0, SIZE)
    for length in range(0, len(whole) + 1, 5):
        client = target.dial()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(whole[:length])
        client.close()


def test_broken_handshakes_of_tls_come_to_an_end(target: Target) -> None:
    target.purpose("nbd")
    context = ssl.create_default_context()
    for garbage in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", bytes(5000)):
        with target.dial() as client:
            stream = client.makefile("rb")
            assert len(stream.read(18)) == 18
            client.sendall(b"\0\0\0\1" + say(5))
            assert len(stream.read(20)) == 20
            converse(client, [garbage])
    with target.dial() as client:  # a client that does not trust the certificate
        client.recv(18)
        client.sendall(b"\0\0\0\1" + say(5))
        client.recv(20)
        with pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(client, server_hostname="prod-h1")


def test_who_asks_and_never_reads_costs_a_bounded_buffer(target: Target) -> None:
    target.purpose("insecure_nbd")
    with target.dial() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"\0\0\0\1" + say(1, target.info["exportname"].encode()))
        client.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError):
            while sent < 64 << 20:
                sent += client.send(ask(0, 0, 2 << 20) * 1000)

        assert sent < 32 << 20
    target.until(lambda: target.vbds() == 0)


def test_after_all_that_nothing_is_left(target: Target) -> None:
    target.purpose("insecure_nbd")
    target.until(lambda: target.vbds() == 0)

    def connections() -> int:
        gc.collect()
        return sum(isinstance(each, NbdConnection) for each in gc.get_objects())

    target.until(lambda: connections() == 0)
    held = [target.dial() for _ in range(CONNECTION_LIMIT)]
    assert [len(client.recv(18)) for client in held] == [18] * CONNECTION_LIMIT
    for client in held:
        client.close()
    target.until(lambda: connections() == 0)
    target.read()
    assert not [each.name for each in threading.enumerate() if "nbd" in each.name]
