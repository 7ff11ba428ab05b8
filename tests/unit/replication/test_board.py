from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.unit.parts import NOON
from xorepd.errors import StreamCut
from xorepd.ids import RunId
from xorepd.replication.context.board import Board, DiskProgress, Progress
from xorepd.state.records import DiskRecord, Outcome

LATER = NOON + timedelta(minutes=1)


def progress(board: Board, vm: str = "web01") -> Progress:
    return Progress(
        board,
        run_id=RunId("run-1"),
        job="web",
        vm_uuid="vm-1",
        vm_name=vm,
        source="prod",
        target="dr",
        sr="dr-storage",
        now=NOON,
    )


def with_disks(board: Board) -> Progress:
    found = progress(board)
    found.disks["0"] = DiskProgress("0", "root", 1000, "full", "first-run", planned_bytes=800)
    found.disks["1"] = DiskProgress("1", "data", 2000, "delta", planned_bytes=100)
    return found


def test_run_that_has_just_begun_waits() -> None:
    record = progress(Board()).running()

    assert (record.outcome, record.step, record.started_at) == (Outcome.RUNNING, "waiting", NOON)
    assert (record.finished_at, record.error, record.disks) == (None, None, ())
    assert record.rate_bytes_per_s == 0


def test_running_record_tells_who_and_where() -> None:
    record = progress(Board()).running()

    assert (record.run_id, record.job, record.vm_uuid, record.vm_name) == (
        "run-1",
        "web",
        "vm-1",
        "web01",
    )
    assert (record.source, record.target, record.sr) == ("prod", "dr", "dr-storage")


def test_step_shows_in_the_record() -> None:
    found = progress(Board())

    found.enter("transfer")

    assert found.running().step == "transfer"


def test_moved_bytes_are_counted_by_disk() -> None:
    found = with_disks(Board())

    found.moved("0", 300)
    found.moved("1", 40)
    found.moved("0", 300)

    assert found.running().disks == (
        DiskRecord("0", "root", 1000, "full", "first-run", 800, 600),
        DiskRecord("1", "data", 2000, "delta", "", 100, 40),
    )


def test_a_comparison_shows_how_far_it_is_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xorepd.replication.context.board.SAMPLE_S", 0.0)
    board = Board()
    found = with_disks(board)

    found.compares("1", 900)
    for _ in range(2):
        found.compared("1", 200)

    record = found.running()
    root, data = record.disks
    assert (data.compared_bytes, data.to_compare_bytes) == (400, 900)
    assert (root.is_being_compared, data.is_being_compared) == (False, True)
    assert record.rate_bytes_per_s > 0


def test_a_comparison_that_goes_on_counts_what_was_read_before() -> None:
    found = with_disks(Board())
    found.compares("1", 900)
    found.compared("1", 200)

    found.compares("1", 800)  # a window begins anew
    found.compared("1", 800)

    _, data = found.running().disks
    assert (data.compared_bytes, data.to_compare_bytes) == (1000, 1000)
    assert not data.is_being_compared


def test_finished_record_has_outcome_end_and_rate() -> None:
    found = with_disks(Board())
    found.moved("0", 800)
    found.restore_point, found.point_in_time = "point-1", NOON

    record = found.finished(Outcome.FULL, None, LATER)

    assert (record.outcome, record.finished_at) == (Outcome.FULL, LATER)
    assert (record.restore_point, record.point_in_time) == ("point-1", NOON)
    assert (record.error, record.remedy) == (None, None)
    assert record.rate_bytes_per_s > 0


def test_failed_record_has_the_error_and_its_remedy() -> None:
    record = progress(Board()).finished(Outcome.FAILED, StreamCut("disk 0", 5, 9), LATER)

    assert record.error == "disk 0: the stream ended after 5 of 9 bytes"
    assert record.remedy == "retry"


def test_error_that_is_not_ours_has_no_remedy() -> None:
    record = progress(Board()).finished(Outcome.FAILED, KeyError("x"), LATER)

    assert (record.error, record.remedy) == ("'x'", None)


def test_error_without_a_text_is_named_by_its_class() -> None:
    record = progress(Board()).finished(Outcome.FAILED, TimeoutError(), LATER)

    assert record.error == "TimeoutError"


def test_run_is_on_the_board_while_it_lasts() -> None:
    board = Board()

    first, second = progress(board, "web01"), progress(board, "web02")
    with board.show(first), board.show(second):
        first.begin(LATER)
        second.begin(LATER)
        during = [(record.vm_name, record.started_at) for record in board.records()]

    assert during == [("web01", LATER), ("web02", LATER)]
    assert board.records() == []


def test_vm_whose_turn_has_not_come_is_kept_apart() -> None:
    board = Board()

    with board.show(progress(board)):
        assert board.records() == []
        assert [(record.vm_name, record.step) for record in board.waiting()] == [
            ("web01", "waiting")
        ]


def test_run_that_breaks_leaves_the_board() -> None:
    board = Board()

    try:
        with board.show(progress(board)):
            raise OSError
    except OSError:
        pass

    assert board.records() == []


async def test_watcher_who_lags_behind_gets_the_newest_version_at_once() -> None:
    board = Board()
    board.touch()
    board.touch()

    assert await board.changed(0) == 2
    assert await board.changed(1) == 2


async def test_every_watcher_is_woken_by_a_step() -> None:
    board = Board()
    shown = progress(board)

    async with asyncio.TaskGroup() as group:
        watching = [group.create_task(board.changed(0)) for _ in range(3)]
        await asyncio.sleep(0)
        was_done = any(task.done() for task in watching)
        shown.enter("snapshot")

    assert not was_done
    assert [task.result() for task in watching] == [1, 1, 1]


async def test_first_moved_bytes_wake_the_watcher() -> None:
    board = Board()
    shown = with_disks(board)

    shown.moved("0", 1)

    assert await board.changed(0) == 1


class ReplicaKey:
    sent = 0


def test_what_is_being_sent_shows_before_its_stream_ends() -> None:
    found = with_disks(Board())
    stream = found.disks["1"].sending = ReplicaKey()
    found.disks["1"].sent_bytes = 10
    stream.sent = 40

    record = found.running()

    assert [disk.sent_bytes for disk in record.disks] == [0, 50]
    assert record.sent_bytes == 50
    assert record.to_json()["sent_bytes"] == 50


def test_rates_of_reading_and_of_sending_are_told_apart() -> None:
    found = with_disks(Board())
    found.disks["0"].read_bytes, found.disks["0"].sent_bytes = 800, 20

    record = found.finished(Outcome.DELTA, None, LATER)

    assert record.rate_bytes_per_s == pytest.approx(record.sent_rate_bytes_per_s * 40)
