"""What is known and not simulated does not linger once it is."""

import re

import pytest

import xorepd_lab.methods  # noqa: F401 -- declares them all
from xorepd_lab.classes import unsimulated


def test_a_call_that_is_simulated_must_leave_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsimulated, "_CALLS", "VM(vm: ref VM): clone\n")

    with pytest.raises(ValueError, match=re.escape("VM.clone has a handler; remove it")):
        unsimulated.register_unsimulated()
