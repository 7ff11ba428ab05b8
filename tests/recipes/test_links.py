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


_MODULE = re.compile(r"`((?!tests/)(?:[a-z_]+/)+[a-z_]+)(?:\.(\w+))?")
"""A module as the architecture names it, `replication/run/jobs`, perhaps with something in it."""


def test_every_module_of_the_architecture_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(_MODULE.findall(_FENCED.sub("", text)))
    drawn = {(name, "") for name in re.findall(r"\b((?:daemon|data|transports)/[a-z_/]+)", text)}
    lost = []
    for path, inside in named | drawn:
        module = ROOT / "xorepd" / f"{path.rstrip('/')}.py"
        if (
            not (module.exists() and inside in module.read_text())
            and not module.with_suffix("").is_dir()
        ):
            lost.append(path)

    assert len(named) > 50
    assert sorted(lost) == []


def test_the_rooms_are_drawn_with_all_their_modules() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    [drawing] = re.findall(r"^ run        jobs.*?^```$", text, re.MULTILINE | re.DOTALL)
    rooms = [room for room in (ROOT / "xorepd" / "replication").iterdir() if room.is_dir()]
    modules = {
        name.stem
        for room in rooms
        if room.name != "__pycache__"
        for name in room.glob("*.py")
        if name.stem != "__init__"
    }

    drawn = set(re.findall(r"[a-z_]+", drawing))

    assert modules - drawn == set()
    assert {room.name for room in rooms} - drawn <= {"__pycache__"}


def test_pages_that_code_names_exist() -> None:
    files = [*(ROOT / "xorepd").rglob("*.py"), *(ROOT / "plugins").rglob("src/**/*.py")]
    files += [*(ROOT / "config").iterdir(), *(ROOT / "systemd").iterdir()]
    named = {page for file in files for page in re.findall(r"docs/[\w/-]+\.md", file.read_text())}

    assert {"docs/jobs.md", "docs/relay.md"} <= named
    assert [page for page in named if not (ROOT / page).exists()] == []


def test_paths_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    lab = "plugins/xorepd-lab/src/xorepd_lab"
    named = set(re.findall(r"`((?:xorepd|plugins|tests|docs|config|systemd)/[\w./-]*)`", text))
    rooms = set(re.findall(r"`((?:model|classes|faults|front|calls)/\w+\.py)`", text))
    paths = named | {f"{lab}/{name}" for name in rooms} - {f"{lab}/classes/vmss.py"}

    assert len(paths) > 25
    assert [
        path for path in sorted(paths) if "NAME" not in path and not (ROOT / path).exists()
    ] == []
