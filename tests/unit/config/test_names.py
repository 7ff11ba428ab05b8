from __future__ import annotations

import pytest

from xorepd.config.names import is_pattern, names

UUID = "3d6b2b1e-8a4f-4a57-9f3b-6c1f4d2e7a90"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("web01", "web01"),
        ("web*", "web01"),
        ("web*", "web"),
        ("*", ""),
        ("w?b*1", "web-01"),
        ("*[old]*", "db [old] 1"),
        ("a.c*", "a.c"),
        ("line*", "line\nbreak"),
        (UUID, "web01"),
        (UUID.upper(), "web01"),
    ],
)
def test_text_means_a_name(text: str, name: str) -> None:
    assert names(text, UUID, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [("web", "web01"), ("Web*", "web01"), ("a.c*", "abc"), ("w?b", "wb"), (f"{UUID}*", "web01")],
)
def test_text_does_not_mean_a_name(text: str, name: str) -> None:
    assert not names(text, UUID, name)


def test_brackets_make_no_pattern() -> None:
    assert not is_pattern("db [old]")
    assert is_pattern("db?")


def test_neighbouring_stars_cost_no_more_than_one() -> None:
    assert not names("*" * 200 + "x", UUID, "a" * 10_000)
