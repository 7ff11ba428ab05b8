"""docs/relay.md, config/relay.toml and the relay's unit, in the order in which they are used."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recipes.machine import Machine
from tests.recipes.pages import ROOT, claim
from tests.strangers.programs import need
from xorepd_lab.demo.stage import Stage

pytestmark = [
    pytest.mark.timeout(600),  # whole systems, one thing after the other
    pytest.mark.stranger,
]

PAGE = "docs/relay.md"
CERTIFICATES = claim(PAGE, "xorepd relay init")
PASSWORD = claim(PAGE, "install -m 0600 /dev/stdin /etc/xorepd-relay/lyon.password")
RUN = claim(PAGE, "xorepd relay check")
EXAMPLE = (ROOT / "config" / "relay.toml").read_text()
UNIT = (ROOT / "systemd" / "xorepd-relay.service").read_text()


@pytest.fixture
def relay(root: Path, pools: Stage) -> Iterator[Machine]:
    """A machine beside the target pool, which the example calls lyon."""
    need("openssl", "Debian: openssl")
    lyon = pools.pools["dr"]
    told = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", lyon["ca_file"]],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    [fingerprint] = re.findall(r'fingerprint = "(.+)"', EXAMPLE)
    words = {
        "https://lyon.example": lyon["url"],
        'username = "xorepd"': 'username = "root"',
        fingerprint: f"sha256:{told.strip().rpartition('=')[2]}",
        "0.0.0.0:9443": "127.0.0.1:0",  # any port that is free
        # What the program finds by itself lies elsewhere on this machine.
        "relay check": "relay check --config /etc/xorepd-relay/relay.toml",
        "relay run\n": "relay run --config /etc/xorepd-relay/relay.toml\n",
    }
    with Machine(root, words) as made:
        yield made


def test_the_page_leads_to_a_relay_that_runs(relay: Machine, pools: Stage) -> None:
    relay.run(CERTIFICATES.text)
    relay.type("lyon.password", pools.pools["dr"]["password"])
    relay.run(PASSWORD.text)
    relay.write("/etc/xorepd-relay/relay.toml", EXAMPLE, mode=0o600)

    check, run = RUN.text.splitlines(keepends=True)
    assert "relay.toml: good" in relay.run(check)
    process = relay.start(run, "relay.log")
    relay.wait_for("relay.ready", "relay.log", process)
    process.terminate()

    assert process.wait() == 0
    names = {path.name for path in relay.path("/etc/xorepd-relay").iterdir()}
    assert {"ca.pem", "relay.pem", "paris.pem", "paris.key", "berlin.key"} <= names


def test_the_unit_is_put_to_work_as_its_comments_say(relay: Machine, pools: Stage) -> None:
    head = UNIT.partition("[Unit]")[0]
    lines = re.findall(r"^#   (.+)$", head, re.MULTILINE)
    commands, drop_in = lines[: lines.index("[Service]")], lines[lines.index("[Service]") :]
    [option] = re.findall(r"^# and in relay.toml:  (.+)$", head, re.MULTILINE)
    *before, enable = commands
    relay.type("lyon", pools.pools["dr"]["password"])
    relay.type("override.conf", "\n".join(drop_in))

    for command in before:
        relay.run(command)
    text = re.sub(r"^password_file = .+$", option, EXAMPLE, flags=re.MULTILINE)
    relay.write("/etc/xorepd-relay/relay.toml", text, mode=0o640)
    relay.run(enable)

    assert '"event": "relay.ready"' in (relay.root / "xorepd-relay.log").read_text()
    relay.run("systemctl stop xorepd-relay")
    assert '"event": "relay.stopped"' in (relay.root / "xorepd-relay.log").read_text()
