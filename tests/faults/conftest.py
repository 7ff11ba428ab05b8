import asyncio

import pytest

from tests.lab.conftest import replicated, two_pools

__all__ = ["replicated", "two_pools"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Expect what a daemon that is cut off from a pool cannot take back: its session there."""
    item.add_marker(pytest.mark.leaves("session"))


@pytest.fixture(autouse=True)
async def loop_without_debug() -> None:
    """Spare the lab, which lives in the same loop, asyncio's debug mode: it doubles the CPU time of
    these many runs, and tests/lab has it on for the same code.
    """
    asyncio.get_running_loop().set_debug(False)
