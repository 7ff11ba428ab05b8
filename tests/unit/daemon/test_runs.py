from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.parts import NOON, Begun, Clock, OpenBoard, Runner, job, record
from xorepd.config.models import JobSettings
from xorepd.daemon.runs import AlreadyRunning, Runs
from xorepd.errors import ControlError, XapiUnreachable
from xorepd.ids import RunId
from xorepd.state.history import History
from xorepd.state.records import Outcome, RunRecord
from xorepd.state.store import open_store


class Stage:
    def __init__(self, runs: Runs, runner: Runner, board: OpenBoard, history: History) -> None:
        self.runs, self.runner, self.board, self.history = runs, runner, board, history

    async def begun(self) -> Begun:
        return await self.runner.begun.get()


@asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Stage]:
    async with open_store(directory / "history.db") as store:
        history, runner, board = History(store), Runner(), OpenBoard()
        async with Runs(runner, board, history, Clock()) as runs:
            yield Stage(runs, runner, board, history)


async def test_finished_run_is_in_the_history_before_it_counts_as_ended(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(), cause="command")
        (await on.begun()).succeed()
        await run.ended.wait()

        assert await on.history.of_run(run.id) == list(run.records)
        assert [r.outcome for r in run.records] == [Outcome.DELTA]
        assert len(on.runs) == 0


async def test_second_run_of_a_job_is_refused_and_named(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        first = on.runs.start(job(), cause="command")
        other = on.runs.start(job("db"), cause="command")

        with pytest.raises(AlreadyRunning, match=first.id) as caught:
            on.runs.start(job(), cause="command")

        assert caught.value.status == 409
        assert (on.runs.of_job("web"), on.runs.of_id(other.id)) == ([first], other)
        for _ in range(2):
            (await on.begun()).succeed()


async def test_run_beside_a_slow_target_serves_the_others_and_says_which_it_left_out(
    tmp_path: Path,
) -> None:
    near, far = {"pool": "dr", "sr": "dr-storage"}, {"pool": "far", "sr": "tape"}
    both = job(targets=[near, far])
    async with stage(tmp_path) as on:
        on.runs.start(both, cause="schedule")
        first = await on.begun()
        slow = first.running(target="far", sr="Tape", sr_uuid="tape", step="transfer")
        await on.board.put(first.running(outcome=Outcome.DELTA), slow)

        second = on.runs.start(both, cause="schedule")

        assert [to.place for to in second.job.targets] == ["dr/dr-storage"]
        assert [to.place for to in second.left_out] == ["far/tape"]
        begun = await on.begun()
        with pytest.raises(AlreadyRunning, match=second.id):
            on.runs.start(both, cause="schedule")
        await on.board.put(first.running(outcome=Outcome.DELTA), slow, begun.running())
        with pytest.raises(AlreadyRunning, match=second.id):
            on.runs.start(both, cause="schedule")
        for each in (first, begun):
            each.succeed()


async def test_target_with_vms_that_wait_for_their_turn_is_not_free(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        on.runs.start(job(), cause="schedule")
        first = await on.begun()
        await on.board.put(first.running(outcome=Outcome.DELTA))
        on.board.queue = [first.running(vm_name="web02", step="waiting")]

        with pytest.raises(AlreadyRunning):
            on.runs.start(job(), cause="schedule")

        first.succeed()


async def test_start_is_remembered_even_if_the_run_leaves_no_record(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(), cause="schedule")
        begun = await on.begun()

        assert await on.history.last_starts() == {"web": run.started_at}
        begun.succeed()


async def test_error_of_the_runner_is_the_outcome_of_every_vm(tmp_path: Path) -> None:
    uuid = "0b7f8f7e-5a0c-4f43-9f0e-2d7d5f1c9a11"
    async with stage(tmp_path) as on:
        run = on.runs.start(job(vms=["web01", uuid]), cause="command")
        (await on.begun()).outcome.set_exception(XapiUnreachable("dr", "dr.example", "refused"))
        await run.ended.wait()

        assert [(r.vm_uuid, r.vm_name) for r in run.records] == [("", "web01"), (uuid, uuid)]
        assert {r.outcome for r in run.records} == {Outcome.FAILED}
        assert {r.remedy for r in run.records} == {"reconnect"}
        assert all("no answer from dr.example" in (r.error or "") for r in run.records)


async def test_fault_of_ours_ends_the_run_and_not_the_daemon(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(), cause="command")
        (await on.begun()).outcome.set_exception(ZeroDivisionError("oops"))
        await run.ended.wait()

        assert run.records[0].error == "internal error: ZeroDivisionError: oops"
        again = on.runs.start(job(), cause="command")
        (await on.begun()).succeed()
        await again.ended.wait()


async def test_cancelled_run_is_recorded_as_far_as_it_came(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(), cause="command")
        begun = await on.begun()
        await on.board.put(begun.running(step="transfer"), record(run_id="another"))

        on.runs.cancel(run, because="cancelled by command")
        await on.board.put()
        await run.ended.wait()

        assert begun.cancelled
        (shown,) = await on.history.of_run(run.id)
        assert (shown.outcome, shown.step) == (Outcome.CANCELLED, "transfer")
        assert shown.error == "cancelled by command"
        assert shown.finished_at is not None


async def test_vm_that_waits_for_its_turn_is_recorded_when_its_run_is_cancelled(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(), cause="command")
        begun = await on.begun()
        await on.board.put(begun.running(step="transfer"))
        on.board.queue = [begun.running(vm_name="web02", step="waiting"), record(run_id="another")]

        on.runs.cancel(run, because="cancelled by command")
        await run.ended.wait()

        shown = [(r.vm_name, r.step, r.outcome) for r in await on.history.of_run(run.id)]
        assert shown == [
            ("web01", "transfer", Outcome.CANCELLED),
            ("web02", "waiting", Outcome.CANCELLED),
        ]


async def test_run_of_a_process_that_died_is_recorded_by_the_next_one(tmp_path: Path) -> None:
    async with open_store(tmp_path / "history.db") as store:
        await History(store).begin("web", NOON, "run-1", [record(outcome=Outcome.RUNNING)])

    async with stage(tmp_path) as on:
        await on.runs.take_over()

        (found,) = await on.history.of_run("run-1")
        assert found.outcome is Outcome.INTERRUPTED


async def test_second_cancellation_does_not_strike_the_cleaning_up(tmp_path: Path) -> None:
    begun, cleaning, proceed, cleaned = (asyncio.Event() for _ in range(4))

    async def runner(job: JobSettings, run_id: RunId) -> list[RunRecord]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await proceed.wait()
            cleaned.set()
        return []

    async with (
        open_store(tmp_path / "history.db") as store,
        Runs(runner, OpenBoard(), History(store), Clock()) as runs,
    ):
        run = runs.start(job(), cause="command")
        await begun.wait()
        runs.cancel(run, because="first")
        await cleaning.wait()
        runs.cancel(run, because="second")
        proceed.set()
        await run.ended.wait()

    assert cleaned.is_set()
    assert run.records[0].error == "first"


async def test_drain_lets_runs_end(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(), cause="command")
        begun = await on.begun()

        async with asyncio.TaskGroup() as group:
            draining = group.create_task(on.runs.drain(60.0, asyncio.Event()))
            begun.succeed()
            await draining

        assert run.records[0].outcome is Outcome.DELTA


async def test_drain_cancels_what_has_not_ended_in_its_grace(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(), cause="command")
        begun = await on.begun()

        await on.runs.drain(0.01, asyncio.Event())

        assert begun.cancelled
        assert run.records[0].outcome is Outcome.CANCELLED
        assert await on.history.of_run(run.id) == list(run.records)


async def test_hurry_ends_the_grace(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        on.runs.start(job(), cause="command")
        begun, hurry = await on.begun(), asyncio.Event()

        async with asyncio.TaskGroup() as group:
            group.create_task(on.runs.drain(3600.0, hurry))
            hurry.set()

        assert begun.cancelled


async def test_nothing_starts_after_a_drain(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        await on.runs.drain(0.0, asyncio.Event())

        with pytest.raises(ControlError, match="stopping"):
            on.runs.start(job(), cause="command")


async def test_history_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        await on.history._store.run(lambda connection: connection.execute("DROP TABLE runs"))
        run = on.runs.start(job(), cause="command")
        (await on.begun()).succeed()

        await run.ended.wait()

        assert run.records[0].outcome is Outcome.DELTA
