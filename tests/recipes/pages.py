"""The blocks of the pages: commands, configurations and outputs, as a reader copies them.

Every fenced block names its language. It belongs to a test, which asks for it by how it begins, or
the page says right before it why nothing runs it:

    <!-- not run: a drawing -->

`test_every_block.py` fails for a block that is neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

LANGUAGES = {"sh", "console", "toml", "ini", "python", "json", "text"}
"""`console` is commands after `$` with what they print; `text` what something prints, or draws."""

_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n\n?)?```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

claimed: set[tuple[str, int]] = set()
"""Pages and lines of the blocks that tests run."""


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    reason: str
    """Why nothing runs it; empty where something does."""

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Return the commands of a `console` block, each with what it prints."""
        steps: list[tuple[str, str]] = []
        for line in self.text.splitlines(keepends=True):
            if line.startswith("$ "):
                steps.append((line[2:].rstrip("\n"), ""))
            else:
                command, printed = steps.pop()
                steps.append((command, printed + line))
        return steps

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return every page that may hold a recipe."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found += (ROOT / "plugins").rglob("*.md")
    return sorted(str(page.relative_to(ROOT)) for page in found)


def blocks(page: str) -> Iterator[Block]:
    """Return the fenced blocks of a page in their order."""
    text = (ROOT / page).read_text()
    for match in _FENCE.finditer(text):
        line = text[: match.start("language")].count("\n") + 1
        yield Block(page, line, match["language"], match["text"], match["reason"] or "")


def claim(page: str, beginning: str) -> Block:
    """Return the one block of a page that begins so, for a test that runs it.

    Raises:
        LookupError: there is none, or there are several.
    """
    found = [block for block in blocks(page) if block.text.startswith(beginning)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} blocks of {page} begin with {beginning!r}")
    claimed.add((page, found[0].line))
    return found[0]
