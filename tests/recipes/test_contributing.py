"""CONTRIBUTING.md: the code that it shows works in the lab as it stands there."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.recipes.pages import claim
from xorepd_lab.classes import task
from xorepd_lab.faults import effects
from xorepd_lab.model.failures import ApiError

PAGE = "CONTRIBUTING.md"
CALL = claim(PAGE, '@rpc("VMSS')
FAULT = claim(PAGE, "@effect")


class Database:
    """One schedule."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def set(self, cls: str, ref: str, **fields: Any) -> None:
        assert (cls, ref) == ("VMSS", "OpaqueRef:1")
        self.fields |= fields


def test_the_call_does_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    rpc = vars(task)["rpc"]
    methods: dict[str, Any] = {}
    monkeypatch.setattr(sys.modules[rpc.__module__], "METHODS", methods)
    exec(CALL.text, {"rpc": rpc, "Call": object, "ApiError": ApiError})
    method = methods["VMSS.set_retained_snapshots"]
    call = SimpleNamespace(pool=SimpleNamespace(db=Database()))

    method.handler(call, "OpaqueRef:1", 10)

    assert call.pool.db.fields == {"retained_snapshots": 10}
    with pytest.raises(ApiError, match="INVALID_VALUE"):
        method.handler(call, "OpaqueRef:1", 11)


def test_the_fault_does_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "EFFECTS", {})
    exec(FAULT.text, vars(effects) | {"__name__": __name__, "Fault": object})
    fault: Any = SimpleNamespace(zero_at=4)

    zero = effects.EFFECTS["zero_at"]

    assert zero.spoil(fault, 3, b"abc") == b"a\0c"
    assert zero.spoil(fault, 5, b"abc") == b"abc"
