"""Every link of a page leads somewhere: to a file that is there, and to a heading in it."""

from __future__ import annotations

import re

import pytest

from tests.recipes.pages import ROOT, pages

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return what may stand behind `#`: headings as GitHub names them, and ids set by hand."""
    text = _FENCED.sub("", text)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_somewhere(page: str) -> None:
    here = ROOT / page
    lost = []
    for link in _LINK.findall(_FENCED.sub("", here.read_text())):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        there = (here.parent / path).resolve() if path else here
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            lost.append(link)

    assert lost == []


@pytest.mark.parametrize(
    "page", [each for each in pages() if re.fullmatch(r"docs/[\w-]+\.md", each)]
)
def test_the_index_names_every_page(page: str) -> None:
    name = page.removeprefix("docs/")

    assert name == "README.md" or f"({name})" in (ROOT / "docs" / "README.md").read_text()
