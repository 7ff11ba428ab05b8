from __future__ import annotations

import pytest

from tests.unit.data.readers import LETTER, StringReader, extents_of
from xorepd.data.digest import SPOT, Digest, Observed, head_of, read_back, sample_of
from xorepd.data.zeroes import UNIT
from xorepd.extents import Extent, total
from xorepd.units import MiB


async def digest_of(disk: str, *, step: int = LETTER) -> str:
    """Return the digest of a disk as it is taken on the way."""
    digest = Digest()
    async for _ in Observed(StringReader(disk, step), digest, lambda size: None).pieces():
        pass
    return digest.hexdigest()


async def same(sent: str, there: str, *, step: int = LETTER) -> bool:
    """Return whether a disk that was sent is found again in what is there."""
    found = await read_back(StringReader(there, step), extents_of(sent))
    return found.hexdigest() == await digest_of(sent)


@pytest.mark.parametrize("step", [1, 7, 99, 100, 101, 1000])
async def test_digest_does_not_depend_on_how_the_data_was_cut(step: int) -> None:
    assert await digest_of("AB-C", step=step) == await digest_of("AB-C")


async def test_data_that_moved_has_another_digest() -> None:
    assert await digest_of("A-") != await digest_of("-A")


def test_a_unit_that_moved_has_another_digest() -> None:
    here, there = Digest(), Digest()
    here.update(0, memoryview(b"x" * UNIT))
    there.update(UNIT, memoryview(b"x" * UNIT))
    assert here.hexdigest() != there.hexdigest()


def test_zeroes_that_were_given_and_zeroes_that_were_left_out_are_the_same() -> None:
    given, left_out = Digest(), Digest()
    given.update(0, memoryview(b"x" * UNIT + bytes(2 * UNIT) + b"y" * UNIT))
    left_out.update(0, memoryview(b"x" * UNIT))
    left_out.update(3 * UNIT, memoryview(b"y" * UNIT))
    assert given.hexdigest() == left_out.hexdigest()


@pytest.mark.parametrize("cut", [1, 512, UNIT - 1, UNIT, UNIT + 1])
def test_units_are_those_of_the_disk_and_not_of_the_pieces(cut: int) -> None:
    data = memoryview(bytes(range(256)) * (3 * UNIT // 256))
    whole, cut_up = Digest(), Digest()
    whole.update(5 * UNIT, data)
    for start in range(0, len(data), cut if cut > 1 else 4099):
        end = start + (cut if cut > 1 else 4099)
        cut_up.update(5 * UNIT + start, data[start:end])
    assert whole.hexdigest() == cut_up.hexdigest()


async def test_observed_reader_gives_what_its_reader_gives() -> None:
    reader = StringReader("A-B")
    observed = Observed(reader, Digest(), lambda size: None)

    pieces = [(offset, bytes(data)) async for offset, data in observed.pieces()]

    assert pieces == [(0, b"A" * LETTER), (2 * LETTER, b"B" * LETTER)]
    assert (observed.virtual_size, observed.extents) == (reader.virtual_size, reader.extents)


async def test_observed_reader_counts_a_piece_when_the_next_is_asked_for() -> None:
    moved: list[int] = []
    pieces = Observed(StringReader("AB"), Digest(), moved.append).pieces()

    await anext(pieces)
    before = list(moved)
    await anext(pieces)

    assert before == []
    assert moved == [LETTER]
    await pieces.aclose()


async def test_observed_reader_closes_its_reader() -> None:
    reader = StringReader("AB")
    pieces = Observed(reader, Digest(), lambda size: None).pieces()
    await anext(pieces)

    await pieces.aclose()

    assert reader.is_closed


@pytest.mark.parametrize("step", [1, 7, 100, 1000])
async def test_what_was_sent_is_found_again(step: int) -> None:
    assert await same("AB-C", "AB-C", step=step)


@pytest.mark.parametrize("step", [1, 7, 100, 1000])
async def test_what_lies_outside_the_extents_is_not_looked_at(step: int) -> None:
    assert await same("-A-B-", "XAXBX", step=step)


async def test_more_behind_the_last_extent_is_not_looked_at() -> None:
    assert await same("A", "AXXXX")


async def test_data_between_two_extents_of_one_piece_is_not_looked_at() -> None:
    assert await same("A-C", "AXC", step=3 * LETTER)


@pytest.mark.parametrize("there", ["A--", "-B-", "---", "", "AX-", "XB-", "BA-", "-AB"])
async def test_missing_changed_and_moved_data_is_found(there: str) -> None:
    assert not await same("AB-", there)


async def test_reading_back_stops_behind_the_last_extent() -> None:
    reader = StringReader("ABCDEF")

    await read_back(reader, extents_of("AB"))

    assert reader.given == 2 * LETTER
    assert reader.is_closed


def test_the_head_of_extents_is_as_long_as_asked_for() -> None:
    extents = [Extent(10, 20), Extent(50, 30), Extent(90, 5)]
    assert list(head_of(extents, 35)) == [Extent(10, 20), Extent(50, 15)]
    assert list(head_of(extents, 1000)) == extents
    assert list(head_of(extents, 0)) == []


def test_a_sample_is_spread_over_the_extents() -> None:
    extents = [Extent(0, 100 * MiB), Extent(200 * MiB, 300 * MiB)]
    sample = list(sample_of(extents, 20 * MiB, "seed"))
    assert total(sample) == 20 * SPOT
    assert sample == sorted(sample) == list(sample_of(extents, 20 * MiB, "seed"))
    assert sample[0].offset < 100 * MiB < 300 * MiB < sample[-1].offset
    assert sample != list(sample_of(extents, 20 * MiB, "another seed"))


def test_a_sample_larger_than_what_there_is_takes_all() -> None:
    extents = [Extent(0, 3 * MiB), Extent(8 * MiB, MiB + 512)]
    assert total(sample_of(extents, 64 * MiB, "seed")) == total(extents)
