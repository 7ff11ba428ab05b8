"""The tables of docs/lab.md, and the list of XAPI's calls they are made from."""

from pathlib import Path

import pytest

from xorepd.lab.coverage import TABLES, own_calls, render
from xorepd.lab.toolstack_calls import CALLS

BEYOND = {
    *("VM.snapshot_with_quiesce", "VDI.resize_online"),  # removed, and still answered
    *("pool.is_slave", "host.is_in_emergency_mode", "VDI.force_unlock"),  # not published, nor
    *("SR.get_live_hosts", "VTPM.get_contents", "VTPM.set_contents"),  # these
    *("VM_group.create", "VM_group.destroy"),  # newer than the list
}
"""Real calls that the list leaves out."""
PAGE = Path(__file__).parents[3] / "docs" / "lab.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text()

    assert render(text) == text, "run `make docs`"


def test_the_page_has_every_table() -> None:
    text = PAGE.read_text()

    assert [name for name in TABLES if f"<!-- begin {name} -->" not in text] == []


def test_text_around_a_table_stays() -> None:
    page = "before\n<!-- begin doors -->\nold\n<!-- end doors -->\nafter\n"

    done = render(page)

    assert done.startswith("before\n<!-- begin doors -->\n| handler |")
    assert "`GET /export_raw_vdi`" in done
    assert done.endswith("<!-- end doors -->\nafter\n")
    assert render(done) == done


def test_a_table_that_there_is_not_is_an_error() -> None:
    with pytest.raises(KeyError, match="weather"):
        render("<!-- begin weather -->\n<!-- end weather -->\n")


def test_the_lab_has_no_call_that_xapi_does_not_have() -> None:
    beyond = {
        f"{cls}.{name}"
        for cls, names in own_calls().items()
        for name in names - CALLS.get(cls, set())
    }

    assert {name for name in beyond if not name.startswith("system.")} == BEYOND
