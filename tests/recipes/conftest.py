from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipes.machine import Machine
from xorepd_lab.demo.stage import Stage


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory whose path is short: those of sockets may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="xorepd-") as directory:
        yield Path(directory)


@pytest.fixture
def machine(root: Path) -> Iterator[Machine]:
    """A machine with xorepd on it."""
    with Machine(root) as made:
        yield made


@pytest.fixture
def pools(root: Path) -> Iterator[Stage]:
    """Two pools of the lab; nothing has been replicated yet."""
    directory = root / "stage"
    directory.mkdir()
    stage = Stage(directory)
    try:
        stage.start_lab("--topology", "small")
        yield stage
    finally:
        stage.stop()
