from __future__ import annotations

import pytest

from xorepd.replication.retention import select_superseded, select_unneeded


def test_points_beyond_the_retention_go_oldest_first() -> None:
    assert select_superseded(["p5", "p4", "p3", "p2", "p1"], 2) == ["p1", "p2", "p3"]


@pytest.mark.parametrize("keep", [3, 4, 100])
def test_no_point_within_the_retention_goes(keep: int) -> None:
    assert select_superseded(["p3", "p2", "p1"], keep) == []


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_newest_point_always_stays(keep: int) -> None:
    assert select_superseded(["p3", "p2", "p1"], keep) == ["p1", "p2"]


def test_nothing_goes_where_nothing_is() -> None:
    assert select_superseded([], 1) == []


def test_snapshots_that_no_point_needs_go_in_their_order() -> None:
    assert select_unneeded(["s3", "s2", "s1"], {"s2"}) == ["s3", "s1"]


def test_needed_snapshots_stay() -> None:
    assert select_unneeded(["s2", "s1"], ["s1", "s2", "s0"]) == []
