from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.control.stage import Stage, stage
from tests.unit.parts import JOB, NOON, POOLS, record, write
from tests.unit.replication.test_selection import vm
from xorepd.config.choices import Fulls
from xorepd.config.keep import Keep
from xorepd.control.protocol import Finished, PoolStatus
from xorepd.ctl import app
from xorepd.errors import ControlError
from xorepd.replication.deciding.selection import ExcludedVm
from xorepd.state.records import DiskRecord, Outcome, RunRecord


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as staged:
        yield staged


async def refusal(call: Awaitable[object]) -> tuple[int, str]:
    with pytest.raises(ControlError) as caught:
        await call
    return caught.value.status, str(caught.value)


# -- status and jobs -------------------------------------------------------------------------------


async def test_status_of_a_new_daemon_says_that_nothing_ran_yet(on: Stage) -> None:
    (job,) = (await on.client.status()).jobs

    assert (job.name, job.next_run_at, job.run_id) == ("web", NOON + timedelta(minutes=5), None)
    (vm,) = job.vms
    assert (vm.vm, vm.last, vm.newest_point_at, vm.age_s) == ("web01", None, None, None)


async def test_status_tells_the_age_of_the_newest_point(on: Stage) -> None:
    on.history.add(record())
    on.history.add(record(outcome=Outcome.FAILED, restore_point=None))
    on.clock.turn(minutes=10)

    (vm,) = (await on.client.status()).jobs[0].vms

    assert vm.last is not None
    assert vm.last.outcome is Outcome.FAILED
    assert vm.age_s == 599.0


async def test_status_tells_how_fast_the_open_pools_answer(on: Stage) -> None:
    pool = PoolStatus(
        name="prod", latency_s=0.2, is_slow=False, max_vms=None, active_vms=1, waiting_vms=0
    )
    on.pools.append(pool)

    assert (await on.client.status()).pools == (pool,)


async def test_point_on_another_target_is_not_this_jobs_point(on: Stage) -> None:
    for other in (record(target="elsewhere"), record(sr="other-storage")):
        on.history.add(other)

    (vm,) = (await on.client.status()).jobs[0].vms

    assert (vm.last, vm.age_s) == (None, None)


async def test_each_target_has_its_own_newest_point(tmp_path: Path) -> None:
    second = "6d9c2a55-3a52-4a53-8f2b-0f8d4c1e7b11"
    one = '{ pool = "dr", sr = "dr-storage" }'
    two = JOB.replace(f"target = {one}", f'targets = [{one}, {{ pool = "dr", sr = "{second}" }}]')
    async with stage(tmp_path, POOLS + two) as on:
        failed = record(sr="other", sr_uuid=second, outcome=Outcome.FAILED, restore_point=None)
        for each in (record(), failed):
            on.history.add(each)

        near, far = (await on.client.status()).jobs[0].vms

    assert (near.sr, near.newest_point_at) == ("dr-storage", record().point_in_time)
    assert (far.sr, far.newest_point_at) == (second, None)
    assert far.last is not None
    assert far.last.outcome is Outcome.FAILED


FOUND = POOLS + JOB.replace('"web01"', '"db01", "web*"') + 'exclude = ["web03"]\n'


async def test_status_of_a_job_that_found_nothing_yet_shows_by_what_it_looks(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path, FOUND) as on:
        vms = (await on.client.status()).jobs[0].vms

    assert [(vm.vm, vm.name, vm.last) for vm in vms] == [
        ("db01", "db01", None),
        ("web*", "web*", None),
    ]


async def test_status_shows_what_a_job_found_even_when_it_is_not_found_any_more(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path, FOUND) as on:
        named = record(vm_uuid="vm-0", vm_name="db01")
        first, second = record(vm_name="web02"), record(vm_uuid="vm-2", vm_name="web01")
        excluded = record(vm_uuid="vm-3", vm_name="web03")
        gone = record(vm_name="web02", outcome=Outcome.FAILED, restore_point=None)
        for each in (named, first, second, excluded, gone):
            on.history.add(each)

        vms = (await on.client.status()).jobs[0].vms

    assert [(vm.vm, vm.name, vm.last and vm.last.outcome) for vm in vms] == [
        ("db01", "db01", Outcome.DELTA),
        ("vm-2", "web01", Outcome.DELTA),
        ("vm-1", "web02", Outcome.FAILED),
    ]


async def test_status_names_the_replicas_that_a_job_means(on: Stage) -> None:
    await on.client.start_run("web")
    begun = await on.begun()
    names = [f"r{n}" for n in range(7)]
    replicas = [ExcludedVm(vm(name), "it is a replica", is_replica=True) for name in names]
    begun.report.expects([], replicas)
    begun.succeed()

    reply = await on.client.status()

    assert [left.name for left in reply.jobs[0].excluded_replicas] == names
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--socket", str(on.socket)])
    said = " ".join(shown.output.split())
    assert "web leaves out r0, r1, r2, r3, r4 and 2 more: it is a replica" in said


@pytest.mark.usefixtures("hasty_store")
async def test_status_says_what_cannot_be_written(on: Stage) -> None:
    assert (await on.client.status()).history is None
    with closing(sqlite3.connect(on.directory / "history.db")) as rival:
        rival.execute("BEGIN IMMEDIATE")
        on.history.add(record())
        await on.history.settled()

        reply = await on.client.status()

    assert reply.history is not None
    assert (reply.history.pending, reply.history.dropped) == (1, 0)
    assert "another program holds it" in reply.history.problem
    [shown] = reply.jobs[0].vms
    assert (shown.last and shown.last.outcome) == Outcome.DELTA


async def test_vm_is_the_same_by_uuid_and_by_name(on: Stage) -> None:
    on.history.add(record())
    # The pool could not be asked which VM has this name.
    on.history.add(record(vm_uuid="", outcome=Outcome.FAILED, restore_point=None))

    (vm,) = (await on.client.status()).jobs[0].vms

    assert vm.last is not None
    assert vm.last.vm_uuid == ""
    assert vm.newest_point_at == record().point_in_time


async def test_status_shows_what_runs(on: Stage) -> None:
    accepted = await on.client.start_run("web")
    begun = await on.begun()
    disk = DiskRecord("0", "root", 1 << 30, "full", "first", 2000, 500)
    await on.board.put(begun.running(disks=(disk,), rate_bytes_per_s=100.0))

    status = await on.client.status()

    assert status.jobs[0].run_id == accepted.run_id
    (running,) = status.running
    assert (running.planned_bytes, running.read_bytes, running.step) == (2000, 500, "transfer")
    begun.succeed()


async def test_jobs_are_shown_as_configured(on: Stage) -> None:
    (job,) = (await on.client.jobs()).jobs

    assert (job.source, job.schedule, job.timezone) == ("prod", "*/5 * * * *", "UTC")
    (target,) = job.targets
    assert (target.pool, target.sr, target.keep) == ("dr", "dr-storage", "3")
    assert (job.verify, target.transport) == ("sample", "direct")


async def test_version_is_told(on: Stage) -> None:
    assert (await on.client.version()).api == 1


async def test_replicas_without_a_job_are_told(on: Stage) -> None:
    reply = await on.client.orphans()

    command = ["orphans", "--socket", str(on.socket)]
    shown = await asyncio.to_thread(CliRunner().invoke, app, command)

    assert (reply.orphans, reply.not_asked) == ((), {"dr": "it does not answer"})
    assert "dr did not answer: it does not answer" in shown.output


# -- policies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allow_full", "full"), [(True, Fulls.ALLOW), (False, Fulls.ASK)])
async def test_only_the_run_that_an_operator_lets_sends_disks_whole(
    tmp_path: Path, allow_full: bool, full: Fulls
) -> None:
    async with stage(tmp_path, POOLS + JOB + 'full = "ask"\n') as on:
        await on.client.start_run("web", allow_full=allow_full)
        begun = await on.begun()
        begun.succeed()

        assert begun.job.full is full
        assert on.service.settings.jobs[begun.job.name].full is Fulls.ASK


@pytest.mark.parametrize(("words", "full"), [(["--allow-full"], Fulls.ALLOW), ([], Fulls.ASK)])
async def test_command_lets_a_run_send_disks_whole(
    tmp_path: Path, words: list[str], full: Fulls
) -> None:
    async with stage(tmp_path, POOLS + JOB + 'full = "ask"\n') as on:
        command = ["run", "web", *words, "--socket", str(on.socket)]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
        begun = await on.begun()
        begun.succeed()

    assert result.exit_code == 0, result.output
    assert begun.job.full is full


async def test_run_that_must_never_send_disks_whole_is_not_let_to(tmp_path: Path) -> None:
    async with stage(tmp_path, POOLS + JOB + 'full = "never"\n') as on:
        status, sentence = await refusal(on.client.start_run("web", allow_full=True))

    assert status == 409
    assert sentence == 'job web has full = "never"; set it to "ask" first'


# -- runs ------------------------------------------------------------------------------------------


async def test_run_is_told_from_its_start_to_its_end(on: Stage) -> None:
    run_id = (await on.client.start_run("web")).run_id
    begun = await on.begun()
    events: asyncio.Queue[RunRecord | Finished] = asyncio.Queue()

    async def watch() -> None:
        async for event in on.client.watch_run(run_id):
            events.put_nowait(event)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        for step in ("preflight", "transfer"):
            await on.board.put(begun.running(step=step))
            shown = await events.get()
            assert isinstance(shown, RunRecord)
            assert (shown.step, shown.run_id) == (step, run_id)
        await on.board.put()
        begun.succeed()
        last = await events.get()

    assert isinstance(last, Finished)
    assert [r.outcome for r in last.records] == [Outcome.DELTA]


async def test_finished_run_can_still_be_watched_and_asked_for(on: Stage) -> None:
    run_id = await on.finish()

    events = [event async for event in on.client.watch_run(run_id)]
    reply = await on.client.run(run_id)

    assert [type(event) for event in events] == [Finished]
    assert (reply.job, reply.running, len(reply.records)) == ("web", False, 1)


async def test_run_under_way_can_be_asked_for(on: Stage) -> None:
    run_id = (await on.client.start_run("web")).run_id
    begun = await on.begun()
    await on.board.put(begun.running())

    reply = await on.client.run(run_id)

    assert (reply.running, [r.step for r in reply.records]) == (True, ["transfer"])
    begun.succeed()


async def test_watcher_that_goes_leaves_the_run_alone(on: Stage) -> None:
    run_id = (await on.client.start_run("web")).run_id
    begun = await on.begun()
    await on.board.put(begun.running())
    events = on.client.watch_run(run_id)
    await anext(events)

    await events.aclose()

    assert (await on.client.run(run_id)).running
    begun.succeed()


async def test_second_run_of_a_job_is_a_conflict_that_names_the_first(on: Stage) -> None:
    run_id = (await on.client.start_run("web")).run_id
    begun = await on.begun()

    status, sentence = await refusal(on.client.start_run("web"))

    assert status == 409
    assert run_id in sentence
    begun.succeed()


async def test_unknown_names_are_not_found(on: Stage) -> None:
    assert await refusal(on.client.start_run("wbe")) == (
        404,
        "there is no job 'wbe'; did you mean 'web'?",
    )
    assert (await refusal(on.client.start_run("../status")))[0] == 404
    assert (await refusal(on.client.run("nope")))[0] == 404
    assert (await refusal(anext(on.client.watch_run("nope"))))[0] == 404
    assert (await refusal(on.client.cancel_run("wbe")))[0] == 404


async def test_run_can_be_cancelled(on: Stage) -> None:
    run_id = (await on.client.start_run("web")).run_id
    begun = await on.begun()

    assert (await on.client.cancel_run("web")).run_id == run_id
    *_, last = [event async for event in on.client.watch_run(run_id)]

    assert begun.cancelled
    assert isinstance(last, Finished)
    assert [r.outcome for r in last.records] == [Outcome.CANCELLED]
    assert (await refusal(on.client.cancel_run("web")))[0] == 409


@pytest.mark.parametrize(
    ("resume", "says"),
    [
        ("1d", "it keeps what the next run can continue and removes the rest"),
        ("0s", "it removes everything that it has created on both pools"),
    ],
)
async def test_cancelling_says_what_stays_and_what_is_removed(
    tmp_path: Path, resume: str, says: str
) -> None:
    async with stage(tmp_path, POOLS + JOB + f'resume = "{resume}"\n') as on:
        await on.client.start_run("web")
        await on.begun()

        command = ["cancel", "web", "--socket", str(on.socket)]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)

    assert result.exit_code == 0, result.output
    assert says in " ".join(result.output.split())


async def test_history_can_be_of_one_job_and_is_bounded(on: Stage) -> None:
    for n in range(3):
        on.history.add(record(run_id=str(n), job="web" if n else "db"))

    assert [r.run_id for r in (await on.client.history(limit=2)).records] == ["2", "1"]
    assert [r.run_id for r in (await on.client.history("db")).records] == ["0"]
    assert (await refusal(on.client.history(limit=1001)))[0] == 400


# -- reload ----------------------------------------------------------------------------------------


async def test_reload_lets_the_new_file_rule(on: Stage) -> None:
    db = JOB.replace("jobs.web", "jobs.db").replace("web01", "db01")
    write(on.directory, POOLS + JOB + "keep = 5\n" + db)

    reply = await on.client.reload()

    assert (reply.jobs.added, reply.jobs.changed, reply.jobs.removed) == (("db",), ("web",), ())
    assert {j.name: j.targets[0].keep for j in (await on.client.jobs()).jobs} == {
        "web": "5",
        "db": "3",
    }
    assert len(on.applied) == 1


async def test_bad_file_changes_nothing_and_the_reason_is_said(on: Stage) -> None:
    write(on.directory, POOLS + JOB.replace("vms", "vmz") + "keep = 5\n")

    status, sentence = await refusal(on.client.reload())

    assert status == 422
    assert "jobs.web.vmz" in sentence
    assert [j.targets[0].keep for j in (await on.client.jobs()).jobs] == ["3"]
    assert on.applied == []


@pytest.mark.parametrize("text", ["", "# all gone\n", POOLS, '[daemon]\nlog_level = "debug"\n'])
async def test_file_that_lost_all_its_jobs_changes_nothing_unless_it_says_so(
    on: Stage, text: str
) -> None:
    write(on.directory, text)

    status, sentence = await refusal(on.client.reload())

    assert status == 422
    assert sentence.endswith("xorepd.toml: has no jobs; if that is intended, write jobs = {}")
    assert [j.name for j in (await on.client.jobs()).jobs] == ["web"]
    write(on.directory, "jobs = {}\n" + text)
    assert (await on.client.reload()).jobs.removed == ("web",)


async def test_removed_job_finishes_its_run(on: Stage) -> None:
    run_id = (await on.client.start_run("web")).run_id
    begun = await on.begun()
    write(on.directory, "jobs = {}\n" + POOLS)

    assert (await on.client.reload()).jobs.removed == ("web",)

    assert (await on.client.run(run_id)).running
    begun.succeed()
    *_, last = [event async for event in on.client.watch_run(run_id)]
    assert isinstance(last, Finished)
    assert (await refusal(on.client.start_run("web")))[0] == 404


async def test_changed_job_rules_from_its_next_run(on: Stage) -> None:
    await on.client.start_run("web")
    first = await on.begun()
    write(on.directory, POOLS + JOB + "keep = 5\n")
    await on.client.reload()
    assert first.job.keep == Keep(last=3)
    first.succeed()
    async for _ in on.client.watch_run(first.run_id):
        pass

    await on.client.start_run("web")

    second = await on.begun()
    assert second.job.keep == Keep(last=5)
    second.succeed()


# -- stopping --------------------------------------------------------------------------------------


async def test_daemon_that_stops_answers_and_starts_nothing(on: Stage) -> None:
    await on.client.start_run("web")
    begun, hurry = await on.begun(), asyncio.Event()

    async with asyncio.TaskGroup() as group:
        group.create_task(on.service.drain(hurry))
        while not (await on.client.status()).stopping:
            pass
        assert (await refusal(on.client.start_run("web")))[0] == 503
        assert (await refusal(on.client.reload()))[0] == 503
        hurry.set()

    assert begun.cancelled
    assert [r.outcome for r in (await on.client.history()).records] == [Outcome.CANCELLED]
