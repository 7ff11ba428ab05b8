"""The map of a disk's content in a run: found, drawn while the data goes by, kept if it arrived.

    map of the base, which the newest restore point holds ─┐
    reader ───────────────────────────────────────────────►┴─► what is not there yet ─► transport
                    └─► map of what is being sent, for the next run

The pools tell which content a restore point holds. So a commit changes nothing here: later runs
only ask for maps of contents that were committed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import structlog

from xorepd.config.models import Verify
from xorepd.data.blocks import BlockMap
from xorepd.data.digest import Digest, Meter
from xorepd.data.fingerprint_map import MapBuilder, Mapped
from xorepd.data.fingerprints import Hashing
from xorepd.data.reader import Reader
from xorepd.data.subset import Remaining
from xorepd.errors import DigestMismatch, StateError
from xorepd.replication.context.assignment import Assignment, Pair
from xorepd.replication.deciding.modes import Delta, Full
from xorepd.replication.format.ownership import Content, content_of, own_mark
from xorepd.replication.transfer.check import Sample
from xorepd.replication.transfer.staging import VHD, PlannedDisk
from xorepd.state.maps import Draft
from xorepd.tidying import to_the_end
from xorepd.xapi.records import Vdi

log = structlog.get_logger(__name__)

WRITE_S = 10.0
"""Longest wait for a map to be written on the way out."""


class DiskMap:
    """The map of one disk in one run.

    Args:
        builder: None if no maps are kept; then everything passes unchanged.
        is_all_sent: whether nothing may be left out.
    """

    def __init__(self, builder: MapBuilder | None, *, is_all_sent: bool = True) -> None:
        self._builder, self.is_all_sent = builder, is_all_sent

    @property
    def tells(self) -> bool:
        """Whether it knows anything of what the target's disk held before."""
        return self._builder is not None and self._builder.tells

    @property
    def unchanged_bytes(self) -> int:
        return 0 if self._builder is None else self._builder.unchanged_bytes

    async def knows(self, start: int, end: int) -> bool:
        """Return whether it tells all of what the target's disk holds between two offsets."""
        return self._builder is not None and await self._builder.knows(start, end)

    async def find_differences(
        self, source: Reader, start: int, end: int, compared: Meter
    ) -> BlockMap | None:
        """Return in which units a source disk differs from what the target's disk holds.

        None where the map could not be read to its end.

        Args:
            source: what it gives of the disk between the two offsets; the rest of that is zeroes.
            compared: told the number of bytes that have been read, as they are.

        Raises:
            DataError: it could not be read.
        """
        assert self._builder is not None
        async with aclosing(self.drawn(source, start, end, is_blank=True).pieces()) as pieces:
            async for _, data in pieces:
                compared(len(data))
        return self._builder.differing if self._builder.tells else None

    def drawn(
        self, reader: Reader, start: int, end: int | None = None, *, is_blank: bool
    ) -> Reader:
        """Return a reader that draws the map, and leaves out what the target holds already.

        Args:
            start, end: what of the disk the reader is about.
            is_blank: whether what it does not give of that is zeroes.
        """
        if self._builder is None:
            return reader
        return Mapped(reader, self._builder, start=start, end=end, is_blank=is_blank)

    async def nothing_changed(self, start: int, virtual_size: int) -> None:
        """Draw a disk of which nothing has to be read from an offset on."""
        if self._builder is not None:
            await self._builder.begin(start, virtual_size, is_blank=False)
            await self._builder.finish()

    def written(
        self, whole: Sample, digest: Digest, start: int, plan: PlannedDisk, *, is_alone: bool
    ) -> Sample:
        """Return what of a sample was written to a clone in this try, and its digest.

        Args:
            whole: the sample of all that the disk has to hold.
            digest: of what was written.
            start: where this try began. It is unknown what was left out below it.
            is_alone: whether only what differs was sent, so that nothing was left out.
        """
        if self.is_all_sent or is_alone or isinstance(plan.how, Full):
            return whole
        assert self._builder is not None
        if not start and not self._builder.unchanged_bytes:
            return whole
        return Sample(Remaining(whole.extents, start, self._builder.left_out), digest)


@asynccontextmanager
async def open_map(a: Assignment, plan: PlannedDisk) -> AsyncIterator[DiskMap]:
    """Provide the map of a disk while it is sent and checked; it is kept if nothing failed."""
    try:
        opened = await _open(a, plan)
    except StateError as error:
        log.warning("map.unusable", disk=plan.source.vdi.uuid, reason=str(error))
        opened = None
    if opened is None:
        yield DiskMap(None)
        return
    builder, draft = opened
    progress = a.progress.disks[plan.source.mark.device]
    try:
        yield DiskMap(builder, is_all_sent=_is_all_sent(a))
        if builder.is_finished and not builder.has_failed:
            await _try(draft.complete())
    except DigestMismatch:  # perhaps because of the map that told what to leave out
        assert a.carrier.maps is not None
        await _try(a.carrier.maps.forget(str(a.pair.stream), set(_contents(a.pair, plan))))
        raise
    except BaseException:
        with suppress(TimeoutError):
            await to_the_end(builder.flush(), WRITE_S)
        raise
    finally:
        progress.unchanged_bytes = builder.unchanged_bytes


async def retain_maps(a: Assignment, plans: Iterable[PlannedDisk]) -> None:
    """Forget the maps that none of these disks needs: those of older points and of disks gone."""
    pair = a.pair
    if a.carrier.maps is None:
        return
    try:
        await a.carrier.maps.retain(
            str(pair.stream), {each for plan in plans for each in _contents(pair, plan)}
        )
    except StateError as error:
        log.warning("map.unusable", replica_key=str(pair.stream), reason=str(error))


async def _open(a: Assignment, plan: PlannedDisk) -> tuple[MapBuilder, Draft] | None:
    if a.carrier.maps is None:
        return None
    stream, content = str(a.pair.stream), plan.source.vdi
    base_content = _base_content(a.pair, plan)
    base = await a.carrier.maps.find(stream, base_content) if base_content else None
    draft = await a.carrier.maps.draw(stream, content.uuid, base, goes_on=plan.begun is not None)
    progress = a.progress.disks[plan.source.mark.device]

    def leaves_out() -> bool:
        return progress.writer != VHD and not _is_all_sent(a)  # a VHD has announced its blocks

    return MapBuilder(
        Hashing(a.carrier.maps.seed), content.virtual_size, draft, base, leaves_out
    ), draft


def _is_all_sent(a: Assignment) -> bool:
    """Whether nothing may be left out: a job that verifies everything wants all of it sent."""
    return a.job.verify is Verify.FULL


def _contents(pair: Pair, plan: PlannedDisk) -> Iterator[str]:
    """Yield what the target's disk holds before and after this run."""
    yield plan.source.vdi.uuid
    yield _base_content(pair, plan)


def _base_content(pair: Pair, plan: PlannedDisk) -> str:
    """Return the UUID of the source snapshot's disk that the target's disk is equal to at first."""
    match plan.how:
        case Full():
            return ""
        case Delta(base=base):
            return base
        case how:
            onto = pair.target.cache.by_uuid(Vdi, how.onto)
            mark = None if onto is None else own_mark(onto)
            if onto is None or mark is None or content_of(onto, mark) is not Content.PROVEN:
                return ""  # a map tells what the disk once held
            return mark.snapshot


async def _try(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except StateError as error:
        log.warning("map.not_saved", reason=str(error))
