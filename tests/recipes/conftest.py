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


@pytest.fixture
def bare(root: Path, pools: Stage) -> Iterator[Machine]:
    """A machine without xorepd, and the pools that the pages call paris and lyon."""
    prod, dr = pools.pools["prod"], pools.pools["dr"]
    port = prod["url"].rpartition(":")[2]
    words = {
        "https://xcp-paris-1.example.com": prod["url"],
        "https://xcp-lyon-1.example.com": dr["url"],
        "xcp-lyon-1.example.com:443": dr["url"].removeprefix("https://"),
        "xcp-paris-1.example.com": prod["hosts"][0]["address"],
        "xcp-paris-2.example.com": prod["hosts"][1]["address"],
        "$host:443": f"$host:{port}",
    }
    environment = {f"XE_{key.upper()}": str(dr[key]) for key in ("url", "username", "password")}
    environment["XE_CA_FILE"] = str(dr["ca_file"])
    environment["XOREPD_SOCKET"] = str(root / "run/xorepd/control.sock")
    with Machine(root, words, environment, installed=False) as made:
        yield made
