"""Readers of disks: what a pool offers for each, and the best one that can be opened.

If a reader cannot be opened, the run tries the next one, with a warning and a reason in its record.
A reader of a whole disk never replaces one of a delta: a failure that may be over tomorrow does not
justify sending terabytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from xorepd.config.models import ChangedBlocks
from xorepd.data.blocks import BlockMap
from xorepd.data.http.export import open_export, open_raw, read_map
from xorepd.data.memory_budget import Allocation
from xorepd.data.nbd.changed_blocks import parse_changes
from xorepd.data.nbd.exports import NbdExport
from xorepd.data.nbd.protocol import LONGEST_NAME, STALL_S, NbdConnection
from xorepd.data.nbd.reader import NbdConnectionLimit, NbdReader, open_nbd_reader
from xorepd.data.reader import Reader
from xorepd.data.remainder import Beyond, Rest
from xorepd.data.subset import Filled, Narrowed
from xorepd.errors import DataError, ProtocolViolation, XapiError
from xorepd.extents import Extent, total
from xorepd.ids import Ref
from xorepd.replication.context.assignment import Assignment, Carrier
from xorepd.replication.deciding.reader_choice import (
    Choice,
    Facts,
    ReaderKind,
    choose_readers,
    is_vhd,
)
from xorepd.units import MiB
from xorepd.xapi.endpoints import DiskEndpoint
from xorepd.xapi.pool import Pool
from xorepd.xapi.records import Vdi
from xorepd.xapi.rpc.session import is_address

log = structlog.get_logger(__name__)

CONNECTIONS = 2
"""NBD connections for one disk: two hide one another's latency."""

MOST_ADDRESSES = 128
"""Of those at which a pool says that it serves a disk: a pool has 64 hosts at most."""

WORTH_ANOTHER = 256 * MiB
"""Bytes from which a second connection is opened: attaching and detaching the disk once more takes
about two seconds."""


# -- finding out --------------------------------------------------------------------------------


async def find_facts(a: Assignment, disk: Vdi, base: Vdi | None) -> Facts:
    """Ask the source pool what it offers for a disk of a snapshot.

    Changed blocks are asked for before anything connects: a disk that is served over NBD is in use,
    and says no more.
    """
    changes, without_changes = None, ""
    if base is not None:
        changes, without_changes = await _find_changes(a, disk, base)
    nbd, without_nbd = await find_nbd(a.pair.source, disk.ref)
    return Facts(
        is_delta=base is not None,
        is_vhd=is_vhd(disk, a.pair.source.cache.srs.get(disk.sr)),
        is_bare=base is not None and not base.has_data,
        nbd=nbd,
        without_nbd=without_nbd,
        changes=changes,
        without_changes=without_changes,
    )


async def _find_changes(a: Assignment, disk: Vdi, base: Vdi) -> tuple[BlockMap | None, str]:
    if a.job.changed_blocks is ChangedBlocks.OFF:
        return None, "changed-block tracking is switched off for the job"
    for each, name in ((disk, "disk"), (base, "base")):
        if not each.cbt_enabled:
            return None, f"changed-block tracking is off on the {name}"
    try:
        text = await a.pair.source.call("VDI.list_changed_blocks", base.ref, disk.ref)
        return parse_changes(str(text), disk.virtual_size), ""
    except (XapiError, ValueError) as error:
        return None, f"the pool does not list changed blocks ({error})"


async def find_nbd(pool: Pool, disk: Ref) -> tuple[tuple[NbdExport, ...], str]:
    """Return where a pool serves a disk over NBD, or why nowhere."""
    if not pool.settings.nbd:
        return (), f"NBD is switched off for pool {pool.name}"
    try:
        infos = await pool.call("VDI.get_nbd_info", disk)
        exports = tuple(_export(info) for info in infos[:MOST_ADDRESSES])
    except (XapiError, KeyError, TypeError, ValueError) as error:
        return (), f"NBD is not available ({error})"
    if not exports:
        return (), f"no network of pool {pool.name} that reaches the disk has the purpose nbd"
    if pool.settings.plaintext:
        return exports, ""
    safe = tuple(export for export in exports if export.certificate)
    if not safe:
        return (), (
            f"pool {pool.name} tells no certificate of its NBD servers, and without TLS the "
            "session would be readable; give its network the purpose nbd, not insecure_nbd"
        )
    return safe, ""


def _export(info: Mapping[str, Any]) -> NbdExport:
    told = {key: str(info[key]) for key in ("address", "port", "exportname", "cert", "subject")}
    port = told["port"]
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 1 << 16):
        raise ValueError(f"no port has the number {port[:20]!r}")
    if not is_address(told["address"]):
        raise ValueError(f"{told['address'][:80]!r} is no address")
    if len(told["exportname"].encode()) > LONGEST_NAME:
        raise ValueError("an export has a name that is too long")
    return NbdExport(
        told["address"], int(port), told["exportname"], told["cert"].strip(), told["subject"]
    )


@asynccontextmanager
async def open_nbd(
    pool: Pool,
    disk: Vdi,
    nbd: NbdConnectionLimit,
    memory: Allocation | None,
    extents: Iterable[Extent],
    what: str,
) -> AsyncIterator[NbdReader]:
    """Open a disk over NBD for reading some extents.

    Args:
        memory: what reading ahead takes its memory from; None: what it likes.

    Raises:
        DataError: it is not served.
    """
    most = CONNECTIONS if total(extents) >= WORTH_ANOTHER else 1
    had_some = False

    @asynccontextmanager
    async def connect() -> AsyncIterator[Sequence[NbdConnection]]:
        nonlocal had_some
        exports, reason = await find_nbd(pool, disk.ref)  # each time: their names hold the session
        if not exports:
            raise ProtocolViolation(what, reason)
        async with nbd.connections(exports, most, what, stall=STALL_S, again=had_some) as opened:
            had_some = True
            yield opened

    opening = open_nbd_reader(connect, disk.virtual_size, extents, what, memory)
    async with opening as reader:
        yield reader


# -- opening -----------------------------------------------------------------------------------


@asynccontextmanager
async def open_whole(
    pool: Pool, carrier: Carrier, disk: Vdi, what: str
) -> AsyncIterator[tuple[Reader, Choice]]:
    """Open all of a disk of either pool for reading.

    Raises:
        DataError: no reader could be opened.
    """
    nbd, without_nbd = await find_nbd(pool, disk.ref)
    facts = Facts(
        is_delta=False,
        is_vhd=is_vhd(disk, pool.cache.srs.get(disk.sr)),
        nbd=nbd,
        without_nbd=without_nbd,
    )
    async with open_reader(pool, carrier, disk, None, facts, what) as opened:
        yield opened


@asynccontextmanager
async def open_reader(
    pool: Pool, carrier: Carrier, disk: Vdi, base: Vdi | None, facts: Facts, what: str
) -> AsyncIterator[tuple[Reader, Choice]]:
    """Open a disk of a pool for reading with the best reader that can be opened.

    Args:
        base: what the other side has already; None reads all of the disk.

    Raises:
        DataError: none could be.
    """
    choices = choose_readers(facts)
    closed = ""
    async with AsyncExitStack() as stack:
        for number, choice in enumerate(choices):
            try:
                reader = await _open_kind(
                    stack, pool, carrier, disk, base, facts, choice.kind, what
                )
            except DataError as error:
                if number == len(choices) - 1:
                    raise
                closed = str(error)
                log.warning("reader.failed", disk=what, reader=choice.kind.value, reason=closed)
            else:
                yield reader, Choice(choice.kind, closed or choice.reason)
                return


@asynccontextmanager
async def open_rest(
    a: Assignment,
    disk: Vdi,
    base: Vdi | None,
    facts: Facts,
    kind: ReaderKind,
    extents: Iterable[Extent],
    start: int,
    what: str,
) -> AsyncIterator[Reader]:
    """Open a disk again with the same kind of reader, for what it still has to give.

    Args:
        extents: all that it gave and still has to give.
        start: where to continue, in bytes. An export is read from its beginning again.

    Raises:
        DataError: that kind of reader cannot be opened now.
    """
    async with AsyncExitStack() as stack:
        if kind in (ReaderKind.NBD_CHANGES, ReaderKind.NBD_ALLOCATED, ReaderKind.NBD_EVERYTHING):
            rest = Beyond(extents, start)
            carrier = a.carrier
            opening = open_nbd(
                a.pair.source, disk, carrier.nbd, carrier.allocation, rest, f"{what}, NBD"
            )
            yield await stack.enter_async_context(opening)
        else:
            reader = await _open_kind(
                stack, a.pair.source, a.carrier, disk, base, facts, kind, what
            )
            yield Rest(reader, start, lambda offset, data: None)


async def _open_kind(
    stack: AsyncExitStack,
    pool: Pool,
    carrier: Carrier,
    disk: Vdi,
    base: Vdi | None,
    facts: Facts,
    kind: ReaderKind,
    what: str,
) -> Reader:
    endpoint = DiskEndpoint(pool, disk.sr)
    size = disk.virtual_size
    if facts.is_bare:
        base = None  # no export can be narrowed by it
    match kind:
        case ReaderKind.NBD_CHANGES | ReaderKind.NBD_ALLOCATED | ReaderKind.NBD_EVERYTHING:
            extents: BlockMap | list[Extent] = [Extent(0, size)]
            if kind is ReaderKind.NBD_CHANGES and facts.changes is not None:
                extents = facts.changes
            elif kind is ReaderKind.NBD_ALLOCATED:
                extents = await read_map(endpoint, disk.uuid, what=f"{what}, map")
            return await stack.enter_async_context(
                open_nbd(pool, disk, carrier.nbd, carrier.allocation, extents, f"{what}, NBD")
            )
        case ReaderKind.EXPORT | ReaderKind.EXPORT_CHANGES:
            reader = await stack.enter_async_context(
                open_export(
                    endpoint, disk.uuid, base=base.uuid if base else None, what=f"{what}, export"
                )
            )
            if kind is ReaderKind.EXPORT_CHANGES and facts.changes is not None:
                if base is None:  # of the whole disk: what is not allocated has become zeroes
                    return Filled(reader, facts.changes)
                return Narrowed(reader, facts.changes.within(reader.extents))
            return reader
        case ReaderKind.EXPORT_RAW:
            raw = await stack.enter_async_context(
                open_raw(endpoint, disk.uuid, size, what=f"{what}, export")
            )
            return raw if facts.changes is None else Narrowed(raw, facts.changes)
