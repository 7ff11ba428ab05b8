from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab.beginnings import Beginning, begin
from tests.lab.whole import left_by
from tests.lab.world import World, world
from xorepd.data.http import chunked


@pytest.fixture(autouse=True)
def long_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no segment end by its age, after a second: on a busy machine a fault would meet another
    import than it is meant for.
    """
    monkeypatch.setattr(chunked, "SHORTEST_S", chunked.SEGMENT_S)


async def first_copy(two_pools: World) -> None:
    await two_pools.replicate(verify="off")


@pytest.fixture
def beginning(request: pytest.FixtureRequest) -> Beginning | None:
    """What has been done in the pools already; a module may say another thing."""
    return first_copy if "replicated" in request.fixturenames else None


@pytest.fixture
async def two_pools(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    beginning: Beginning | None,
    request: pytest.FixtureRequest,
) -> AsyncIterator[World]:
    """Pools `prod` and `dr` of the small topology; nothing has been replicated, unless the test
    asks for `replicated` or its module has a `beginning`.
    """
    if beginning is not None:
        await begin(tmp_path / "lab", beginning, tmp_path_factory.getbasetemp())
    async with world(tmp_path / "lab", leaves=left_by(request)) as made:
        yield made


@pytest.fixture
def replicated(two_pools: World) -> World:
    """The same, with one restore point of web01."""
    return two_pools
