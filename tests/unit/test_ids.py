from __future__ import annotations

import pytest

from xorepd.ids import NULL_REF, is_null


@pytest.mark.parametrize("ref", [NULL_REF, "", "Ref:1", "NULL", "<not in database>"])
def test_reference_to_nothing_is_null(ref: str) -> None:
    assert is_null(ref)


def test_reference_to_something_is_not_null() -> None:
    assert not is_null("OpaqueRef:6c1b8a4e-0000-4000-8000-000000000001")
