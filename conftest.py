"""What holds for every test, those of the plug-ins among them."""

from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ("tests.patience", "tests.required")

DEBUGGED = (
    "tests/unit/",
    "plugins/xorepd-compressed/",
    "plugins/xorepd-lab/tests/unit/",
    "plugins/xorepd-throttled/",
)
"""Where asyncio's debug mode is on, beside tests marked `debug`. It finds calls from a wrong thread
and the origin of a coroutine that was never awaited, and doubles the CPU time of a run: so it is on
where code is tried for itself, and for a few that try all of it together."""

settings.register_profile("xorepd", deadline=None)  # a busy machine is no counterexample
settings.load_profile("xorepd")

ALL_DEBUGGED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ALL_DEBUGGED] = bool(config.option.asyncio_debug)
    # pytest-randomly would let every test, and every worker, draw the same numbers: equal ports.
    config.option.randomly_reset_seed = False


SHORT = ("tests/unit/", "plugins/")
"""Where hardly any test takes seconds."""


@pytest.hookimpl(trylast=True)  # pytest-randomly has shuffled them, and that stays within each part
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes long begin first, so that no worker is left alone with it at the end."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("timeout") is not None:  # a limit of its own: it takes longest
        return 0
    return 2 if _place(item).startswith(SHORT) else 1


def _place(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).as_posix()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tell pytest-asyncio, which asks for each loop that it makes, what holds for this test."""
    place = _place(item)
    item.config.option.asyncio_debug = (
        item.config.stash[ALL_DEBUGGED]
        or place.startswith(DEBUGGED)
        or item.get_closest_marker("debug") is not None
    )
