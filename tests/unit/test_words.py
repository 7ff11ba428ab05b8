"""Private words and translated phrases stay out of the code; docs/glossary.md has the words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import xorepd

BANNED = {
    "road": "reader",
    "muster": "select",
    "visit": "attempt",
    "leavings": "orphans, or remains",
    "torn": "interrupted",
    "telling": "report",
    "whoever": "name the actor",
    "somebody": "name the actor: an operator, a person, another program",
    "nobody": "name the actor, and say that it does not",
    "for ever": "until cancelled, or: without a limit",
    "cannot be had": "is not available",
    "be it": "whether",
    "goes on with": "continues",
}
"""What must not be written → what to write in its place."""

ROOT = Path(xorepd.__file__).parent


def _lines(package: Path) -> list[str]:
    return [
        f"{file.relative_to(package)}:{number}: {line}"
        for file in sorted(package.rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), start=1)
    ]


@pytest.mark.parametrize("word", BANNED)
def test_word_is_not_used(word: str) -> None:
    # In names, too: `the_road`, `RoadKind`, `roads`.
    parts = rf"(?<![a-z]){word}s?(?![a-z])|(?<![A-Z]){word.title()}s?(?![a-z])"

    found = [line for line in _lines(ROOT) if re.search(parts, line.replace("_", " "))]

    assert not found, f"write {BANNED[word]}"


def test_no_module_has_a_banned_name() -> None:
    names = {part for file in ROOT.rglob("*.py") for part in file.stem.split("_")}

    assert not names & BANNED.keys()
