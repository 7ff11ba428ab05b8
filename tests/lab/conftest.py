from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab.whole import left_by
from tests.lab.world import World, world


@pytest.fixture
async def two_pools(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Pools `prod` and `dr` of the small topology; nothing has been replicated yet."""
    async with world(tmp_path / "lab", leaves=left_by(request)) as made:
        yield made


@pytest.fixture
async def replicated(two_pools: World) -> World:
    """The same, with one restore point of web01."""
    await two_pools.replicate(verify="off")
    return two_pools
