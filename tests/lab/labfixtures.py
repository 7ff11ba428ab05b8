"""Fixtures of the lab's own tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab.labclient import Api, logged_in, small_lab
from xorepd.lab.lab import Lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A lab of the small topology, of its own for each test."""
    async with small_lab(tmp_path / "lab") as made:
        yield made


@pytest.fixture
async def api(lab: Lab) -> AsyncIterator[Api]:
    """The SDK, logged in to the pool `prod`."""
    async with logged_in(lab) as made:
        yield made
