"""The NBD client against nbdkit, which is not ours, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import random
import shutil
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trustme

from tests.patience import patience
from xorepd.data.nbd import protocol as nbd
from xorepd.data.nbd import reader as nbd_reader
from xorepd.data.nbd.exports import NbdExport
from xorepd.data.nbd.protocol import open_nbd
from xorepd.data.nbd.reader import NbdConnectionLimit, NbdReader, open_nbd_reader
from xorepd.errors import AddressFailed, DataError, ProtocolViolation, StreamCut
from xorepd.extents import Extent, merge
from xorepd.units import KiB, MiB

SIZE = 8 * MiB
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def export(port: int, certificate: str = "") -> NbdExport:
    return NbdExport("127.0.0.1", port, "/disk?session_id=secret", certificate, "localhost")


@asynccontextmanager
async def nbdkit(tmp_path: Path, content: bytes, *, tls: bool) -> AsyncIterator[NbdExport]:
    program = shutil.which("nbdkit")
    if program is None:
        pytest.skip("nbdkit is not installed")
    image = tmp_path / "disk"
    image.write_bytes(content)
    arguments = ["--foreground", "--exit-with-parent", "--threads=1", "--readonly"]
    certificate = ""
    if tls:
        ca = trustme.CA()
        issued = ca.issue_cert("localhost")
        ca.cert_pem.write_to_path(tmp_path / "ca-cert.pem")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "server-cert.pem")
        issued.private_key_pem.write_to_path(tmp_path / "server-key.pem")
        certificate = issued.cert_chain_pems[0].bytes().decode()
        arguments += ["--tls=require", f"--tls-certificates={tmp_path}"]
    port = random.randrange(20000, 30000)
    process = await asyncio.create_subprocess_exec(
        program, *arguments, "--ipaddr=127.0.0.1", f"--port={port}", "file", str(image)
    )
    try:
        for _ in range(200):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield export(port, certificate)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.stranger
@pytest.mark.parametrize("tls", [False, True])
async def test_random_extents_are_read_from_nbdkit(tmp_path: Path, tls: bool) -> None:
    rng = random.Random(1)
    content = rng.randbytes(SIZE)
    extents = merge(
        Extent(rng.randrange(0, SIZE // 512) * 512, rng.randrange(1, 200) * 512) for _ in range(40)
    )
    extents = [e for e in extents if e.end <= SIZE]
    async with nbdkit(tmp_path, content, tls=tls) as served:
        three = partial(NbdConnectionLimit().connections, [served], 3, "disk", stall=10)
        async with open_nbd_reader(three, SIZE, extents, "disk") as reader:
            await check(reader, content, extents)


def reading(
    served: NbdExport, size: int, *, stall: float = 5
) -> AbstractAsyncContextManager[NbdReader]:
    one = partial(NbdConnectionLimit().connections, [served], 1, "disk", stall=stall, again=True)
    return open_nbd_reader(one, size, [Extent(0, size)], "disk")


async def check(reader: NbdReader, content: bytes, extents: list[Extent]) -> None:
    seen = []
    async with aclosing(reader.pieces()) as pieces:
        async for offset, data in pieces:
            assert bytes(data) == content[offset : offset + len(data)]
            seen.append(Extent(offset, len(data)))
    assert seen == sorted(seen)
    assert merge(seen) == extents


@pytest.mark.stranger
async def test_another_certificate_than_the_one_told_is_refused(tmp_path: Path) -> None:
    other = trustme.CA().issue_cert("localhost").cert_chain_pems[0].bytes().decode()
    async with nbdkit(tmp_path, bytes(MiB), tls=True) as served:
        told = NbdExport(served.address, served.port, served.name, other, "localhost")
        with pytest.raises(DataError, match="not the one that the pool gave"):
            async with open_nbd(told, "disk", stall=10):
                pass


@pytest.mark.stranger
async def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    async with nbdkit(tmp_path, bytes(MiB), tls=True) as served:
        told = NbdExport(served.address, served.port, served.name, "garbage", "localhost")
        with pytest.raises(ProtocolViolation, match="an invalid certificate or subject for NBD"):
            async with open_nbd(told, "disk", stall=10):
                pass


# -- servers that misbehave ---------------------------------------------------------------------

GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1)
SHORT_DISK = struct.pack(">QH", SIZE, 3) + bytes(124)


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[NbdExport]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await behave(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield export(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        if tasks:
            await asyncio.wait(tasks, timeout=patience())


async def handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    await reader.readexactly(4)
    magic, option, length = struct.unpack(">8sII", await reader.readexactly(16))
    assert (magic, option) == (b"IHAVEOPT", 1)
    assert await reader.readexactly(length) == b"/disk?session_id=secret"
    writer.write(SHORT_DISK)


async def requested(reader: asyncio.StreamReader) -> tuple[int, int, int]:
    """Return cookie, offset and length of the next read."""
    magic, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", await reader.readexactly(28))
    assert magic == 0x25609513
    if kind == 2:
        raise ConnectionResetError
    return cookie, offset, length


async def goodbye(reader: asyncio.StreamReader) -> None:
    """Return when the client says that it wants no more: a server hangs up then."""
    with pytest.raises(ConnectionResetError):
        await requested(reader)


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "not that of a newstyle"),
        (b"NBDMAGIC" + bytes(10), "not that of a newstyle"),
        (b"NBDMAGICIHAVEOPT" + struct.pack(">H", 0), "fixed newstyle"),
        (b"", "ended the connection"),
        (b"NBDM", "ended the connection"),
    ],
)
async def test_a_greeting_that_is_none_is_refused_by_name(greeting: bytes, message: str) -> None:
    async def behave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)

    async with serving(behave) as served:
        with pytest.raises(ProtocolViolation, match=f"disk: .*{message}"):
            async with open_nbd(served, "disk", stall=patience()):
                pass


async def accept_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    await reader.readexactly(4 + 16)
    writer.write(struct.pack(">QIII", 0x3E889045565A9, 5, 1, 0))


def told(served: NbdExport, subject: str = "localhost") -> NbdExport:
    return NbdExport(served.address, served.port, served.name, "told", subject)


@pytest.mark.parametrize("subject", ["", ".lan", "x" * 64 + ".lan"])
async def test_a_subject_that_is_none_is_refused(
    subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "GREETING_S", 0.5)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_tls(reader, writer)
        await reader.read()

    async with serving(behave) as served:
        with pytest.raises(ProtocolViolation, match="disk: "):
            async with open_nbd(told(served, subject), "disk", stall=0.5):
                pass


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
async def test_a_server_that_accepts_tls_and_does_not_speak_it_is_given_up(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "GREETING_S", 0.5)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_tls(reader, writer)
        await reader.readexactly(10)
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)

    async with serving(behave) as served:
        async with asyncio.timeout(patience()):
            with pytest.raises(DataError, match="disk: the NBD connection broke"):
                async with open_nbd(told(served), "disk", stall=0.3):
                    pass


BEGUN = [
    b"",
    b"NBDMAGIC",
    GREETING,
    GREETING + struct.pack(">QIII", 0x3E889045565A9, 5, 1, 0)[:19],
]


@pytest.mark.parametrize("begun", BEGUN)
@pytest.mark.parametrize("drips", [False, True])
async def test_a_server_that_does_not_come_to_the_end_of_its_greeting_is_given_up(
    begun: bytes, drips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "GREETING_S", 0.5)

    async def drip(rest: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in rest:
            await asyncio.sleep(0.2)
            writer.write(bytes([byte]))

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begun)
        rest = BEGUN[-1][len(begun) :] if drips else b""
        feeding = asyncio.get_running_loop().create_task(drip(rest, writer))
        await reader.read()
        feeding.cancel()

    async with serving(behave) as served:
        with pytest.raises(AddressFailed, match=r"disk: .* at 127\.0\.0\.1:"):
            async with open_nbd(told(served), "disk", stall=5):
                pass


async def test_a_disk_that_is_not_attached_in_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbd, "ATTACH_S", 0.5)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.read()

    async with serving(behave) as served:
        with pytest.raises(AddressFailed):
            async with open_nbd(served, "disk", stall=5):
                pass


@pytest.mark.parametrize(
    "reply",
    [
        struct.pack(">QIII", 0, 5, 1, 0),
        struct.pack(">QIII", 0x3E889045565A9, 1, 1, 0),
        struct.pack(">QIII", 0x3E889045565A9, 5, 0x80000001, 0),
        struct.pack(">QIII", 0x3E889045565A9, 5, 1, 0xFFFFFFFF),
        struct.pack(">QIII", 0x3E889045565A9, 5, 1, 0) + b"clear text",
    ],
)
async def test_an_answer_to_starttls_that_is_none_is_refused(reply: bytes) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.readexactly(4 + 16)
        writer.write(reply)
        assert b"secret" not in await reader.read()

    async with serving(behave) as served:
        with pytest.raises(AddressFailed):
            async with open_nbd(told(served), "disk", stall=5):
                pass


@pytest.mark.parametrize("address", ["a..b", "x" * 300, "nul\0", "", "[::1"])
async def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(AddressFailed):
        async with open_nbd(NbdExport(address, 10809, "/disk", "", ""), "disk", stall=5):
            pass


async def test_an_address_that_failed_is_asked_once_for_all_disks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbd, "GREETING_S", 0.2)
    came = 0

    async def behave(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await reader.read()

    budget = NbdConnectionLimit(per_host=1)

    async def refused(served: NbdExport) -> str:
        with pytest.raises(AddressFailed) as caught:
            async with budget.connections([served], 1, "disk", stall=5):
                pass
        return str(caught.value)

    async with serving(behave) as served:
        said = await asyncio.gather(*(refused(served) for _ in range(20)))

    assert came == 1
    assert sum("is not asked again for a while" in text for text in said) == 19


async def test_an_address_that_failed_is_asked_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbd, "GREETING_S", 0.2)
    monkeypatch.setattr(nbd_reader, "FAILED_S", 0.2)
    is_well = asyncio.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if is_well.is_set():
            await handshake(reader, writer)
            await goodbye(reader)
        await reader.read()

    budget = NbdConnectionLimit()
    async with serving(behave) as served:
        with pytest.raises(AddressFailed):
            async with budget.connections([served], 1, "disk", stall=5):
                pass
        is_well.set()
        while True:
            with suppress(AddressFailed):
                async with budget.connections([served], 1, "disk", stall=5) as opened:
                    assert [connection.size for connection in opened] == [SIZE]
                    break
            await asyncio.sleep(0.05)


async def test_of_two_hosts_the_one_that_failed_is_not_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbd, "GREETING_S", 0.5)
    came = 0

    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await reader.read()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer)
        await goodbye(reader)

    budget = NbdConnectionLimit()
    async with serving(say_nothing) as first, serving(serve) as second:
        for _ in range(5):
            async with budget.connections([first, second], 1, "disk", stall=5) as opened:
                assert [connection.size for connection in opened] == [SIZE]
    assert came == 1


async def test_an_address_whose_reads_stall_is_left_alone_by_other_disks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbd_reader, "PAUSE_S", 0.001)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer)
        await reader.read()

    budget = NbdConnectionLimit()
    async with serving(behave) as served:
        one = partial(budget.connections, [served], 1, "disk", stall=0.2)
        async with open_nbd_reader(one, SIZE, [Extent(0, SIZE)], "disk") as reader:
            with pytest.raises(DataError):
                await check(reader, bytes(SIZE), [Extent(0, SIZE)])
        with pytest.raises(AddressFailed, match="is not asked again for a while"):
            async with one():
                pass


async def test_an_export_that_ends_in_the_middle_of_a_sector_is_refused() -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.readexactly(4 + 16)
        writer.write(struct.pack(">QH", 1000, 3) + bytes(124))
        await reader.read()

    async with serving(behave) as served:
        with pytest.raises(ProtocolViolation, match="offers 1000 bytes"):
            async with open_nbd(served, "disk", stall=patience()):
                pass


@pytest.mark.parametrize(
    ("reply", "message", "kind"),
    [
        (struct.pack(">IIQ", 0x67446698, 0, 77), "answers request 77", ProtocolViolation),
        (struct.pack(">IIQ", 0x11111111, 0, 1), "begins with 0x11111111", ProtocolViolation),
        (struct.pack(">IIQ", 0x67446698, 5, 1), "error 5", ProtocolViolation),
        (struct.pack(">IIQ", 0x67446698, 0, 1) + bytes(100), "after 100 of 65536", StreamCut),
        (b"\x67", "after 1 of 65536", StreamCut),
    ],
)
async def test_a_reply_that_is_none_is_refused_by_name(
    reply: bytes, message: str, kind: type[DataError]
) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer)
        await requested(reader)
        writer.write(reply)

    async with serving(behave) as served, open_nbd(served, "disk", stall=patience()) as connection:
        await connection.ask(Extent(0, 64 * KiB))
        with pytest.raises(kind, match=message):
            await connection.take(memoryview(bytearray(64 * KiB)))


async def test_small_reads_are_asked_for_far_ahead_and_large_ones_within_the_window() -> None:
    blocks = [Extent(at, 64 * KiB) for at in range(0, SIZE, 128 * KiB)]
    for extents, most in ((blocks, 32), ([Extent(0, SIZE)], 2)):
        ahead: list[int] = []

        async def behave(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ahead: list[int] = ahead
        ) -> None:
            await handshake(reader, writer)
            waiting = [await requested(reader)]
            await asyncio.sleep(0.1)  # whoever asks ahead has asked by then
            while waiting:
                with suppress(TimeoutError):
                    while True:
                        waiting.append(await asyncio.wait_for(requested(reader), 0.1))
                ahead.append(len(waiting))
                while waiting:
                    cookie, _, length = waiting.pop(0)
                    writer.write(struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes(length))
                waiting.append(await requested(reader))

        async with serving(behave) as served:
            one = partial(NbdConnectionLimit().connections, [served], 1, "disk", stall=patience())
            async with open_nbd_reader(one, SIZE, extents, "disk") as reader:
                await check(reader, bytes(SIZE), extents)
        assert ahead[0] == most


async def test_a_server_that_drops_now_and_then_is_read_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbd_reader, "PAUSE_S", 0.001)
    content = random.Random(3).randbytes(SIZE)
    answered = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        await handshake(reader, writer)
        for _ in range(3):  # and no more for this connection
            cookie, offset, length = await requested(reader)
            writer.write(struct.pack(">IIQ", 0x67446698, 0, cookie))
            writer.write(content[offset : offset + length])
            await writer.drain()
            answered += 1
        writer.write(struct.pack(">IIQ", 0x67446698, 0, cookie + 1) + bytes(1000))

    async with serving(behave) as served, reading(served, SIZE) as reader:
        await check(reader, content, [Extent(0, SIZE)])
        assert reader.reconnects >= 2


async def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_reader, "PAUSE_S", 0.001)
    tries = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        await handshake(reader, writer)
        await reader.read()

    async with serving(behave) as served, reading(served, SIZE, stall=0.05) as reader:
        with pytest.raises(DataError, match="no byte moved"):
            await check(reader, bytes(SIZE), [Extent(0, SIZE)])
    assert tries == nbd_reader.TRIES


async def test_an_export_smaller_than_the_disk_is_refused() -> None:

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer)
        await goodbye(reader)

    async with serving(behave) as served:
        with pytest.raises(ProtocolViolation, match=f"serves {SIZE} bytes"):
            async with reading(served, 2 * SIZE):
                pass


async def test_connections_to_a_host_are_counted_over_all_disks() -> None:
    at_once = most = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await handshake(reader, writer)
        try:
            while True:
                cookie, _, length = await requested(reader)
                writer.write(struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes(length))
        finally:
            at_once -= 1

    budget = NbdConnectionLimit(per_host=3)

    async def copy(served: NbdExport) -> None:
        two = partial(budget.connections, [served], 2, "disk", stall=patience())
        async with open_nbd_reader(two, SIZE, [Extent(0, SIZE)], "disk") as reader:
            await check(reader, bytes(SIZE), [Extent(0, SIZE)])

    async with serving(behave) as served, asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(copy(served))
    assert most == 3


async def test_the_next_host_is_asked_when_one_does_not_serve_the_disk() -> None:
    async def refuse(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        return

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handshake(reader, writer)
        await goodbye(reader)

    async with serving(refuse) as first, serving(serve) as second:
        other = NbdExport("localhost", second.port, second.name, "", "")
        async with NbdConnectionLimit().connections(
            [first, other], 1, "disk", stall=patience()
        ) as opened:
            assert [connection.size for connection in opened] == [SIZE]


def test_an_export_does_not_show_its_session() -> None:
    assert "secret" not in repr(export(10809))
