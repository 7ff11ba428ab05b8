from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.parts import JOB, POOLS, write
from xorepd.cli import app


def test_check_says_what_each_job_means_and_keeps_on_each_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROD_PASSWORD", "x")
    monkeypatch.setenv("DR_PASSWORD", "x")
    one = '{ pool = "dr", sr = "dr-storage" }'
    two = f'targets = [{one}, {{ pool = "prod", sr = "b", keep = {{ last = 2, daily = 7 }} }}]'
    text = JOB.replace(f"target = {one}", two).replace('"web01"', '"web01", "shop-*"')
    file = write(tmp_path, POOLS + text + 'tags = ["gold"]\nenabled = false\n')

    result = CliRunner().invoke(app, ["check", "--config", str(file)])

    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:2] == [
        "web: 1 VM(s) and (shop-*, tag gold) prod -> dr/dr-storage, keep 3, disabled",
        "web: 1 VM(s) and (shop-*, tag gold) prod -> prod/b, keep last 2, daily 7, disabled",
    ]
