"""Where all software of others has to be installed, a test that misses some fails."""

import os
from collections.abc import Generator
from typing import Any

import pytest

REQUIRED = os.environ.get("XOREPD_STRANGERS") == "required"
"""Set by `.ci/run`, which installs every stranger: there a missing one is a failure."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, pytest.TestReport]:
    report: pytest.TestReport = yield
    stranger = item.get_closest_marker("stranger")
    if REQUIRED and stranger and report.skipped and not hasattr(report, "wasxfail"):
        reason = call.excinfo.value if call.excinfo else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"a stranger was skipped, and here all are required: {reason}"
    return report
