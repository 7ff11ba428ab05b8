from __future__ import annotations

import pytest

from tests.unit.data.readers import LETTER, StringReader, extents_of
from xorepd.data.digest import Digest, Observed, read_back


async def digest_of(disk: str, limit: int | None = None, *, step: int = LETTER) -> Digest:
    """Return the digest of a disk as it is taken on the way."""
    digest = Digest(limit)
    async for _ in Observed(StringReader(disk, step), digest, lambda size: None).pieces():
        pass
    return digest


async def same(sent: str, there: str, limit: int | None = None, *, step: int = LETTER) -> bool:
    """Return whether a disk that was sent is found again in what is there."""
    expected = await digest_of(sent, limit)
    found = await read_back(StringReader(there, step), extents_of(sent), limit)
    return (found.size, found.hexdigest()) == (expected.size, expected.hexdigest())


@pytest.mark.parametrize("step", [1, 7, 99, 100, 101, 1000])
async def test_digest_does_not_depend_on_how_the_data_was_cut(step: int) -> None:
    found = await digest_of("AB-C", step=step)

    assert found.hexdigest() == (await digest_of("AB-C")).hexdigest()
    assert found.size == 3 * LETTER


@pytest.mark.parametrize("step", [1, 7, 99, 100, 101, 1000])
async def test_limit_does_not_depend_on_how_the_data_was_cut(step: int) -> None:
    found = await digest_of("AB-C", 250, step=step)

    assert (found.size, found.hexdigest()) == (250, (await digest_of("AB-C", 250)).hexdigest())


async def test_data_that_moved_has_another_digest() -> None:
    assert (await digest_of("A-")).hexdigest() != (await digest_of("-A")).hexdigest()


async def test_data_behind_the_limit_does_not_count() -> None:
    assert (await digest_of("ABC", 200)).hexdigest() == (await digest_of("ABX", 200)).hexdigest()


async def test_digest_is_full_at_its_limit_and_not_before() -> None:
    digest = Digest(limit=10)

    digest.update(0, memoryview(bytes(9)))
    was_full = digest.is_full
    digest.update(9, memoryview(bytes(9)))

    assert not was_full
    assert digest.is_full
    assert digest.size == 10


def test_digest_without_a_limit_is_never_full() -> None:
    digest = Digest()

    digest.update(0, memoryview(bytes(1000)))

    assert not digest.is_full


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


async def test_reading_back_stops_at_the_limit() -> None:
    reader = StringReader("ABCDEF")

    found = await read_back(reader, extents_of("ABCDEF"), 2 * LETTER)

    assert found.size == 2 * LETTER
    assert reader.given == 2 * LETTER
    assert reader.is_closed


async def test_sample_tells_nothing_of_what_is_behind_it() -> None:
    assert await same("ABC", "ABX", 2 * LETTER)


async def test_sample_finds_what_is_wrong_in_it() -> None:
    assert not await same("ABC", "AXC", 2 * LETTER)
