"""What `xorepd-lab demo` says where something that it needs is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from xorepd_lab.demo import needs

WITHOUT = """
import sys
sys.modules["pyvhdi"] = None
sys.argv = ["xorepd-lab", "demo"]
from xorepd_lab.__main__ import main
main()
"""


def test_nothing_is_missing_here() -> None:
    assert needs.missing() == ""


def test_one_sentence_names_a_library_that_is_not_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "xorepd-lab: libvhdi-python not installed; the extra xorepd-lab[demo] brings it\n"
    )


def test_the_daemon_is_looked_for_beside_the_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "BIN", tmp_path)

    assert needs.missing() == "xorepd not installed; the extra xorepd-lab[demo] brings it"


def test_programs_of_the_system_are_named_with_their_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(needs, "TOOLS", ("e2fsck", "no-such-tool"))

    assert needs.missing() == "no-such-tool not installed (Debian: e2fsprogs)"
