"""Where strangers are required, one that is missing fails its tests."""

from pathlib import Path

import pytest

pytest_plugins = ("pytester",)

SUITE = """
import pytest

@pytest.mark.stranger
def test_needs_somebody():
    pytest.skip("frobnicate is not installed")

@pytest.mark.stranger
@pytest.mark.skipif(True, reason="frobnicate is not installed")
def test_needs_somebody_from_the_beginning(): ...

def test_may_be_skipped():
    pytest.skip("not today")
"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [("required", {"failed": 1, "errors": 1, "skipped": 1}), ("", {"skipped": 3})],
)
def test_a_stranger_that_is_missing(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    expected: dict[str, int],
) -> None:
    pytester.makeconftest((Path(__file__).parents[1] / "required.py").read_text())
    pytester.makeini("[pytest]\nmarkers = stranger: not ours\n")
    pytester.makepyfile(SUITE)
    monkeypatch.setenv("XOREPD_STRANGERS", value)

    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    done.assert_outcomes(**expected)
    if value:
        done.stdout.fnmatch_lines("*a stranger was skipped*frobnicate is not installed*")
