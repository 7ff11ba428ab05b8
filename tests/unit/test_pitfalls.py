"""docs/pitfalls.md names tests that exist, and passes over none of the pitfalls."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNT = 145

WITHOUT_A_TEST = re.compile(r"Cannot happen|Does not apply|yet\b|That comes with")
"""What a line without a test has to say."""


def lines() -> dict[int, str]:
    text = (ROOT / "docs" / "pitfalls.md").read_text()
    found = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return {int(number): line for number, line in found}


def known_tests() -> set[str]:
    places = [ROOT / "tests", *(ROOT / "plugins").glob("*/tests")]
    files = [file for place in places for file in place.rglob("*.py")]
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}


def test_every_pitfall_has_its_line() -> None:
    assert list(lines()) == list(range(1, COUNT + 1))


def test_every_test_that_is_named_exists() -> None:
    there = known_tests()

    named = {name for line in lines().values() for name in re.findall(r"`(test_\w+)`", line)}

    assert named - there == set()


def test_a_line_without_a_test_says_why() -> None:
    untested = {number: line for number, line in lines().items() if "`test_" not in line}

    assert [number for number, line in untested.items() if not WITHOUT_A_TEST.search(line)] == []
