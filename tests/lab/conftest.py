from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab.world import World, world


@pytest.fixture
async def two_pools(tmp_path: Path) -> AsyncIterator[World]:
    """Pools `prod` and `dr` of the small topology; nothing has been replicated yet."""
    async with world(tmp_path / "lab") as made:
        yield made


@pytest.fixture
async def replicated(two_pools: World) -> World:
    """The same, with one restore point of web01."""
    await two_pools.replicate(verify="off")
    return two_pools
