"""Uploads nobody should send: they fail as in XAPI, and touch nothing but their disk."""

import socket
import struct
import tracemalloc
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import XenAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.patience import patience
from xorepd_lab.disks.vhd import BLOCK, DYNAMIC, SECTOR, Footer, Header, checksum, table_size
from xorepd_lab.threaded import ThreadedLab, threaded_lab
from xorepd_lab.topology import PoolSpec, SrSpec, Topology

pytestmark = pytest.mark.lab

MIB: Final = 1 << 20
SIZE: Final = 4 * BLOCK
IO_ERROR: Final = ["VDI_IO_ERROR", "Device I/O errors"]
BEFORE: Final = b"\xa5" * SIZE
POOL: Final = PoolSpec("uploads", ("h1",), (SrSpec("store", "ext", ("h1",)),), ("lan",))
QUICK: Final = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Target:
    """A lab with two disks: one to be written to, one that must stay as it is."""

    def __init__(self, lab: ThreadedLab, session: Any, disk: str, neighbour: str) -> None:
        self.lab = lab
        self.session = session
        self.disk = disk
        self.neighbour = neighbour

    def content(self, vdi: str) -> bytes:
        repository, uuid = self.lab.pools["uploads"].storage.of_vdi(vdi)
        with repository.store.open(uuid) as opened:
            return opened.read(0, opened.virtual_size)

    def reset(self) -> None:
        repository, uuid = self.lab.pools["uploads"].storage.of_vdi(self.disk)
        with repository.store.open(uuid, writable=True) as opened:
            opened.write(0, BEFORE)

    def upload(
        self, query: str, body: bytes, length: int | None = None, half_close: bool = True
    ) -> list[str]:
        """Send a body and return the error of the task, [] for success.

        Args:
            query: Parameters that say what the body is.
            body: All that is sent.
            length: What Content-Length says; None: nothing.
            half_close: Say that nothing more comes; otherwise just go away.
        """
        api, pool = self.session.xenapi, self.lab.pools["uploads"]
        task = api.task.create("upload", "")
        path = f"/import_raw_vdi?session_id={self.session.handle}&vdi={self.disk}&task_id={task}"
        said = "" if length is None else f"Content-Length: {length}\r\n"
        split = urlsplit(pool.plain_url)
        with socket.create_connection((split.hostname, split.port)) as connection:
            connection.settimeout(patience())
            connection.sendall(f"PUT {path}{query} HTTP/1.1\r\nHost: lab\r\n{said}\r\n".encode())
            with suppress(ConnectionError):
                connection.sendall(body)
            if half_close:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
                with suppress(ConnectionError):
                    while connection.recv(1 << 16):
                        pass
        token, status = "", "pending"
        while status == "pending":
            answer = self.session.xenapi_request("event.from", ([f"task/{task}"], token, 20.0))
            token, status = answer["token"], answer["events"][0]["snapshot"]["status"]
        error = api.task.get_error_info(task)
        api.task.destroy(task)
        assert status in ("success", "failure")
        return list(error)

    def check_bystanders(self) -> None:
        """Nothing else changed, nothing was left behind, and the pool answers."""
        api = self.session.xenapi
        assert self.content(self.neighbour) == BEFORE
        assert api.VDI.get_virtual_size(self.disk) == str(SIZE)
        assert api.VDI.get_VBDs(self.disk) == []
        assert len(api.VDI.get_all()) == 2


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("uploads")
    with threaded_lab(directory / "lab", Topology("uploads", (POOL,)), time_scale=0.0002) as lab:
        pool = lab.pools["uploads"]
        session = XenAPI.Session(pool.plain_url)
        session.login_with_password(pool.username, pool.password)
        record = {"type": "user", "sharable": False, "read_only": False, "other_config": {}}
        [sr] = session.xenapi.SR.get_by_name_label("store")
        disks = [
            session.xenapi.VDI.create(
                record | {"SR": sr, "name_label": name, "virtual_size": str(SIZE)}
            )
            for name in ("disk", "neighbour")
        ]
        made = Target(lab, session, *disks)
        made.reset()
        repository, uuid = pool.storage.of_vdi(made.neighbour)
        with repository.store.open(uuid, writable=True) as opened:
            opened.write(0, BEFORE)
        try:
            yield made
        finally:
            session("close")()


# -- chunked raw ----------------------------------------------------------------------------------

NUMBERS: Final = st.one_of(
    st.integers(0, SIZE // SECTOR).map(lambda sectors: sectors * SECTOR),
    st.sampled_from([1, 511, 513, SIZE - SECTOR, SIZE + SECTOR, 2**31 - 512, 2**31, 2**32 - 512]),
    st.integers(0, 2**64 - 1),
)


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """Draw one chunk: mostly a good one, with as much data as it says unless that is absurd."""
    offset, length = draw(NUMBERS) % 2**64, draw(NUMBERS) % 2**32
    if draw(st.booleans()):
        length = draw(st.integers(0, 64)) * SECTOR
    data = bytes([draw(st.integers(0, 255))]) * min(length, 256 * 1024)
    return struct.pack("<QI", offset, length) + data


def follow(body: bytes) -> tuple[bytearray, bool, slice]:
    """Return what a disk holds after these chunks, whether all is well, and what nobody can know.

    Of a chunk that is cut any part may have been written.
    """
    content, at, unknown = bytearray(BEFORE), 0, slice(0, 0)
    while at + 12 <= len(body):
        offset, length = struct.unpack_from("<QI", body, at)
        at += 12
        if offset == length == 0:
            return content, True, unknown
        if offset % SECTOR or length % SECTOR or length >= 2**31 or offset + length > SIZE:
            break
        data = body[at : at + length]
        at += length
        if len(data) < length:
            unknown = slice(offset, offset + len(data))
            break
        content[offset : offset + length] = data
    return content, False, unknown


@QUICK
@given(
    st.lists(chunks(), max_size=4).map(b"".join),
    st.booleans(),
    st.integers(0, 2000),
    st.booleans(),
)
@example(struct.pack("<QI", SIZE - SECTOR, 2 * SECTOR) + bytes(2 * SECTOR), True, 0, True)
@example(struct.pack("<QI", 2**64 - SECTOR, SECTOR) + bytes(SECTOR), True, 0, True)
@example(struct.pack("<QI", 0, 2**31) + bytes(4096), False, 0, True)
def test_chunks_are_written_up_to_the_first_that_is_wrong(
    target: Target, sent: bytes, ended: bool, cut: int, half_close: bool
) -> None:
    target.reset()
    body = sent + bytes(12) if ended else sent[: len(sent) - cut]

    error = target.upload("&format=raw&chunked=1", body, half_close=half_close)

    expected, good, unknown = follow(body)
    found = target.content(target.disk)
    if half_close:
        assert error == ([] if good else IO_ERROR)
        assert found[: unknown.start] == expected[: unknown.start]
        assert found[unknown.stop :] == expected[unknown.stop :]
    else:
        assert error in ([], IO_ERROR)
    target.check_bystanders()


# -- raw ------------------------------------------------------------------------------------------


@QUICK
@given(st.integers(0, SIZE + 4096), st.one_of(st.none(), NUMBERS))
def test_raw_bytes_need_the_length_that_was_said(
    target: Target, sent: int, length: int | None
) -> None:
    target.reset()
    wanted = SIZE if length is None else length

    error = target.upload("&format=raw", b"\x11" * sent, length)

    taken = min(wanted, sent)
    assert error == ([] if 0 < wanted <= min(sent, SIZE) else IO_ERROR)
    found = target.content(target.disk)
    if not error:
        assert found == b"\x11" * taken + BEFORE[taken:]
    assert found[taken:] == BEFORE[taken:]
    assert not found[:taken].translate(None, b"\x11\xa5")
    target.check_bystanders()


# -- VHD ------------------------------------------------------------------------------------------

TABLE_OFFSET: Final = 1536
FIRST_BLOCK: Final = TABLE_OFFSET // SECTOR + 1
STORED: Final = 1 + BLOCK // SECTOR


def stream(
    table: list[int], bitmaps: list[bytes], size: int = SIZE, entries: int | None = None
) -> bytearray:
    """Return a VHD stream: any BAT, and blocks of 0x22 with these bitmaps one behind the other."""
    footer = Footer(size, DYNAMIC, UUID(int=7)).pack()
    count = len(table) if entries is None else entries
    sectors = array("I", table)
    sectors.byteswap()
    raw = sectors.tobytes().ljust(table_size(len(table)), b"\xff")
    data = b"".join(bitmap + b"\x22" * BLOCK for bitmap in bitmaps)
    return bytearray(footer + Header(TABLE_OFFSET, count).pack() + raw + data + footer)


def sealed(body: bytearray) -> bytearray:
    """Make the checksums of the front right again, whatever was changed there."""
    for at, size, where in ((0, 512, 64), (512, 1024, 36)):
        part = memoryview(body)[at : at + size]
        struct.pack_into(">I", part, where, 0)
        struct.pack_into(">I", part, where, checksum(part))
    return body


BITMAPS: Final = st.one_of(
    st.just(b"\xff" * 512), st.just(bytes(512)), st.binary(min_size=512, max_size=512)
)
ENTRIES: Final = st.one_of(
    st.just(0xFFFFFFFF),
    st.sampled_from([0, 1, 3, FIRST_BLOCK, FIRST_BLOCK + 1, FIRST_BLOCK + STORED, 0xFFFFFFFE]),
    st.integers(0, 2**32 - 1),
)


@QUICK
@given(st.lists(ENTRIES, min_size=4, max_size=6), st.lists(BITMAPS, max_size=2))
@example([FIRST_BLOCK] * 4, [b"\xff" * 512])
@example([FIRST_BLOCK, FIRST_BLOCK + 1, 0xFFFFFFFF, 0xFFFFFFFF], [b"\xff" * 512])
@example([0xFFFFFFFF] * 4 + [FIRST_BLOCK], [b"\xff" * 512])
def test_a_table_may_lie_and_only_its_disk_suffers(
    target: Target, table: list[int], bitmaps: list[bytes]
) -> None:
    """Blocks that overlap, lie in the header, behind the end, or past the end of the disk."""
    target.reset()
    body = stream(table, bitmaps)

    error = target.upload("&format=vhd", bytes(body), len(body))

    used = sorted((sector, index) for index, sector in enumerate(table) if sector != 0xFFFFFFFF)
    apart = all(b[0] - a[0] >= STORED for a, b in pairwise(used))
    inside = all(
        sector >= FIRST_BLOCK and (sector + STORED) * SECTOR <= len(body) - SECTOR
        for sector, _ in used
    )
    if not (apart and inside):
        assert error == IO_ERROR
    elif not used:
        assert error == []
    found = target.content(target.disk)
    for index in set(range(4)) - {index for _, index in used}:
        assert found[index * BLOCK : (index + 1) * BLOCK] == BEFORE[:BLOCK]
    target.check_bystanders()


@QUICK
@given(st.binary(min_size=512, max_size=512), st.integers(0, 3))
def test_sectors_without_their_bit_keep_what_they_held(
    target: Target, bitmap: bytes, index: int
) -> None:
    target.reset()
    table = [0xFFFFFFFF] * 4
    table[index] = FIRST_BLOCK
    body = stream(table, [bitmap])

    error = target.upload("&format=vhd", bytes(body), len(body))

    expected = bytearray(BEFORE)
    for sector in range(BLOCK // SECTOR):
        if bitmap[sector // 8] & (0x80 >> sector % 8):
            at = index * BLOCK + sector * SECTOR
            expected[at : at + SECTOR] = b"\x22" * SECTOR
    assert error == []
    assert target.content(target.disk) == expected
    target.check_bystanders()


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 1535), st.integers(0, 255)), max_size=6),
    st.booleans(),
    st.integers(0, 2 * MIB + 8192),
)
def test_a_spoilt_front_is_refused_or_changes_nothing_that_matters(
    target: Target, changes: list[tuple[int, int]], seal: bool, cut: int
) -> None:
    target.reset()
    body = stream([0xFFFFFFFF, FIRST_BLOCK, 0xFFFFFFFF, 0xFFFFFFFF], [b"\xff" * 512])
    whole = len(body)
    for at, value in changes:
        body[at] = value
    body = sealed(body) if seal else body

    error = target.upload("&format=vhd", bytes(body[: whole - cut]), whole)

    assert error == IO_ERROR if cut else error in ([], IO_ERROR)
    found = target.content(target.disk)
    written = b"\x22" * BLOCK
    if not error and not changes:
        assert found == BEFORE[:BLOCK] + written + BEFORE[: 2 * BLOCK]
    assert not found.translate(None, b"\x22\xa5" + body[:2048])
    target.check_bystanders()


@pytest.mark.parametrize("length", [None, 0, 511, 2048, 3 * MIB, 2**62, 2**63 - 1])
def test_a_vhd_needs_its_exact_length(target: Target, length: int | None) -> None:
    target.reset()
    body = stream([0xFFFFFFFF, FIRST_BLOCK, 0xFFFFFFFF, 0xFFFFFFFF], [b"\xff" * 512])
    assert len(body) != length

    assert target.upload("&format=vhd", bytes(body), length) == IO_ERROR
    target.check_bystanders()


@pytest.mark.parametrize(
    "form",
    ["&format=raw&chunked=1", "&format=vhd", "&format=raw"],
)
def test_absurd_sizes_cost_no_memory(target: Target, form: str) -> None:
    """A chunk of nearly 2 GiB, a table of 4 billion entries, an endless body: none is held."""
    target.reset()
    noise = b"\x33" * MIB
    bodies = {
        "&format=raw&chunked=1": (struct.pack("<QI", 0, 2**31 - 512) + noise, None),
        "&format=vhd": (
            bytes(stream([FIRST_BLOCK] * 4, [], size=2**62, entries=2**32 - 1)) + 8 * noise,
            2**62,
        ),
        "&format=raw": (noise * 7, 2**62),
    }
    body, length = bodies[form]

    tracemalloc.start()
    try:
        error = target.upload(form, body, length)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert error == IO_ERROR
    assert peak < 24 * MIB
    target.check_bystanders()
