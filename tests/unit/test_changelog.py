"""docs/changelog.d: what a release makes the changelog of."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENTRIES = [file for file in (ROOT / "docs" / "changelog.d").iterdir() if file.name != "README.md"]


def test_every_entry_has_a_name_and_a_kind_that_a_release_knows() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = "|".join(each["directory"] for each in settings["type"])
    name = re.compile(rf"(\+[a-z0-9-]+|\d+)\.({kinds})\.md")

    assert [file.name for file in ENTRIES if not name.fullmatch(file.name)] == []


def test_a_release_takes_every_entry() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "## 9.9.9 (" in done.stdout
    assert len(re.findall(r"^- ", done.stdout, re.MULTILINE)) == len(ENTRIES)
