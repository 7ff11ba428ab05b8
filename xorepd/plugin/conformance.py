"""The tests that every transport passes. A third party inherits them and gives the factory:

    from xorepd.plugin.conformance import TransportConformance

    class TestPaced(TransportConformance):
        factory = PacedFactory()
        options = {"pause_s": 0.0}
        refused = {"pause_s": {"pause_s": "soon"}}

They need pytest and no plug-in of it; each runs an event loop of its own. The transport is tried as
it is, without what the daemon wraps around it. One that writes elsewhere sets `elsewhere` and
overrides `opened` to bring its peer along, which writes to the scripted target with `open`.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import pytest

from xorepd.data.reader import Piece
from xorepd.errors import DataError, StreamCut
from xorepd.extents import Extent, merge
from xorepd.transports.base import API, Surroundings, TargetDisk, Transport, TransportFactory
from xorepd.transports.links import Links
from xorepd.transports.registry import open_inner
from xorepd.units import KiB, MiB

PROMPT_S = 5.0
"""How long a test waits for what ought to happen at once, on a slow machine."""
SECTOR = 512

T = TypeVar("T")


def surroundings(*, strict: bool = True) -> Surroundings:
    """Return surroundings for a transport that is tried alone: job web, from paris to lyon."""
    return Surroundings(
        job="web",
        source="paris",
        target="lyon",
        links=Links(strict=strict),
        clock=lambda: datetime.now(UTC),
        opener=open_inner,
    )


class ScriptedReader:
    """A disk of random data, which lies in one buffer that every piece overwrites.

    Args:
        fails_with: raised after `fails_after` bytes; without that, after the last.
        hangs_after: bytes after which no more come.
    """

    def __init__(
        self,
        virtual_size: int,
        extents: Sequence[Extent],
        *,
        seed: int = 0,
        largest: int = MiB,
        fails_with: Exception | None = None,
        fails_after: int | None = None,
        hangs_after: int | None = None,
    ) -> None:
        self.virtual_size, self.extents = virtual_size, extents
        self.content = {e: random.Random(f"{seed} {e.offset}").randbytes(e.length) for e in extents}
        self.given = self.reached = 0
        """Bytes that were asked for so far, and where on the disk the last of them end."""
        self.ended = False
        """Whether it has given everything and said that this was all."""
        self.is_open = False
        self._fails_with, self._fails_after = fails_with, fails_after
        self._hangs_after = hangs_after
        self._largest, self._random = largest, random.Random(seed)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        self.is_open = True
        buffer = bytearray(self._largest)
        try:
            for offset, data in self._cut():
                await asyncio.sleep(0)
                if self._fails_with and self._reached(self._fails_after):
                    raise self._fails_with
                if self._reached(self._hangs_after):
                    await asyncio.Event().wait()
                buffer[: len(data)] = data
                self.given += len(data)
                self.reached = offset + len(data)
                yield offset, memoryview(buffer)[: len(data)]
                buffer[: len(data)] = b"\xee" * len(data)
            if self._fails_with:
                raise self._fails_with
            self.ended, self.reached = True, self.virtual_size
        finally:
            self.is_open = False

    def _reached(self, limit: int | None) -> bool:
        return limit is not None and self.given >= limit

    def _cut(self) -> Iterable[tuple[int, bytes]]:
        for extent, data in self.content.items():
            start = 0
            while start < len(data):
                size = self._random.randint(1, self._largest // SECTOR) * SECTOR
                yield extent.offset + start, data[start : start + size]
                start += size


class ScriptedTarget:
    """Target and writer in one: keeps what it is given, and remembers how it was treated.

    Args:
        fails_at: `open`, `write` or `finish`, which raises `fails_with`.
        hangs_at: the same, which does not return.
    """

    def __init__(
        self,
        reader: ScriptedReader,
        *,
        fails_at: str = "",
        fails_with: Exception | None = None,
        hangs_at: str = "",
    ) -> None:
        self.disk = TargetDisk(
            pool=str(uuid.uuid4()),
            vdi=str(uuid.uuid4()),
            base="",
            stream="/".join(str(uuid.uuid4()) for _ in range(3)),
            run=str(uuid.uuid4()),
            what="disk web01 (0)",
        )
        self.written: list[tuple[int, bytes]] = []
        self.sent = 0
        self.paid = self.left_bytes = self.confirmed_to = 0
        """What a transport says that writes elsewhere."""
        self.announced: list[Extent] = []
        self.virtual_size = -1
        self.finishes = 0
        self.is_open = False
        self.faults: list[str] = []
        """What a writer must never see."""
        self.hangs = asyncio.Event()
        """Set when it has begun to hang."""
        self._reader = reader
        self._fails_at, self._fails_with, self._hangs_at = fails_at, fails_with, hangs_at
        self._inside = False

    @asynccontextmanager
    async def open(
        self, virtual_size: int, extents: Iterable[Extent]
    ) -> AsyncIterator[ScriptedTarget]:
        if self.virtual_size >= 0:
            self.faults.append("the target was opened twice")
        self.virtual_size, self.announced = virtual_size, list(extents)
        await self._step("open")
        self.is_open = True
        try:
            yield self
        finally:
            self.is_open = False

    async def pay(self, size: int) -> None:
        self.paid += size

    def left(self, size: int) -> None:
        self.left_bytes += size
        if self.left_bytes > self.paid:
            self.faults.append("bytes left before they were paid for")

    def confirmed(self, offset: int) -> None:
        if not self.confirmed_to <= offset <= self._reader.reached:
            self.faults.append("more was confirmed than had been read")
        self.confirmed_to = offset

    async def write(self, offset: int, data: memoryview) -> None:
        if self._inside:
            self.faults.append("a piece came while another was being written")
        if self.finishes:
            self.faults.append("a piece came after finish")
        self._inside = True
        try:
            await self._step("write")
            self.written.append((offset, bytes(data)))
            self.sent += len(data)
        finally:
            self._inside = False

    async def finish(self) -> None:
        self.finishes += 1
        if not self._reader.ended:
            self.faults.append("finish came before the reader had said that this was all")
        await self._step("finish")

    async def _step(self, step: str) -> None:
        await asyncio.sleep(0)
        if step == self._fails_at and self._fails_with is not None:
            raise self._fails_with
        if step == self._hangs_at:
            self.hangs.set()
            await asyncio.Event().wait()

    def content(self) -> dict[Extent, bytes]:
        """Return what was written, by the extents that were announced."""
        found = {extent: bytearray(extent.length) for extent in self.announced}
        for offset, data in self.written:
            [home] = [e for e in self.announced if e.offset <= offset < e.end]
            found[home][offset - home.offset : offset - home.offset + len(data)] = data
        return {extent: bytes(data) for extent, data in found.items()}


def random_extents(seed: int, virtual_size: int) -> list[Extent]:
    """Return extents as a delta has them: sorted, disjoint, of all sizes."""
    dice = random.Random(seed)
    sectors = virtual_size // SECTOR
    extents = []
    for _ in range(dice.randint(1, 20)):
        start = dice.randrange(sectors)
        length = min(dice.choice([1, 7, 128, 129, 2048, 4096]), sectors - start)
        extents.append(Extent(start * SECTOR, length * SECTOR))
    return merge(extents)


class TransportConformance:
    """Inherit it, and set the attributes."""

    factory: ClassVar[TransportFactory]
    options: Mapping[str, Any] = MappingProxyType({})
    """With which the tests run; fast, please."""
    refused: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """By the name of an option that is wrong: options that are to be refused for it."""
    held_bytes: ClassVar[int] = 16 * MiB
    """How much of a disk it may hold, between reader and writer."""

    elsewhere: ClassVar[bool] = False
    """Whether it writes to the target without `Target.open`."""

    def opened(self) -> Transport:
        """Return the transport to try."""
        return self.factory.open(self.options, surroundings())

    # -- what it is -----------------------------------------------------------------------------

    def test_it_has_a_name_and_is_made_for_this_version(self) -> None:
        assert self.factory.name
        assert self.factory.api == API

    def test_an_option_that_does_not_exist_is_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match="no_such_option"):
            self.factory.open({**self.options, "no_such_option": 1}, surroundings())

    def test_wrong_values_are_refused_with_the_name_of_their_option(self) -> None:
        for name, options in self.refused.items():
            with pytest.raises(ValueError, match=name):
                self.factory.open(options, surroundings())

    # -- the data -------------------------------------------------------------------------------

    @pytest.mark.parametrize("seed", range(8))
    def test_random_extents_arrive_whole(self, seed: int) -> None:
        size = 32 * MiB
        self._arrives(ScriptedReader(size, random_extents(seed, size), seed=seed))

    def test_a_disk_without_extents_is_finished_all_the_same(self) -> None:
        self._arrives(ScriptedReader(8 * MiB, []))

    def test_a_size_that_is_no_multiple_of_anything_arrives_whole(self) -> None:
        size = 3 * MiB + 5 * SECTOR
        extents = [Extent(SECTOR, SECTOR), Extent(64 * KiB - SECTOR, size - 64 * KiB + SECTOR)]
        self._arrives(ScriptedReader(size, extents, largest=37 * SECTOR))

    def test_several_disks_at_once_do_not_mix(self) -> None:
        async def carry_all() -> list[tuple[ScriptedReader, ScriptedTarget]]:
            transport, size = self.opened(), 4 * MiB
            pairs = []
            async with asyncio.TaskGroup() as group:
                for seed in range(4):
                    reader = ScriptedReader(size, random_extents(seed, size), seed=seed)
                    target = ScriptedTarget(reader)
                    pairs.append((reader, target))
                    group.create_task(transport.carry(reader, target))
            return pairs

        for reader, target in _run(carry_all()):
            self._assert_whole(reader, target)

    def test_a_reader_is_not_asked_for_more_than_the_writer_has_room_for(self) -> None:
        async def read_ahead() -> int:
            size = 4 * self.held_bytes
            reader = ScriptedReader(size, [Extent(0, size)])
            target = ScriptedTarget(reader, hangs_at="write")
            carrying = asyncio.get_running_loop().create_task(self.opened().carry(reader, target))
            await target.hangs.wait()
            given = -1
            while given != reader.given:  # until it holds what it holds
                given = reader.given
                await asyncio.sleep(0.1)
            carrying.cancel()
            await asyncio.wait({carrying})
            return given

        assert _run(read_ahead()) <= self.held_bytes

    # -- what goes wrong ------------------------------------------------------------------------

    @pytest.mark.parametrize("after", [0, MiB, None], ids=["first", "middle", "end"])
    def test_the_error_of_a_reader_comes_out_unchanged(self, after: int | None) -> None:
        error = StreamCut("disk", 1, 2)
        reader = _disk(fails_with=error, fails_after=after)
        target = ScriptedTarget(reader)

        assert self._fails(reader, target) is error
        assert target.finishes == 0

    @pytest.mark.parametrize("step", ["open", "write", "finish"])
    def test_the_error_of_a_writer_comes_out_unchanged(self, step: str) -> None:
        error = StreamCut("disk", 1, 2)
        reader = _disk()
        target = ScriptedTarget(reader, fails_at=step, fails_with=error)

        failure = self._fails(reader, target)
        if self.elsewhere:  # it has been told, and cannot have the object itself
            assert isinstance(failure, DataError)
            assert str(error) in str(failure)
        else:
            assert failure is error
        assert target.finishes == (step == "finish")

    @pytest.mark.parametrize("step", ["open", "read", "write", "finish"])
    def test_a_cancellation_ends_it_and_closes_both_ends(self, step: str) -> None:
        async def cancelled() -> None:
            reader = _disk(hangs_after=MiB if step == "read" else None)
            target = ScriptedTarget(reader, hangs_at=step)
            carrying = asyncio.get_running_loop().create_task(self.opened().carry(reader, target))
            if step == "read":
                while reader.given < MiB:  # noqa: ASYNC110 -- until it hangs, a moment later
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.01)
            else:
                await target.hangs.wait()
            carrying.cancel()
            await asyncio.wait({carrying}, timeout=PROMPT_S)
            assert carrying.cancelled(), "it goes on after its cancellation, or hides it"
            _assert_closed(reader, target)

        _run(cancelled())

    # -- inside ---------------------------------------------------------------------------------

    def _arrives(self, reader: ScriptedReader) -> None:
        async def carry() -> ScriptedTarget:
            target = ScriptedTarget(reader)
            await self.opened().carry(reader, target)
            return target

        self._assert_whole(reader, _run(carry()))

    def _assert_whole(self, reader: ScriptedReader, target: ScriptedTarget) -> None:
        _assert_whole(reader, target)
        if self.elsewhere:
            assert target.confirmed_to == target.virtual_size
            assert target.left_bytes > 0 or not reader.given

    def _fails(self, reader: ScriptedReader, target: ScriptedTarget) -> BaseException:
        async def carry() -> BaseException:
            with pytest.raises(Exception) as caught:  # noqa: PT011 -- which one, the caller asks
                await self.opened().carry(reader, target)
            _assert_closed(reader, target)
            assert target.faults == []
            return caught.value

        return _run(carry())


def _disk(**script: Any) -> ScriptedReader:
    return ScriptedReader(4 * MiB, [Extent(0, 4 * MiB)], **script)


def _assert_whole(reader: ScriptedReader, target: ScriptedTarget) -> None:
    offsets = [offset for offset, _ in target.written]
    assert target.virtual_size == reader.virtual_size
    assert target.announced == list(reader.extents)
    assert offsets == sorted(offsets)
    assert sum(len(data) for _, data in target.written) == reader.given
    assert target.content() == reader.content
    assert target.finishes == 1
    assert target.faults == []
    _assert_closed(reader, target)


def _assert_closed(reader: ScriptedReader, target: ScriptedTarget) -> None:
    assert not reader.is_open, "the reader was left open"
    assert not target.is_open, "the writer was left open"


def _run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(12 * PROMPT_S):
            return await work

    return asyncio.run(bounded())
