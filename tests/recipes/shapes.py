"""Whether JSON of a page has the shape of what a program gives: no member that is not there."""

from __future__ import annotations

import json
from typing import Any


def assert_shaped(shown: str, printed: str) -> None:
    """Check that all members that a page shows are there, with values of the same type."""
    _compare(json.loads(shown), json.loads(printed), "")


def _compare(shown: Any, printed: Any, where: str) -> None:
    match shown:
        case dict():
            assert isinstance(printed, dict), where
            for key, value in shown.items():
                assert key in printed, f"{where}.{key} is not there"
                _compare(value, printed[key], f"{where}.{key}")
        case [first, *_]:
            assert isinstance(printed, list), where
            for value in printed:
                _compare(first, value, f"{where}[]")
        case None | str():
            assert printed is None or isinstance(printed, str), f"{where} is {printed!r}"
        case bool():
            assert isinstance(printed, bool), f"{where} is {printed!r}"
        case int() | float():
            assert isinstance(printed, int | float), f"{where} is {printed!r}"
        case _:
            assert isinstance(printed, list), where
