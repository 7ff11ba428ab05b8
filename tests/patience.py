"""How long tests wait: limits that end a hang follow the machine.

Such a limit says nothing about the product, so it is generous, and longer where the processor is
slow or many want it. What the product promises in seconds is tested with limits that the test sets,
or a clock of its own.
"""

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

REFERENCE_S = 0.021
"""CPU seconds that `_work` takes on the machine for which limits are written."""
WAIT_S = 60.0
"""What anything that a test waits for may take there, when nothing else runs."""


def patience(seconds: float = WAIT_S) -> float:
    """Return how long to wait for what takes at most that many seconds on an idle machine."""
    return seconds * _slowness * _load()


def _work() -> float:
    """Return the CPU seconds that a piece of work takes, of the kind that tests do most."""
    began = time.process_time()
    words = {str(number): [number] for number in range(50_000)}
    "".join(sorted(words))
    return time.process_time() - began


def _load() -> float:
    """Return how many want each core now, at least 1."""
    wanted = os.getloadavg()[0]
    now = Path("/proc/loadavg")
    if now.exists():  # the average is late to tell of a load that has just begun
        wanted = max(wanted, float(now.read_text().split()[3].partition("/")[0]))
    return max(1.0, wanted / (os.cpu_count() or 1))


_slowness = max(1.0, min(_work() for _ in range(3)) / REFERENCE_S)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Give pytest-timeout this test's limit, unless the command line gives one for all."""
    if item.config.getoption("timeout") is None:
        marker = item.get_closest_marker("timeout")
        limit = marker.args[0] if marker else float(item.config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(patience(limit)), append=False)
    return (yield)
