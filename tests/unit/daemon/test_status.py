from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.unit.parts import NOON, job, record
from xorepd.daemon.status import job_status
from xorepd.state.history import Latest


def is_late(minutes: float, **settings: Any) -> bool:
    """Return whether a point of 12:00:01 counts as late so many minutes after 12:00."""
    point = record(point_in_time=NOON + timedelta(seconds=1))
    status = job_status(
        job(**settings),
        [Latest(point, point.point_in_time)],
        next_run_at=None,
        run_id=None,
        now=NOON + timedelta(minutes=minutes),
    )
    (vm,) = status.vms
    return vm.is_late


@pytest.mark.parametrize(("minutes", "late"), [(4, False), (9.9, False), (10, True), (60, True)])
def test_replica_is_late_when_a_whole_turn_was_missed(minutes: float, late: bool) -> None:
    assert is_late(minutes, schedule="*/5 * * * *") is late


def test_job_that_runs_by_hand_or_not_at_all_is_never_late() -> None:
    assert not is_late(600, schedule=None)
    assert not is_late(600, schedule="*/5 * * * *", enabled=False)
