"""Digests taken on the way and digests read back, over any disk and any cuts."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.readers import LETTER, StringReader, extents_of
from xorepd.data.digest import Digest, read_back

DISKS = st.text("AB-", min_size=1, max_size=8)
STEPS = st.sampled_from([1, 33, LETTER, 250, 10_000])


def sent(disk: str, step: int) -> str:
    async def take() -> Digest:
        digest = Digest()
        async for offset, data in StringReader(disk, step).pieces():
            digest.update(offset, data)
        return digest

    return asyncio.run(take()).hexdigest()


def found(there: str, disk: str, step: int) -> str:
    return asyncio.run(read_back(StringReader(there, step), extents_of(disk))).hexdigest()


@given(DISKS, STEPS, STEPS)
def test_digest_does_not_depend_on_cuts(disk: str, one: int, two: int) -> None:
    assert sent(disk, one) == sent(disk, two)


@given(st.lists(st.tuples(st.sampled_from("AB-"), st.sampled_from("XY-")), max_size=8), STEPS)
def test_what_is_read_back_beside_the_extents_does_not_count(
    letters: list[tuple[str, str]], step: int
) -> None:
    disk = "".join(mine for mine, _ in letters)
    there = "".join(mine if mine != "-" else other for mine, other in letters)

    assert found(there, disk, step) == sent(disk, LETTER)


@given(DISKS, DISKS, STEPS)
def test_equal_digests_mean_equal_data_in_the_extents(disk: str, there: str, step: int) -> None:
    there = there.ljust(len(disk), "-")
    is_there = all(mine in ("-", other) for mine, other in zip(disk, there, strict=False))

    assert (found(there, disk, step) == sent(disk, LETTER)) == is_there
