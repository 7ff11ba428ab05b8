"""Reading back what arrived on a staging disk, and comparing it with what was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice

import structlog

from xorepd.config.models import Verify
from xorepd.data.digest import Digest, head_of, read_back, sample_of
from xorepd.data.http.export import open_export, open_raw
from xorepd.data.reader import Reader
from xorepd.errors import DataError, DigestMismatch
from xorepd.extents import Extent
from xorepd.ids import VdiUuid
from xorepd.replication.context.assignment import Assignment
from xorepd.replication.deciding.modes import Full
from xorepd.replication.deciding.reader_choice import is_vhd
from xorepd.replication.transfer.readers import find_nbd, open_nbd
from xorepd.replication.transfer.staging import Staged
from xorepd.transports.base import Target, Verifier
from xorepd.units import MiB

log = structlog.get_logger(__name__)

SAMPLE = 64 * MiB
"""How much of each disk's transferred data is read back when a job verifies a sample."""

EXTENTS_THERE = 65_536
"""The transport reads back at most this many extents, because the request names each. If there are
more, the daemon reads them back."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What of a disk is read back."""

    extents: Iterable[Extent]
    digest: Digest
    """Of these extents, as they were read at the source."""


@dataclass(frozen=True, slots=True)
class Sent:
    target: Target | None
    """Where it was written; None where nothing had to be."""
    whole: Sample
    """Of all that the staging disk has to hold."""
    written: Sample
    """The part that was written. An export of what a clone does not share with its origin holds
    nothing else."""


async def choose_sample(
    a: Assignment, staged: Staged, extents: Iterable[Extent]
) -> Iterable[Extent]:
    """Return what of these extents will be read back.

    The sample is spread over the disk if the target serves it over NBD, or if the transport reads
    it at the target. An export can only be read from its beginning, so it gives a sample of that.
    """
    match a.job.verify:
        case Verify.OFF:
            return ()
        case Verify.FULL:
            return extents
        case Verify.SAMPLE:
            exports, _ = await find_nbd(a.pair.target, staged.ref)
            if exports or isinstance(a.carrier.transport, Verifier):
                return list(sample_of(extents, SAMPLE, seed=staged.uuid))
            return list(head_of(extents, SAMPLE))


async def check(a: Assignment, staged: Staged, sent: Sent) -> None:
    """Read back what arrived, as much as the job asks for, and compare.

    Raises:
        DigestMismatch: it is not what was sent.
    """
    if not any(True for _ in sent.whole.extents):
        return
    what = f"disk {staged.plan.source.vdi.name_label} of VM {a.pair.vm.name_label}"
    sample = sent.written
    found = await _read_there(a, sent)
    if found is None:
        opening = _open_staged(a, staged, sent.whole.extents, f"{what}, check")
        async with opening as (reader, is_whole):
            sample = sent.whole if is_whole else sent.written
            found = (await read_back(reader, sample.extents)).hexdigest()
    expected = sample.digest.hexdigest()
    if found != expected:
        await staged.confirmations.revoke()
        raise DigestMismatch(what, expected, found)


async def _read_there(a: Assignment, sent: Sent) -> str | None:
    """Return what the transport reads back at the target, or None where it cannot."""
    if sent.target is None or not isinstance(a.carrier.transport, Verifier):
        return None
    extents = list(islice(sent.written.extents, EXTENTS_THERE + 1))
    if not 0 < len(extents) <= EXTENTS_THERE:
        return None
    try:
        return await a.carrier.transport.digest(sent.target, extents)
    except DataError as error:
        log.warning(
            "reader.unavailable", what=sent.target.disk.what, reader="there", reason=str(error)
        )
        return None


@asynccontextmanager
async def _open_staged(
    a: Assignment, staged: Staged, sample: Iterable[Extent], what: str
) -> AsyncIterator[tuple[Reader, bool]]:
    """Open a staging disk for reading back: over NBD if possible, else as it is exported.

    The second value tells whether the reader also gives what the disk shares with its origin.
    """
    pair, carrier = a.pair, a.carrier
    await pair.target.refresh()
    disk = pair.target.cache.vdis.get(staged.ref)
    if disk is None:
        raise pair.target.gone("VDI", staged.uuid)
    async with AsyncExitStack() as stack:
        reader: Reader
        exports, _ = await find_nbd(pair.target, staged.ref)
        if exports:
            try:
                reader = await stack.enter_async_context(
                    open_nbd(
                        pair.target, disk, carrier.nbd, carrier.allocation, sample, f"{what}, NBD"
                    )
                )
            except DataError as error:
                log.warning("reader.unavailable", what=what, reader="nbd", reason=str(error))
            else:
                yield reader, True
                return
        endpoint = pair.target_endpoint()
        if is_vhd(disk, pair.target.cache.srs.get(pair.sr.ref, pair.sr)):
            how = staged.plan.how
            onto = None if isinstance(how, Full) else VdiUuid(how.onto)
            export = open_export(endpoint, disk.uuid, base=onto, what=what)
            reader = await stack.enter_async_context(export)
            yield reader, onto is None
        else:
            raw = open_raw(endpoint, disk.uuid, disk.virtual_size, what=what)
            yield await stack.enter_async_context(raw), True
