"""docs/writing-a-transport.md works as it is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.world import World
from tests.plugins.skeleton import files, install

ROOT = Path(__file__).parents[2]


def test_page_holds_a_whole_distribution() -> None:
    assert sorted(files()) == [
        "pyproject.toml",
        "src/xorepd_paced/__init__.py",
        "tests/test_paced.py",
    ]


def test_its_tests_pass(tmp_path: Path) -> None:
    source = install(tmp_path)
    environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout


async def test_it_carries_a_vm(
    two_pools: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path))

    await two_pools.replicate(transport={"name": "paced", "pause_s": 0.0001})

    await two_pools.newest_equals_its_source()
    assert await two_pools.left_over() == []
