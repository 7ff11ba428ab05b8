"""XVA as a format: what is written is read again, however it is cut, packed or compressed."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from xorepd_lab.model.failures import ApiError
from xorepd_lab.wire.xva import (
    END,
    OVA_XML,
    Archive,
    Described,
    Disks,
    Manifest,
    chunk,
    compressor,
    member,
    read_header,
)

SMALL = 8
"""Bytes of a chunk here: the first one of the archive decides."""

disks = st.dictionaries(
    st.integers(0, 30).map("Ref:{}".format),
    st.lists(st.sampled_from([b"\0" * SMALL, b"data-abc", b"\xff" * SMALL]), min_size=1),
    min_size=1,
    max_size=4,
)
cuts = st.lists(st.integers(1, 5000), min_size=1, max_size=20)
compressions = st.sampled_from([None, "gzip", "zstd"])


def manifest() -> bytes:
    version = {"xapi_major": 1, "xapi_minor": 2, "export_vsn": 2}
    return Manifest(version, (Described("VM", "Ref:0", {"name_label": "<&>"}),)).encode()


def written(contents: dict[str, list[bytes]]) -> bytes:
    """Return the archive of disks whose chunks are given; zeroes are left out inside."""
    parts = [member(OVA_XML, manifest())]
    for disk, chunks in sorted(contents.items()):
        for number, data in enumerate(chunks):
            if any(data) or number in (0, len(chunks) - 1):
                parts.append(chunk(disk, number, data))
    return b"".join(parts) + END


def packed(data: bytes, kind: str | None) -> bytes:
    pack = compressor(kind)
    return pack.compress(data) + pack.flush()


def in_pieces(data: bytes, sizes: list[int]) -> Callable[[], Awaitable[bytes]]:
    """Return what gives the data in pieces of these sizes, over and over."""

    def pieces() -> Iterator[bytes]:
        position, number = 0, 0
        while position < len(data):
            size = sizes[number % len(sizes)]
            yield data[position : position + size]
            position, number = position + size, number + 1

    source = pieces()

    async def receive() -> bytes:
        return next(source, b"")

    return receive


async def here(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


async def nothing(_: int) -> None:
    pass


async def read(data: bytes, sizes: list[int], contents: dict[str, list[bytes]]) -> dict[str, bytes]:
    """Return what an importer would have on its disks."""
    archive = Archive(in_pieces(data, sizes), here)
    await archive.manifest()
    found = {}
    reader = Disks(archive, inline=True, force=False)
    for disk, chunks in sorted(contents.items()):
        size = len(chunks) * SMALL
        image = bytearray(size)

        async def write(offset: int, data: bytes, image: bytearray = image) -> None:
            image[offset : offset + len(data)] = data

        await reader.receive(disk, size, size, write, nothing)
        found[disk] = bytes(image)
    return found


@given(contents=disks, kind=compressions, sizes=cuts)
@settings(max_examples=100, deadline=None)
def test_disks_come_back_as_they_went(
    contents: dict[str, list[bytes]], kind: str | None, sizes: list[int]
) -> None:
    found = asyncio.run(read(packed(written(contents), kind), sizes, contents))

    assert found == {disk: b"".join(chunks) for disk, chunks in contents.items()}


@given(contents=disks)
@settings(max_examples=50, deadline=None)
def test_tarfile_reads_what_we_write(contents: dict[str, list[bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(written(contents))) as archive:
        names = archive.getnames()

    assert names[0] == OVA_XML
    assert all(names[at + 1] == f"{names[at]}.xxhash" for at in range(1, len(names), 2))


@given(contents=disks, kind=compressions, sizes=cuts, data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_ends_early_is_told(
    contents: dict[str, list[bytes]], kind: str | None, sizes: list[int], data: st.DataObject
) -> None:
    whole = packed(written(contents)[: -len(END)], kind)
    # What trails behind the last byte that matters: a checksum's padding, a compressor's trailer.
    cut = data.draw(st.integers(0, max(0, len(whole) - 600)))

    with pytest.raises(ApiError) as caught:
        asyncio.run(read(whole[:cut], sizes, contents))

    assert caught.value.code == "IMPORT_ERROR_PREMATURE_EOF"


@given(noise=st.binary(max_size=3000), sizes=cuts, kind=compressions)
@settings(max_examples=100, deadline=None)
def test_noise_is_an_error_and_nothing_else(
    noise: bytes, sizes: list[int], kind: str | None
) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(read(packed(noise, kind), sizes, {"Ref:1": [b"data-abc"]}))

    assert caught.value.code.startswith("IMPORT_ERROR")


@given(contents=disks, where=st.integers(0, 1 << 20), value=st.integers(1, 255), sizes=cuts)
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_seen_or_does_not_matter(
    contents: dict[str, list[bytes]], where: int, value: int, sizes: list[int]
) -> None:
    spoilt = bytearray(written(contents))
    spoilt[where % len(spoilt)] ^= value
    expected = {disk: b"".join(chunks) for disk, chunks in contents.items()}

    code = ""
    try:
        found = asyncio.run(read(bytes(spoilt), sizes, contents))
    except ApiError as error:
        code = error.code

    assert code.startswith("IMPORT_ERROR") or found == expected


@given(block=st.binary(min_size=512, max_size=512))
def test_headers_of_noise_are_none_or_bounded(block: bytes) -> None:
    found = read_header(block)

    assert found is None or found.size >= 0


@given(name=st.text("abcRef:/0123456789", min_size=1, max_size=99), content=st.binary())
def test_headers_are_read_as_written(name: str, content: bytes) -> None:
    found = read_header(member(name, content)[:512])

    assert found is not None
    assert (found.name, found.size, found.kind) == (name, len(content), b"0")


def test_several_compressed_files_behind_each_other_are_one() -> None:
    contents = {"Ref:1": [b"data-abc", bytes(SMALL), b"data-abc"]}
    whole = written(contents)
    halves = whole[:700], whole[700:]
    expected = {"Ref:1": b"".join(contents["Ref:1"])}

    for pack in (gzip.compress, zstandard.compress):
        joined = b"".join(pack(half) for half in halves)
        for size in (1, 7, 1 << 20):
            assert asyncio.run(read(joined, [size], contents)) == expected
