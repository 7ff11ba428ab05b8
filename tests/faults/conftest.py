import pytest

from tests.lab.conftest import beginning, long_segments, replicated, two_pools

__all__ = ["beginning", "long_segments", "replicated", "two_pools"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Expect what a daemon that is cut off from a pool cannot take back: its session there."""
    item.add_marker(pytest.mark.leaves("session"))
