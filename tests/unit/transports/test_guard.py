"""What a transport does wrong, and what the run is told about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial

import pytest

from tests.patience import patience
from xorepd.data.reader import Reader
from xorepd.errors import StreamCut, TransportFailed
from xorepd.extents import Extent
from xorepd.plugin.conformance import ScriptedReader, ScriptedTarget
from xorepd.transports.base import Target, Verifier
from xorepd.transports.guard import guarded
from xorepd.units import MiB

Carry = Callable[[Reader, Target], Awaitable[None]]


class Plugin:
    def __init__(self, carry: Carry) -> None:
        self._carry = carry

    async def carry(self, reader: Reader, target: Target) -> None:
        await self._carry(reader, target)


def disk(fails_with: Exception | None = None) -> ScriptedReader:
    return ScriptedReader(2 * MiB, [Extent(0, 2 * MiB)], fails_with=fails_with)


async def copy(reader: Reader, target: Target, *, skip: int = 0, end: bool = True) -> None:
    async with target.open(reader.virtual_size, reader.extents) as writer:
        async with aclosing(reader.pieces()) as pieces:
            async for offset, data in pieces:
                if skip:
                    skip -= 1
                else:
                    await writer.write(offset, data)
        if end:
            await writer.finish()


async def failed(carry: Carry, reader: ScriptedReader, target: ScriptedTarget) -> Exception:
    with pytest.raises((TransportFailed, StreamCut)) as caught:
        await guarded("odd", Plugin(carry)).carry(reader, target)
    assert not reader.is_open
    assert not target.is_open
    return caught.value


async def test_transport_that_loses_a_piece_has_failed() -> None:
    reader = disk()

    error = await failed(lambda r, w: copy(r, w, skip=1), reader, ScriptedTarget(reader))

    assert "transport odd failed (it passed on" in str(error)


async def test_transport_that_does_not_wait_for_the_confirmation_has_failed() -> None:
    reader = disk()

    error = await failed(lambda r, w: copy(r, w, end=False), reader, ScriptedTarget(reader))

    assert "before the target confirmed the data" in str(error)


async def elsewhere(reader: Reader, target: Target, *, confirmed: int, read: bool = True) -> None:
    """Take the data somewhere else, and say how much of it the pool has confirmed."""
    if read:
        async with aclosing(reader.pieces()) as pieces:
            async for _, data in pieces:
                await target.pay(len(data))
                target.left(len(data))
    target.confirmed(confirmed)


async def test_transport_that_writes_elsewhere_is_done_when_the_whole_disk_is_confirmed() -> None:
    reader = disk()
    target = ScriptedTarget(reader)

    carry = partial(elsewhere, confirmed=2 * MiB)
    await guarded("odd", Plugin(carry)).carry(reader, target)

    assert (target.paid, target.left_bytes, target.confirmed_to) == (2 * MiB, 2 * MiB, 2 * MiB)
    assert target.faults == []


async def test_transport_that_writes_elsewhere_and_leaves_the_end_unconfirmed_has_failed() -> None:
    reader = disk()

    error = await failed(partial(elsewhere, confirmed=MiB), reader, ScriptedTarget(reader))

    assert "before the target confirmed the data" in str(error)


async def test_nothing_is_confirmed_that_was_not_read() -> None:
    reader = disk()
    target = ScriptedTarget(reader)

    error = await failed(partial(elsewhere, confirmed=2 * MiB, read=False), reader, target)

    assert "it confirmed 2097152 bytes where 0 had been read" in str(error)
    assert target.confirmed_to == 0


async def test_only_a_transport_that_reads_back_is_a_verifier() -> None:
    class Both(Plugin):
        async def digest(self, target: Target, extents: Sequence[Extent]) -> str:
            if not extents:
                raise ZeroDivisionError("none")
            return f"{target.disk.vdi} {extents[0].length}"

    target = ScriptedTarget(disk())
    verifier = guarded("odd", Both(copy))

    assert not isinstance(guarded("odd", Plugin(copy)), Verifier)
    assert isinstance(verifier, Verifier)
    assert await verifier.digest(target, [Extent(0, 512)]) == f"{target.disk.vdi} 512"
    with pytest.raises(TransportFailed, match=r"odd failed \(ZeroDivisionError: none\)"):
        await verifier.digest(target, [])


async def test_error_of_a_reader_that_a_transport_hides_comes_out() -> None:
    cut = StreamCut("disk", 1, 2)
    reader = disk(cut)

    async def hide(r: Reader, w: Target) -> None:
        with suppress(StreamCut):
            await copy(r, w)

    assert await failed(hide, reader, ScriptedTarget(reader)) is cut


async def test_error_of_a_writer_that_a_transport_wraps_comes_out_bare() -> None:
    cut = StreamCut("disk", 1, 2)
    reader = disk()

    async def wrap(r: Reader, w: Target) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(copy(r, w))

    target = ScriptedTarget(reader, fails_at="write", fails_with=cut)

    assert await failed(wrap, reader, target) is cut


async def test_fault_of_a_transport_is_laid_at_its_door() -> None:
    async def crash(r: Reader, w: Target) -> None:
        raise ZeroDivisionError("oops")

    reader = disk()
    error = await failed(crash, reader, ScriptedTarget(reader))

    assert str(error) == (
        "transport odd failed (ZeroDivisionError: oops); "
        "report it to the author of its package, or use direct meanwhile"
    )


async def test_ends_that_a_transport_leaves_open_are_closed() -> None:
    async def leave(r: Reader, w: Target) -> None:
        writer = await w.open(r.virtual_size, r.extents).__aenter__()
        offset, data = await anext(r.pieces())
        await writer.write(offset, data)
        raise OSError("gone")

    reader = disk()
    await failed(leave, reader, ScriptedTarget(reader))


async def test_transport_that_ignores_its_cancellation_is_cut_off() -> None:
    reader, ended = disk(), asyncio.Event()
    target = ScriptedTarget(reader)
    wrote: list[str] = []
    deaf = asyncio.Event()

    async def ignore(r: Reader, w: Target) -> None:
        async with w.open(r.virtual_size, r.extents) as writer:
            offset, data = await anext(r.pieces())
            deaf.set()
            while not ended.is_set():
                with suppress(asyncio.CancelledError):
                    await ended.wait()
            try:
                await writer.write(offset, data)
            except TransportFailed as error:
                wrote.append(str(error))

    kept = guarded("deaf", Plugin(ignore), cancel_s=0.1)
    carrying = asyncio.get_running_loop().create_task(kept.carry(reader, target))
    await deaf.wait()
    carrying.cancel()
    await asyncio.wait({carrying}, timeout=patience())

    assert carrying.cancelled()
    assert not reader.is_open
    assert not target.is_open
    ended.set()
    while not wrote:  # noqa: ASYNC110 -- it wakes up at once
        await asyncio.sleep(0.01)
    assert "continued after its end" in wrote[0]
    assert target.written == []
