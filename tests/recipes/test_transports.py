"""What the pages about transports tell: how one is written, installed and put into a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.skeleton import files, install
from tests.recipes.likeness import assert_like
from tests.recipes.machine import Machine
from tests.recipes.pages import Block, claim

pytestmark = pytest.mark.timeout(600)  # whole systems, one thing after the other

PAGE = "docs/writing-a-transport.md"
TREE = claim(PAGE, "xorepd-paced/")
FILES = [claim(PAGE, begins) for begins in ("[build-system]", '"""Waits', "from xorepd_paced")]
IN_A_JOB = claim(PAGE, "transport = { name")
NOT_INSTALLED = claim(PAGE, "$ xorepd check")
INSTALLS = [
    claim("plugins/README.md", "pip install"),
    claim("plugins/xorepd-throttled/README.md", "pip install"),
    claim("plugins/xorepd-lab/README.md", "pip install"),
    claim("plugins/xorepd-compressed/README.md", "pip install"),
]
THROTTLED = claim("docs/transfers.md", 'transport = { name = "throttled"')
TABLES = [
    claim("plugins/xorepd-throttled/README.md", "[jobs.web.transport]"),
    claim("plugins/xorepd-compressed/README.md", "[jobs.web.transport]"),
]

CONFIGURATION = """
[pools.paris]
url = "https://paris.example"
password_env = "PASSWORD"
[pools.lyon]
url = "https://lyon.example"
password_env = "PASSWORD"
[jobs.web]
source = "paris"
vms = ["web01"]
target = { pool = "lyon", sr = "dr-storage" }
"""


def check(machine: Machine, job: str, *, status: int = 0) -> str:
    """Return what is said of a configuration whose job ends so."""
    machine.write("/etc/xorepd/xorepd.toml", CONFIGURATION + job, mode=0o600)
    command = "xorepd check --config /etc/xorepd/xorepd.toml"
    return machine.run(command, status=status, more={"PASSWORD": "x"})


def test_the_files_are_those_that_are_built_and_tried() -> None:
    """In tests/plugins/test_skeleton.py they are installed, and their tests run."""
    drawn = [line.strip() for line in TREE.text.splitlines()[1:]]

    assert drawn == list(files())
    assert [block.text for block in FILES] == list(files().values())


def test_a_job_names_a_transport_that_somebody_wrote(machine: Machine, root: Path) -> None:
    source = install(root / "paced")
    machine.environment["PYTHONPATH"] = f"{source}:{machine.environ()['PYTHONPATH']}"

    assert "good" in check(machine, IN_A_JOB.text)


def test_a_transport_that_is_not_there_is_told_as_the_page_shows(machine: Machine) -> None:
    """The page's is installed here, so another one stands for it."""
    [(_, shown)] = NOT_INSTALLED.steps

    said = check(machine, 'transport = "fast"\n', status=78)

    assert_like(shown.replace("(there is direct)", "(there is …)"), said)


@pytest.mark.parametrize("block", INSTALLS, ids=str)
def test_packages_of_ours_are_installed_by_their_directories(
    machine: Machine, block: Block
) -> None:
    assert "Successfully installed xorepd-" in machine.run(block.text)


def test_a_transport_and_its_options_fit_in_one_line(machine: Machine) -> None:
    assert "good" in check(machine, THROTTLED.text)


@pytest.mark.parametrize("block", TABLES, ids=str)
def test_all_options_of_a_transport_are_taken(machine: Machine, block: Block) -> None:
    machine.run("xorepd relay init /etc/xorepd --name relay.lyon.example --client paris")
    machine.run("cp /etc/xorepd/ca.pem /etc/xorepd/relay-ca.pem")

    assert "good" in check(machine, block.text)
