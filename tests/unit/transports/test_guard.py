"""What a transport does wrong, and what the run is told about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

import pytest

from xorepd.data.reader import Reader
from xorepd.errors import StreamCut, TransportFailed
from xorepd.extents import Extent
from xorepd.transports.base import OpenWriter
from xorepd.transports.conformance import ScriptedReader, ScriptedWriter
from xorepd.transports.guard import Guarded
from xorepd.units import MiB

Carry = Callable[[Reader, OpenWriter], Awaitable[None]]


class Plugin:
    def __init__(self, carry: Carry) -> None:
        self._carry = carry

    async def carry(self, reader: Reader, open_writer: OpenWriter) -> None:
        await self._carry(reader, open_writer)


def disk(fails_with: Exception | None = None) -> ScriptedReader:
    return ScriptedReader(2 * MiB, [Extent(0, 2 * MiB)], fails_with=fails_with)


async def copy(reader: Reader, open_writer: OpenWriter, *, skip: int = 0, end: bool = True) -> None:
    async with open_writer(reader.virtual_size, reader.extents) as writer:
        async with aclosing(reader.pieces()) as pieces:
            async for offset, data in pieces:
                if skip:
                    skip -= 1
                else:
                    await writer.write(offset, data)
        if end:
            await writer.finish()


async def failed(carry: Carry, reader: ScriptedReader, writer: ScriptedWriter) -> Exception:
    with pytest.raises((TransportFailed, StreamCut)) as caught:
        await Guarded("odd", Plugin(carry)).carry(reader, writer.open)
    assert not reader.is_open
    assert not writer.is_open
    return caught.value


async def test_transport_that_loses_a_piece_has_failed() -> None:
    reader = disk()

    error = await failed(lambda r, w: copy(r, w, skip=1), reader, ScriptedWriter(reader))

    assert "transport odd failed (it gave on" in str(error)


async def test_transport_that_does_not_wait_for_the_confirmation_has_failed() -> None:
    reader = disk()

    error = await failed(lambda r, w: copy(r, w, end=False), reader, ScriptedWriter(reader))

    assert "before the target confirmed the data" in str(error)


async def test_error_of_a_reader_that_a_transport_hides_comes_out() -> None:
    cut = StreamCut("disk", 1, 2)
    reader = disk(cut)

    async def hide(r: Reader, w: OpenWriter) -> None:
        with suppress(StreamCut):
            await copy(r, w)

    assert await failed(hide, reader, ScriptedWriter(reader)) is cut


async def test_error_of_a_writer_that_a_transport_wraps_comes_out_bare() -> None:
    cut = StreamCut("disk", 1, 2)
    reader = disk()

    async def wrap(r: Reader, w: OpenWriter) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(copy(r, w))

    writer = ScriptedWriter(reader, fails_at="write", fails_with=cut)

    assert await failed(wrap, reader, writer) is cut


async def test_fault_of_a_transport_is_laid_at_its_door() -> None:
    async def crash(r: Reader, w: OpenWriter) -> None:
        raise ZeroDivisionError("oops")

    reader = disk()
    error = await failed(crash, reader, ScriptedWriter(reader))

    assert str(error) == (
        "transport odd failed (ZeroDivisionError: oops); "
        "report it to whoever made its package, or use direct meanwhile"
    )


async def test_ends_that_a_transport_leaves_open_are_closed() -> None:
    async def leave(r: Reader, w: OpenWriter) -> None:
        writer = await w(r.virtual_size, r.extents).__aenter__()
        offset, data = await anext(r.pieces())
        await writer.write(offset, data)
        raise OSError("gone")

    reader = disk()
    await failed(leave, reader, ScriptedWriter(reader))


async def test_transport_that_ignores_its_cancellation_is_cut_off() -> None:
    reader, ended = disk(), asyncio.Event()
    writer = ScriptedWriter(reader)
    wrote: list[str] = []
    deaf = asyncio.Event()

    async def ignore(r: Reader, w: OpenWriter) -> None:
        async with w(r.virtual_size, r.extents) as target:
            offset, data = await anext(r.pieces())
            deaf.set()
            while not ended.is_set():
                with suppress(asyncio.CancelledError):
                    await ended.wait()
            try:
                await target.write(offset, data)
            except TransportFailed as error:
                wrote.append(str(error))

    guarded = Guarded("deaf", Plugin(ignore), cancel_s=0.1)
    carrying = asyncio.get_running_loop().create_task(guarded.carry(reader, writer.open))
    await deaf.wait()
    carrying.cancel()
    await asyncio.wait({carrying}, timeout=5)

    assert carrying.cancelled()
    assert not reader.is_open
    assert not writer.is_open
    ended.set()
    while not wrote:  # noqa: ASYNC110 -- it wakes up at once
        await asyncio.sleep(0.01)
    assert "went on after its end" in wrote[0]
    assert writer.written == []
