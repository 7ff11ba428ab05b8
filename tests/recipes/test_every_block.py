"""No block of any page goes without a test, and no test is of a block that is not there."""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.recipes.pages import LANGUAGES, ROOT, Block, blocks, claimed, pages

HOW = (
    "either a test of tests/recipes claims the block, or `<!-- not run: why -->` stands before it;"
    " see Pages in CONTRIBUTING.md"
)
EVERY = [block for page in pages() for block in blocks(page)]


def claims() -> set[tuple[str, int]]:
    for file in Path(__file__).parent.glob("test_*.py"):
        with suppress(LookupError):  # it fails by itself, and says which block is not there
            importlib.import_module(f"tests.recipes.{file.stem}")
    return claimed


@pytest.mark.parametrize("block", EVERY, ids=str)
def test_a_block_has_a_language_and_a_test_or_a_reason(block: Block) -> None:
    is_run = (block.page, block.line) in claims()

    assert block.language in LANGUAGES
    assert is_run != bool(block.reason), HOW


@pytest.mark.parametrize("page", pages())
def test_every_fence_of_a_page_is_read(page: str) -> None:
    text = (ROOT / page).read_text()

    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(list(blocks(page)))
    assert len(re.findall("<!-- not run:", text)) == sum(bool(b.reason) for b in blocks(page))


def test_the_pages_are_those_of_the_repository() -> None:
    assert {"README.md", "docs/install.md", "docs/relay.md", "docs/lab.md"} <= {*pages()}
    assert len(EVERY) > 80
