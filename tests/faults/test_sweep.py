"""Some of the strikes of `make sweep`, so that every change meets a few."""

from __future__ import annotations

import random

import pytest

from tests.sweep.sweep import Phase, Strike, sweep

STEP = {Phase.FULL: 10_000, Phase.DELTA: 400}
"""Of several hundred requests of a run, so many are passed over between two strikes."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("strike", list(Strike))
@pytest.mark.parametrize("phase", list(Phase))
async def test_promises_hold_whichever_request_goes_wrong(phase: Phase, strike: Strike) -> None:
    first = random.Random(f"{phase} {strike}").randrange(20, 250)

    result = await sweep(phase, [strike], first, STEP[phase], seed=first)

    assert result.violations == []
    assert result.cases >= 1
