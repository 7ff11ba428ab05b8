"""What is decided without I/O: offers, cuts, and how much is held."""

from __future__ import annotations

import asyncio
import random
from hashlib import sha256
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from xorepd.units import KiB, MiB
from xorepd_compressed.cutting import SPAN, Run, Spans, cut, wanted_parts
from xorepd_compressed.offering import PATIENCE, RARELY, Offering
from xorepd_compressed.room import LEAST, House, Room

UNIT = 64 * KiB
SECTOR = 512


# -- offers ----------------------------------------------------------------------------------------


def test_relay_that_has_nothing_is_offered_nothing() -> None:
    assert not Offering(possible=False).next()


def test_offers_that_spare_nothing_become_rare() -> None:
    offering = Offering(possible=True)
    for _ in range(PATIENCE // MiB):
        assert offering.next()
        offering.saw(MiB, 0)

    assert sum(offering.next() for _ in range(10 * RARELY)) == 10


def test_first_unit_that_is_spared_brings_the_offers_back() -> None:
    offering = Offering(possible=True)
    offering.saw(PATIENCE, 0)
    assert not offering.next()
    offering.saw(MiB, UNIT)

    assert [offering.next() for _ in range(40)] == [True] * 40


def test_offers_that_spare_something_go_on() -> None:
    offering = Offering(possible=True)
    for _ in range(10):
        offering.saw(PATIENCE, PATIENCE // 100)

    assert offering.next()


# -- cutting ---------------------------------------------------------------------------------------


def hash_of(unit: memoryview) -> bytes:
    assert len(unit) == UNIT
    return sha256(unit).digest()[:16]


def described(runs: list[Run]) -> list[tuple[int, int, str]]:
    def kind(run: Run) -> str:
        return "zero" if run.data is None else "offered" if run.hashes else "data"

    return [(run.offset, run.length, kind(run)) for run in runs]


def test_span_is_cut_by_units_into_what_is_offered_sent_and_zero() -> None:
    data = b"a" * (SECTOR + 2 * UNIT) + bytes(UNIT) + b"b" * (UNIT + SECTOR)

    runs = cut(UNIT - SECTOR, memoryview(data), hash_of)

    assert described(runs) == [
        (UNIT - SECTOR, SECTOR, "data"),
        (UNIT, 2 * UNIT, "offered"),
        (3 * UNIT, UNIT, "zero"),
        (4 * UNIT, UNIT, "offered"),
        (5 * UNIT, SECTOR, "data"),
    ]


def test_without_hashes_a_run_is_one_block() -> None:
    data = memoryview(b"a" * (3 * UNIT))

    assert described(cut(SECTOR, data, None)) == [(SECTOR, 3 * UNIT, "data")]


def test_only_what_is_wanted_is_sent_neighbours_joined() -> None:
    [run] = cut(0, memoryview(b"".join(bytes([n]) * UNIT for n in range(1, 7))), hash_of)

    parts = [(offset // UNIT, len(data) // UNIT) for offset, data in wanted_parts(run, {0, 3, 4})]

    assert parts == [(0, 1), (3, 2)]
    assert list(wanted_parts(run, ())) == []
    assert [(o, bytes(d)) for o, d in wanted_parts(run, range(6))] == [(0, bytes(run.data or b""))]


pieces_of_a_disk = st.lists(
    st.tuples(st.sampled_from([0, 0, SECTOR, UNIT, SPAN]), st.integers(1, 3 * SPAN // SECTOR)),
    max_size=12,
)


@settings(deadline=None)
@given(pieces_of_a_disk, st.integers(0, 3 * SPAN // SECTOR), st.booleans(), st.randoms())
def test_any_pieces_come_out_of_spans_and_runs_as_they_were(
    pieces: list[tuple[int, int]], start: int, offers: bool, dice: random.Random
) -> None:
    disk = bytearray()
    spans, runs = Spans(), []
    given_to: list[tuple[int, int]] = []
    position = start * SECTOR
    for gap, sectors in pieces:
        position += gap
        data = bytearray()
        while len(data) < sectors * SECTOR:
            fill = dice.choice([b"\0", b"x"])
            data += fill * (dice.choice([SECTOR, UNIT // 2, UNIT, 3 * UNIT]))
        data = data[: sectors * SECTOR]
        disk += bytes(position - len(disk)) + data
        given_to.append((position, len(data)))
        for span in spans.add((position, memoryview(data))):
            runs += cut(*span, hash_of if offers else None)
        data[:] = b"\xee" * len(data)
        position += sectors * SECTOR
    for span in spans.rest():
        runs += cut(*span, hash_of if offers else None)

    rebuilt = bytearray(len(disk))
    for run in runs:
        assert run.length <= SPAN
        assert run.offset // SPAN == (run.end - 1) // SPAN
        if run.data is not None:
            rebuilt[run.offset : run.end] = run.data
        if run.hashes:
            assert run.offset % UNIT == 0
            assert run.length == len(run.hashes) * UNIT
    ends = [(run.offset, run.end) for run in runs]
    assert all(end <= later for (_, end), (later, _) in pairwise(ends))
    assert sum(run.length for run in runs) == sum(length for _, length in given_to)
    assert rebuilt == disk


# -- room ------------------------------------------------------------------------------------------


async def test_disk_waits_for_room_and_goes_on_when_it_gets_some() -> None:
    with House().room(LEAST) as room:
        await room.take(SPAN)
        await room.take(SPAN)
        more = asyncio.get_running_loop().create_task(room.take(SPAN))
        await asyncio.sleep(0)
        assert not more.done()
        room.give(SPAN)
        await more


def test_many_disks_share_what_a_connection_may_hold() -> None:
    house = House(total=32 * MiB)
    alone = house.limit(8 * MiB)
    rooms = [house.room(8 * MiB) for _ in range(8)]
    entered: list[Room] = [room.__enter__() for room in rooms]

    assert alone == 8 * MiB
    assert house.limit(8 * MiB) == 4 * MiB
    assert len(entered) == 8
    for room in rooms:
        room.__exit__(None, None, None)
    assert house.limit(8 * MiB) == 8 * MiB
    with House(total=0).room(8 * MiB):
        assert House(total=0).limit(8 * MiB) == LEAST
