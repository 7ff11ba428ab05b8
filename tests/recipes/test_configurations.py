"""config/xorepd.toml and the daemon's unit: also what is commented out can be used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipes.machine import Machine
from tests.recipes.pages import ROOT

pytestmark = pytest.mark.timeout(600)  # whole systems, one thing after the other

EXAMPLE = (ROOT / "config" / "xorepd.toml").read_text()
UNIT = (ROOT / "systemd" / "xorepd.service").read_text()

OPTION = re.compile(r"^# (\w+) = (.+(?:\n#   .+)*)$", re.MULTILINE)
"""An option that is commented out; its value may go on in the next lines."""

EXCLUSIVE = {
    "password_env": "password_file",
    "password_credential": "password_file",
    "password": "password_file",
    "fingerprint": "ca_file",
    "keep": "keep",
    "transport": "transport",
    "max_vms": "",
    "max_vms_per_sr": "",
    "max_vms_per_host": "",
    "full_every": "",
}
"""Options that are commented out, and which one each takes the place of."""


def uncommented(name: str, value: str) -> str:
    """Return the example with one of its comments in force."""
    value = re.sub(r"\n#   ", " ", value).split("  ")[0]
    value = value.replace("sha256:…", "sha256:" + "5E:1F" + ":00" * 30)
    line = f"{name} = {value}\n"
    if instead := EXCLUSIVE[name]:
        return re.sub(rf"^{instead} = .+\n", line, EXAMPLE, count=1, flags=re.MULTILINE)
    commented = re.search(rf"^# {name} = .+\n", EXAMPLE, re.MULTILINE)
    assert commented is not None
    return EXAMPLE.replace(commented[0], line, 1)


@pytest.fixture
def machine(root: Path) -> Iterator[Machine]:
    """A machine with what the example speaks of beside it."""
    environment = {
        "LYON_PASSWORD": "x",
        "PARIS_PASSWORD": "x",
        "CREDENTIALS_DIRECTORY": str(root / "etc/xorepd/credentials"),
    }
    with Machine(root, environment=environment) as made:
        made.write("/etc/xorepd/paris.password", "x", mode=0o600)
        made.write("/etc/xorepd/credentials/paris", "x", mode=0o600)
        made.run("xorepd relay init /etc/xorepd --name paris.example")  # any certificate will do
        made.run("cp /etc/xorepd/ca.pem /etc/xorepd/paris.pem")
        yield made


def test_the_example_is_good(machine: Machine) -> None:
    machine.write("/etc/xorepd/xorepd.toml", EXAMPLE, mode=0o600)

    said = machine.run("xorepd check --config /etc/xorepd/xorepd.toml")

    assert "/etc/xorepd/xorepd.toml: good (pools: 2, jobs: 1)" in said


@pytest.mark.parametrize(("name", "value"), OPTION.findall(EXAMPLE), ids=lambda each: each[:20])
def test_every_option_that_is_commented_out_can_be_used(
    machine: Machine, name: str, value: str
) -> None:
    machine.write("/etc/xorepd/xorepd.toml", uncommented(name, value), mode=0o600)

    said = machine.run("xorepd check --config /etc/xorepd/xorepd.toml")

    assert "good (pools: 2, jobs: 1)" in said


def test_all_options_that_are_commented_out_are_known_here() -> None:
    assert {name for name, _ in OPTION.findall(EXAMPLE)} == EXCLUSIVE.keys()


def test_the_daemons_unit_says_what_the_page_does() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    comments = re.findall(r"^#   (.+)$", UNIT.partition("[Unit]")[0], re.MULTILINE)
    lines = [line.partition("  #")[0].strip() for line in comments]

    said = [line for line in lines if line[0] not in "[#" and "Encrypted" not in line]
    assert len(said) > 3
    assert [line for line in said if line not in page] == []
