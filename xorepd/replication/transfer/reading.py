"""How a run reads the disks of its source snapshot: together with other targets, or alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

from xorepd.data.memory_budget import CARRYING, Allocation
from xorepd.data.reader import Reader
from xorepd.replication.context.assignment import Assignment
from xorepd.replication.context.board import DiskProgress
from xorepd.replication.context.shared_reads import Key
from xorepd.replication.context.shared_source import owner_of_shared
from xorepd.replication.deciding.reader_choice import Choice, Facts
from xorepd.replication.transfer.readers import find_facts, open_reader, open_rest
from xorepd.xapi.pool import task_owner
from xorepd.xapi.records import Vdi


async def announce_reads(a: Assignment, disks: Iterable[tuple[Vdi, Vdi | None]]) -> None:
    """Ask about all disks of a run, then wait until every target has asked: none reads before.

    Args:
        disks: each with the base on the source that it is compared with.
    """
    keys = []
    for disk, base in disks:
        await known_facts(a, disk, base)
        keys.append(_key(disk, base))
    await a.shared.reads.announce(a.to.place, keys)


async def known_facts(a: Assignment, disk: Vdi, base: Vdi | None) -> Facts:
    """Return what the source pool offers for a disk; it is asked once for all targets."""
    key = _key(disk, base)
    async with a.shared.asking[key]:
        if key not in a.shared.facts:
            a.shared.facts[key] = await find_facts(a, disk, base)
        return a.shared.facts[key]


@asynccontextmanager
async def open_shared(
    a: Assignment,
    disk: Vdi,
    base: Vdi | None,
    facts: Facts,
    progress: DiskProgress,
    what: str,
) -> AsyncIterator[tuple[Reader, Choice]]:
    """Open a disk for reading, together with the targets that need the same data now.

    Raises:
        DataError: no reader could be opened.
    """
    key, shared = _key(disk, base), a.shared

    @asynccontextmanager
    async def begin(allocation: Allocation) -> AsyncIterator[Reader]:
        # Other targets depend on it, so it does not end with the lease or the tasks of this run.
        task_owner.set(owner_of_shared(a.pair.stream))
        source = a.pair.source.unguarded()
        of_all = replace(a.carrier, allocation=allocation)
        with a.pair.source_vm.lending(str(a.pair.stream)):
            async with open_reader(source, of_all, disk, base, facts, what) as (reader, choice):
                shared.choices[key] = choice
                yield reader

    def go_on(reader: Reader, start: int) -> AbstractAsyncContextManager[Reader]:
        kind = shared.choices[key].kind
        return open_rest(a, disk, base, facts, kind, reader.extents, start, what)

    async with shared.reads.join(a.to.place, key, a.carrier.memory, begin) as branch:
        if branch is not None:
            branch.open_rest = go_on
            try:
                yield branch, shared.choices[key]
            finally:
                progress.shared_bytes += branch.shared_bytes
            return
        await a.carrier.memory.take(CARRYING)
        async with open_reader(a.pair.source, a.carrier, disk, base, facts, what) as opened:
            yield opened


def _key(disk: Vdi, base: Vdi | None) -> Key:
    return disk.uuid, base.uuid if base else ""
