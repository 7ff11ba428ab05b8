"""Some sequences of `make mischief`, so that every change meets a few."""

from __future__ import annotations

import asyncio

import pytest

from tests.mischief.deeds import table
from tests.mischief.plan import make_plan
from tests.mischief.play import play

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.mark.parametrize("sequence", range(4))
async def test_nothing_of_peoples_is_lost_and_no_copy_is_wrong_in_silence(sequence: int) -> None:
    asyncio.get_running_loop().set_debug(False)

    played = await play(make_plan(1, sequence, table()))

    assert played.violations == [], played.tell()
