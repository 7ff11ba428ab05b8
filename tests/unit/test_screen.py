"""Whatever is shown cannot command a terminal, and nothing is shown by another way."""

from __future__ import annotations

import ast
import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from xorepd.screen import CLOSEST, Rows, Words, visible

PACKAGE = Path(__file__).parents[2] / "xorepd"

OBEYED = ["Cc", "Cf", "Cs", "Zl", "Zp"]
"""Categories of characters that a terminal obeys or hides."""

any_text = st.text(st.characters(exclude_categories=[]), max_size=40)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web01", "web01"),
        ("web[/b]01", "web[/b]01"),
        ("[old] :bomb: x", "[old] :bomb: x"),
        ("Zoë 🐙 日本", "Zoë 🐙 日本"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("a\x1b]0;title\x07", r"a\x1b]0;title\x07"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("nimda\u202egnp", r"nimda\u202egnp"),
        ("a\u200bb\u2028c\u2029d\ufeff", r"a\u200bb\u2028c\u2029d\ufeff"),
        ("a\udcffb", r"a\udcffb"),
        ("a\U000e0041b", r"a\U000e0041b"),
        ("a\u3164b", r"a\u3164b"),
        ("\x7f", r"\x7f"),
    ],
)
def test_what_a_terminal_obeys_or_hides_is_replaced_and_the_rest_stays(
    text: str, shown: str
) -> None:
    assert visible(text) == shown


@settings(deadline=None)
@given(any_text)
def test_nothing_that_is_obeyed_or_hidden_is_left(text: str) -> None:
    assert not [char for char in visible(text) if unicodedata.category(char) in OBEYED]


@settings(deadline=None)
@given(any_text)
def test_what_is_visible_stays_as_it_is(text: str) -> None:
    shown = visible(text)

    assert visible(shown) == shown
    if not set(map(unicodedata.category, text)) & {*OBEYED, "Cn"}:
        assert len(shown) >= len(text)


def test_lines_of_a_traceback_stay_lines() -> None:
    assert visible("a\nb\x1bc", keep="\n") == "a\nb\\x1bc"


@settings(deadline=None)
@given(any_text.filter(lambda name: "§" not in name))
def test_a_cell_of_any_text_leaves_the_columns_where_they_are(name: str) -> None:
    table = Rows("VM", "N")
    table.add(name, "§")
    table.add("b", "§")
    out = io.StringIO()

    Console(file=out, width=60).print(table)

    lines = out.getvalue().splitlines()
    assert all(cell_len(line) <= 60 for line in lines)
    [place] = {cell_len(line.partition("§")[0]) for line in lines if "§" in line}
    assert place > 0


def test_text_in_brackets_is_no_markup() -> None:
    out = io.StringIO()

    Console(file=out, width=60).print(Words("[red]a[/b] :bomb: ").append("[/]"))

    assert out.getvalue().rstrip() == "[red]a[/b] :bomb: [/]"


# -- the only way ----------------------------------------------------------------------------------

ELSEWHERE = {
    ("rich.text", "Text"),
    ("rich.table", "Table"),
    ("rich", "print"),
    ("rich.progress", "TextColumn"),
    ("rich.panel", "Panel"),
    ("rich.markup", "render"),
    ("typer", "echo"),
    ("typer", "secho"),
    ("typer", "style"),
    ("click", "echo"),
}
"""What would show a text as it is, or take it for markup."""


def test_nothing_shows_text_but_the_screen() -> None:
    found = []
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(PACKAGE)
        if path.parts[0] in {"lab", "screen.py"}:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.ImportFrom(module=str(module), names=names):
                    found += [(str(path), n.name) for n in names if (module, n.name) in ELSEWHERE]
                case ast.Attribute(value=ast.Name(id=module), attr=name):
                    if (module, name) in ELSEWHERE or (module, name) == ("sys", "stdout"):
                        found.append((str(path), name))
                case ast.Call(func=ast.Name(id="print" | "Console" as name)):
                    found.append((str(path), name))
                case _:
                    pass

    assert found == []


def test_characters_that_an_output_cannot_hold_keep_their_width() -> None:
    text = "Zoë 🐙 日 x"

    for encoding in ("ascii", "latin-1"):
        held = text.encode(encoding, CLOSEST).decode(encoding)
        assert cell_len(held) == cell_len(text)
        assert held.endswith(" ?? ?? x")
