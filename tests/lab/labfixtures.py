"""Fixtures of the lab's own tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.lab.labclient import Api, logged_in, small_lab
from tests.lab.whole import left_by
from xorepd_lab.faults.faults import Faults
from xorepd_lab.lab import Lab


@pytest.fixture
async def lab(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """A lab of the small topology, of its own for each test."""
    async with small_lab(tmp_path / "lab", left_by(request)) as made:
        yield made


@pytest.fixture
async def api(lab: Lab) -> AsyncIterator[Api]:
    """The SDK, logged in to the pool `prod`."""
    async with logged_in(lab) as made:
        yield made


@pytest.fixture
def faults(lab: Lab) -> Iterator[Faults]:
    """The rules of the lab `lab`; those that are left at the end let go of who waits in them."""
    yield lab.faults
    lab.faults.clear()
