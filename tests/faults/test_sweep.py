"""Some of the strikes of `make sweep`, so that every change meets a few."""

from __future__ import annotations

import random

import pytest

from tests.sweep.sweep import Phase, Strike, sweep

STEP = {Strike.KILL: 40}
"""Of several hundred requests of a later run, so many are passed over between two strikes."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("strike", list(Strike))
@pytest.mark.parametrize("phase", list(Phase))
async def test_promises_hold_whichever_request_goes_wrong(phase: Phase, strike: Strike) -> None:
    step = 10_000 if phase is Phase.FULL else STEP.get(strike, 400)
    first = random.Random(f"{phase} {strike}").randrange(20, min(step, 250))

    result = await sweep(phase, [strike], first, step, seed=first)

    assert result.violations == []
    assert result.cases >= 1
