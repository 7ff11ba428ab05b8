"""The tables of docs/lab.md, and what they say of the calls."""

from pathlib import Path

import pytest

from xorepd_lab.classes.unsimulated import unsimulated
from xorepd_lab.coverage import TABLES, own_calls, render

PAGE = Path(__file__).parents[4] / "docs" / "lab.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text()

    assert render(text) == text, "run `make docs`"


def test_the_page_has_every_table() -> None:
    text = PAGE.read_text()

    assert [name for name in TABLES if f"<!-- begin {name} -->" not in text] == []


def test_text_around_a_table_stays() -> None:
    page = "before\n<!-- begin handlers -->\nold\n<!-- end handlers -->\nafter\n"

    done = render(page)

    assert done.startswith("before\n<!-- begin handlers -->\n| handler |")
    assert "`GET /export_raw_vdi`" in done
    assert done.endswith("<!-- end handlers -->\nafter\n")
    assert render(done) == done


def test_a_table_that_there_is_not_is_an_error() -> None:
    with pytest.raises(KeyError, match="weather"):
        render("<!-- begin weather -->\n<!-- end weather -->\n")


def test_no_call_is_said_to_be_simulated_and_not() -> None:
    simulated = {f"{cls}.{name}" for cls, names in own_calls().items() for name in names}

    assert {method.name for method in unsimulated()} & simulated == set()
    assert {"VM.start", "VDI.revert"} <= simulated
