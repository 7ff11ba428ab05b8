"""README.md, from an empty machine to a clone of a restore point; and the demo."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.recipes.bad_day import clone_and_start
from tests.recipes.likeness import assert_like
from tests.recipes.machine import PLACES, Machine
from tests.recipes.pages import ROOT, claim
from xorepd_lab.demo.stage import BIN, Stage

pytestmark = pytest.mark.timeout(600)  # whole systems, one thing after the other

PAGE = "README.md"
DEMO = [claim(page, "1. Two pools without a hypervisor") for page in (PAGE, "docs/demo.md")]
INSTALL = claim(PAGE, "python3 -m venv")
CONFIGURATION = claim(PAGE, "[pools.paris]")
CHECK = claim(PAGE, "$ xorepd check")
FIRST_RUN = claim(PAGE, "$ xorepctl run web --wait")
BAD_DAY = claim(PAGE, "xe vm-list")


def test_a_reader_comes_from_nothing_to_a_clone_that_runs(bare: Machine, pools: Stage) -> None:
    for name, pool in (("paris", pools.pools["prod"]), ("lyon", pools.pools["dr"])):
        bare.type(f"{name}.password", f"{pool['password']}\n")
        bare.write(f"/etc/xorepd/{name}.pem", Path(pool["ca_file"]).read_text())
    bare.run(INSTALL.text)
    text = CONFIGURATION.text + PLACES
    bare.write("/etc/xorepd/xorepd.toml", text)
    [(command, shown)] = CHECK.steps
    assert_like(shown, bare.run(command))

    text = text.replace("*/15 * * * *", "0 0 29 2 *")  # only when it is told to
    bare.write("/etc/xorepd/xorepd.toml", text)
    daemon = bare.start("xorepd run --config /etc/xorepd/xorepd.toml", "xorepd.log")
    bare.wait_for("daemon.ready", "xorepd.log", daemon)
    for command, shown in FIRST_RUN.steps:
        assert_like(shown, bare.run(command))

    daemon.terminate()
    assert daemon.wait() == 0
    clone_and_start(bare, pools, BAD_DAY)


def test_the_configuration_has_about_twelve_lines() -> None:
    assert len(CONFIGURATION.text.splitlines()) <= 14


def test_the_demo_tells_what_the_pages_show() -> None:
    done = subprocess.run(
        [BIN / "xorepd-lab", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for block in DEMO:
        assert_like(block.text, done.stdout)
