from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.parts import NOON, Begun, Clock, OpenBoard, Runner, job, record
from tests.unit.replication.test_selection import vm
from xorepd.config.models import JobSettings
from xorepd.daemon.runs import AlreadyRunning, Runs
from xorepd.errors import ControlError, XapiUnreachable
from xorepd.ids import RunId
from xorepd.replication.deciding.selection import ExcludedVm
from xorepd.replication.run.jobs import Report
from xorepd.state.history import History
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd.state.store import Store, open_store


class Stage:
    def __init__(self, runs: Runs, runner: Runner, board: OpenBoard, history: History) -> None:
        self.runs, self.runner, self.board, self.history = runs, runner, board, history

    async def begun(self) -> Begun:
        return await self.runner.begun.get()


@asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Stage]:
    async with open_store(directory / "history.db") as store:
        history, runner, board = await History.open(store), Runner(), OpenBoard()
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
        assert [to.place for to in second.busy_targets] == ["far/tape"]
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

        assert (run.records[0].error or "").startswith("internal error, ZeroDivisionError: oops")
        again = on.runs.start(job(), cause="command")
        (await on.begun()).succeed()
        await again.ended.wait()


async def test_each_vm_is_remembered_when_it_ends_and_not_with_the_last_of_its_run(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(vms=["web01", "web02"]), cause="command")
        begun = await on.begun()

        begun.report.ended(record(run_id=run.id))
        await on.history.settled()

        assert [r.vm_name for r in await on.history.of_run(run.id)] == ["web01"]
        assert [each.record.vm_name for each in on.history.latest()] == ["web01"]
        assert [r.vm_name for r in on.runs.shown(run)] == ["web01"]
        assert not run.ended.is_set()
        begun.outcome.set_result([record(run_id=run.id, vm_uuid="vm-2", vm_name="web02")])
        await run.ended.wait()
        assert [r.vm_name for r in await on.history.of_run(run.id)] == ["web01", "web02"]


async def test_replicas_that_a_job_means_are_named_in_a_warning_and_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def left_out(name: str) -> ExcludedVm:
        return ExcludedVm(vm(name), "it is a replica", is_replica=True)

    warned = []
    async with stage(tmp_path) as on:
        for names in (["a"], ["a", "b"], ["b", "a"], []):
            run = on.runs.start(job(), cause="schedule")
            begun = await on.begun()
            begun.report.expects([], [left_out(name) for name in names])
            assert [left.vm.name_label for left in on.runs.replicas_of("web")] == names
            begun.succeed()
            await run.ended.wait()
            lines = capsys.readouterr().out.splitlines()
            warned.append([line for line in lines if "vms.replicas_excluded" in line])
    first, second, *others = warned
    assert "a: it is a replica" in first[0]
    assert "b: it is a replica" in second[0]
    assert "a: it is a replica" not in second[0]
    assert others == [[], []]


async def test_vm_that_is_broken_off_is_recorded_as_far_as_it_came_and_why(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(), cause="command")
        begun = await on.begun()
        begun.report.ended(begun.running(vm_name="web02", outcome=Outcome.DELTA))
        begun.broken_off = [
            begun.running(step="transfer"),
            begun.running(vm_name="web03", step="waiting"),
        ]

        on.runs.cancel(run, reason="cancelled by command")
        await run.ended.wait()

        assert begun.cancelled
        shown = [(r.vm_name, r.step, r.outcome) for r in await on.history.of_run(run.id)]
        assert shown == [
            ("web02", "transfer", Outcome.DELTA),
            ("web01", "transfer", Outcome.CANCELLED),
            ("web03", "waiting", Outcome.CANCELLED),
        ]
        errors = {r.error for r in run.records if r.outcome is Outcome.CANCELLED}
        assert errors == {"cancelled by command"}


async def test_run_that_came_to_no_vm_is_recorded_when_it_is_cancelled(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        run = on.runs.start(job(vms=["web01", "db*"]), cause="command")
        await on.begun()

        on.runs.cancel(run, reason="cancelled by command")
        await run.ended.wait()

        shown = [(r.vm_name, r.outcome, r.error) for r in await on.history.of_run(run.id)]
        assert shown == [
            ("web01", Outcome.CANCELLED, "cancelled by command"),
            ("db*", Outcome.CANCELLED, "cancelled by command"),
        ]
        assert all(r.finished_at is not None for r in run.records)


async def dead_process(directory: Path, *ended: RunRecord, expected: list[RunRecord]) -> None:
    """Leave what a process leaves that dies when some VMs of its run have ended."""
    async with open_store(directory / "history.db") as store:
        history = await History.open(store)
        history.begin("web", NOON, "run-1", expected)
        for each in ended:
            history.add(each)
        await history.flush()


async def test_run_of_a_process_that_died_is_recorded_by_the_next_one(tmp_path: Path) -> None:
    await dead_process(tmp_path, expected=[record(outcome=Outcome.RUNNING)])

    async with stage(tmp_path) as on:
        cut = await on.runs.take_over({"web"})

        (found,) = await on.history.of_run("run-1")
        assert (found.outcome, cut) == (Outcome.INTERRUPTED, {"web"})
        assert [each.record for each in on.history.latest()] == [found]


async def test_vm_that_had_ended_is_not_interrupted_when_the_process_dies_later(
    tmp_path: Path,
) -> None:
    waiting = record(vm_uuid="", sr="sr-uuid", outcome=Outcome.RUNNING)
    done = record(sr_uuid="sr-uuid")
    other = replace(waiting, vm_name="web02")
    await dead_process(tmp_path, done, expected=[waiting, other])

    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == {"web"}

        found = [(r.vm_name, r.outcome) for r in await on.history.of_run("run-1")]
        assert found == [("web01", Outcome.DELTA), ("web02", Outcome.INTERRUPTED)]


async def test_run_that_ended_but_for_its_last_word_is_not_made_up(tmp_path: Path) -> None:
    await dead_process(tmp_path, record(), expected=[record(outcome=Outcome.RUNNING)])

    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == set()
        assert await on.history.of_run("run-1") == [record()]


async def stopped_in_a_run(directory: Path, because: str | None) -> None:
    """Stop a daemon in a run that an operator has cancelled, or not."""
    async with stage(directory) as on:
        on.runs.start(job(), cause="schedule")
        begun = await on.begun()
        begun.broken_off = [begun.running()]
        if because is not None:
            on.runs.cancel(on.runs.of_job("web")[0], reason=because)
        await on.runs.drain(0.0, asyncio.Event())


async def test_run_that_a_stop_cancelled_is_made_up_once(tmp_path: Path) -> None:
    await stopped_in_a_run(tmp_path, None)

    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == {"web"}
        run = on.runs.start(job(), cause="interrupted")
        (await on.begun()).succeed()
        await run.ended.wait()

    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == set()
        outcomes = [r.outcome for r in await on.history.page()]
        assert outcomes == [Outcome.DELTA, Outcome.CANCELLED]


async def test_run_that_a_stop_cancelled_is_made_up_though_the_next_process_dies_before_it(
    tmp_path: Path,
) -> None:
    await stopped_in_a_run(tmp_path, None)
    async with stage(tmp_path) as on:
        await on.runs.take_over({"web"})

    await stopped_in_a_run(tmp_path, None)  # this time in the run that makes up for the first

    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == {"web"}


async def test_run_that_an_operator_cancelled_is_not_made_up(tmp_path: Path) -> None:
    await stopped_in_a_run(tmp_path, "cancelled by command")

    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == set()


async def test_run_of_a_job_that_starts_by_hand_only_is_not_made_up(tmp_path: Path) -> None:
    await stopped_in_a_run(tmp_path, None)

    async with stage(tmp_path) as on:
        assert await on.runs.take_over(set()) == set()
    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == set()


async def test_slow_target_that_a_stop_cut_off_is_made_up_though_a_later_run_has_ended(
    tmp_path: Path,
) -> None:
    near, far = {"pool": "dr", "sr": "dr-storage"}, {"pool": "far", "sr": "tape"}
    both = job(targets=[near, far])
    async with stage(tmp_path) as on:
        on.runs.start(both, cause="schedule")
        first = await on.begun()
        await on.board.put(first.running(target="far", sr="tape"))
        second = on.runs.start(both, cause="schedule")
        (await on.begun()).succeed()
        await second.ended.wait()
        await on.runs.drain(0.0, asyncio.Event())

    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == {"web"}


async def test_second_cancellation_does_not_strike_the_cleaning_up(tmp_path: Path) -> None:
    begun, cleaning, proceed, cleaned = (asyncio.Event() for _ in range(4))

    async def runner(job: JobSettings, run_id: RunId, report: Report) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await proceed.wait()
            cleaned.set()

    async with (
        open_store(tmp_path / "history.db") as store,
        Runs(runner, OpenBoard(), await History.open(store), Clock()) as runs,
    ):
        run = runs.start(job(), cause="command")
        await begun.wait()
        runs.cancel(run, reason="first")
        await cleaning.wait()
        runs.cancel(run, reason="second")
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


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the history as another program could."""
    with closing(sqlite3.connect(directory / "history.db")) as rival:
        rival.execute("BEGIN IMMEDIATE")
        yield
        rival.rollback()


@pytest.mark.usefixtures("hasty_store")
async def test_history_that_another_program_holds_stops_no_run_and_is_written_later(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as on:
        with locked(tmp_path):
            run = on.runs.start(job(), cause="command")
            (await on.begun()).succeed()
            await run.ended.wait()

            assert [r.outcome for r in run.records] == [Outcome.DELTA]
            assert await on.history.of_run(run.id) == run.records
            assert "another program holds it" in on.history.problem
            again = on.runs.start(job(), cause="command")  # and does not wait for the lock
            (await on.begun()).succeed()
            await again.ended.wait()

        await on.history.written()
        assert on.history.problem == ""
    async with stage(tmp_path) as on:
        assert await on.runs.take_over({"web"}) == set()
        assert await on.history.page() == [*again.records, *run.records]


@pytest.mark.usefixtures("hasty_store")
async def test_stop_waits_for_a_history_that_another_program_holds(tmp_path: Path) -> None:
    async with stage(tmp_path) as on:
        with locked(tmp_path):
            run = on.runs.start(job(), cause="command")
            (await on.begun()).succeed()
            await run.ended.wait()
            draining = asyncio.get_running_loop().create_task(
                on.runs.drain(0.0, asyncio.Event()), name="drain"
            )
            await asyncio.sleep(0)
            assert not draining.done()
        await draining

    async with stage(tmp_path) as on:
        assert await on.history.page() == run.records


@pytest.mark.usefixtures("hasty_store")
async def test_hurry_gives_up_what_cannot_be_written_and_the_next_start_claims_no_death(
    tmp_path: Path,
) -> None:
    hurry = asyncio.Event()
    hurry.set()
    async with AsyncExitStack() as process:
        on = await process.enter_async_context(stage(tmp_path))
        run = on.runs.start(job(), cause="command")
        begun = await on.begun()
        with locked(tmp_path):
            begun.succeed()
            await run.ended.wait()
            await on.runs.drain(0.0, hurry)
            await process.aclose()

    async with stage(tmp_path) as on:
        await on.runs.take_over(set())
        (found,) = await on.history.page()
        assert "went down before the end of this run was written down" in (found.error or "")


async def test_how_far_a_run_is_survives_the_end_of_the_daemon(tmp_path: Path) -> None:
    two = job(vms=["web01", "db01"])
    async with stage(tmp_path) as on, open_store(tmp_path / "history.db") as other:
        run = on.runs.start(two, cause="command")
        begun = await on.begun()
        disk = DiskRecord("0", "root", 1 << 30, "full", "", 4096, 2048, sent_bytes=1024)
        await on.board.put(begun.running(step="transfer", disks=(disk,), rate_bytes_per_s=9.0))
        while not any(each["step"] == "transfer" for each in await begun_runs(other)):
            pass
        kept = tmp_path / "kept.db"
        await other.run(lambda connection: connection.execute(f"VACUUM INTO '{kept}'"))
        begun.succeed()
        await run.ended.wait()

    async with open_store(kept) as store:
        history = await History.open(store)
        found, _ = await history.take_over(NOON, set())

    cut, to_come = found
    assert (cut.outcome, cut.step, cut.vm_name) == (Outcome.INTERRUPTED, "transfer", "web01")
    assert (cut.read_bytes, cut.sent_bytes, cut.rate_bytes_per_s) == (2048, 1024, 0.0)
    assert (to_come.outcome, to_come.vm_name) == (Outcome.INTERRUPTED, "db01")


async def begun_runs(store: Store) -> list[dict[str, Any]]:
    """Return what is written of runs that have not ended."""

    def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
        rows = connection.execute("SELECT records FROM begun")
        return [record for (text,) in rows for record in json.loads(text)]

    return await store.run(read)
