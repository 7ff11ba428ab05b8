"""Tasks: asynchronous calls, results, cancelling, expiry."""

import asyncio
from datetime import timedelta

import pytest

from tests.lab.labclient import Api, logged_in, vdi_record
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.leaves("task", "session")]

EPOCH = "19700101T00:00:00Z"


async def test_a_created_task_is_pending_and_blank(api: Api) -> None:
    task = await api("task.get_record", await api("task.create", "label", "text"))

    assert (task["name_label"], task["name_description"]) == ("label", "text")
    assert task["status"] == "pending"
    assert str(task["finished"]) == EPOCH
    assert task["type"] == "<none/>"
    assert task["progress"] == 0.0
    assert task["resident_on"] == (await api("pool.get_all_records")).popitem()[1]["master"]


async def test_results_are_xml_text(api: Api) -> None:
    vm = await api.vm("db01")

    snapshot = await api.finished(await api("Async.VM.snapshot", vm, "s"))
    nothing = await api.finished(await api("Async.VM.update_allowed_operations", vm))
    devices = await api.finished(await api("Async.VM.start", vm, False, False))

    (ref,) = await api("VM.get_by_name_label", "s")
    assert snapshot["status"] == "success"
    assert snapshot["result"] == f"<value>{ref}</value>"
    assert snapshot["progress"] == 1.0
    assert str(snapshot["finished"]) != EPOCH
    assert nothing["result"] == devices["result"] == "<value></value>"


async def test_a_failure_is_told_by_the_task_and_not_by_the_call(api: Api) -> None:
    task = await api.finished(await api("Async.VM.snapshot", "OpaqueRef:none", "s"))

    assert task["status"] == "failure"
    assert task["error_info"] == ["HANDLE_INVALID", "VM", "OpaqueRef:none"]


async def test_a_client_may_finish_its_own_task(api: Api) -> None:
    task = await api("task.create", "mine", "")

    await api("task.set_status", task, "success")
    await api("task.set_progress", task, 1.0)

    record = await api("task.get_record", task)
    assert (record["status"], str(record["finished"])) == ("success", EPOCH)


@pytest.mark.leaves("operation")
@pytest.mark.leaves("task", "session", "operation")
async def test_waiting_calls_can_be_cancelled(lab: Lab, api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    pool = lab.pools["prod"]
    pool.db.put("SR", sr, "current_operations", "OpaqueRef:other", "scan")
    task = await api("Async.VDI.create", vdi_record(sr))
    while await api("task.get_allowed_operations", task) != ["cancel"]:
        pass

    await api("task.cancel", task)

    record = await api.finished(task)
    assert record["status"] == "cancelled"
    assert record["error_info"] == ["TASK_CANCELLED", task]


async def test_a_pending_task_that_is_destroyed_goes_at_its_end(lab: Lab, api: Api) -> None:
    fault = lab.faults.add(Fault("rpc", "VM.snapshot", stall=True))
    task = await api("Async.VM.snapshot", await api.vm("db01"), "s")
    await fault.stalled.wait()

    await api("task.destroy", task)
    assert "destroy" in (await api("task.get_current_operations", task)).values()
    token = (await api("event.from", ["task"], "", 0.0))["token"]
    fault.release()

    operations = ["mod"]
    while operations == ["mod"]:
        answer = await api("event.from", [f"task/{task}"], token, 5.0)
        token = answer["token"]
        operations = [event["operation"] for event in answer["events"]]
    assert operations == ["del"]


async def test_synchronous_calls_leave_no_task(api: Api) -> None:
    await api("VM.snapshot", await api.vm("db01"), "s")

    assert await api("task.get_all") == []


async def test_completed_tasks_expire(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    old = pool.tasks.create("old")
    pool.tasks.complete(old, "")
    pool.clock.offset += timedelta(seconds=3901)
    young = pool.tasks.create("young")
    pool.tasks.complete(young, "")
    pending = pool.tasks.create("pending")

    pool.tasks.sweep()

    assert set(pool.db.refs("task")) == {young, pending}


async def test_a_task_outlives_the_session_that_made_it(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    fault = lab.faults.add(Fault("inner", "VDI.snapshot", stall=True))
    async with logged_in(lab) as gone:
        task = await gone("Async.VM.snapshot", await gone.vm("db01"), "s")
        await fault.stalled.wait()
    pool.clock.jump(timedelta(hours=23).total_seconds())
    pool.tasks.sweep()
    assert await api("task.get_status", task) == "pending"

    fault.release()

    assert (await api.finished(task))["result"].startswith("<value>OpaqueRef:")
    pool.clock.jump(3890)
    pool.tasks.sweep()
    assert await api("task.get_status", task) == "success"
    pool.clock.jump(20)
    pool.tasks.sweep()
    assert await api("task.get_all") == []


async def test_a_pending_task_goes_after_a_day_without_progress(lab: Lab) -> None:
    pool = lab.pools["prod"]
    moving, stuck = (pool.tasks.create(name) for name in ("moving", "stuck"))
    pool.clock.jump(timedelta(hours=25).total_seconds())
    pool.tasks.sweep()
    assert set(pool.db.refs("task")) == {moving, stuck}

    pool.tasks.progress(moving, 0.5)
    pool.tasks.sweep()

    assert pool.db.refs("task") == [moving]


async def test_no_task_outlives_its_toolstack(lab: Lab, api: Api) -> None:
    fault = lab.faults.add(Fault("inner", "VDI.snapshot", skip=1, stall=True))
    done = await api("Async.VM.snapshot", await api.vm("db01"), "s")
    await api.finished(done)
    pending = await api("Async.VM.snapshot", await api.vm("db01"), "t")
    await fault.stalled.wait()

    await lab.happen(Incident("toolstack-restart", pool="prod"))

    async with logged_in(lab) as later:
        for task in (done, pending):
            assert await later.failure("task.get_record", task) == ["HANDLE_INVALID", "task", task]
        assert await later("task.get_all") == []
        assert len(await later("VM.get_by_name_label", "s")) == 1
        assert await later("VM.get_by_name_label", "t") == []


async def test_too_many_completed_tasks_go_at_once(lab: Lab) -> None:
    pool = lab.pools["prod"]
    pending = pool.tasks.create("pending")
    for _ in range(200):
        pool.tasks.complete(pool.tasks.create("done"), "")

    pool.tasks.sweep()

    assert pool.db.refs("task") == [pending]


async def test_storage_operations_on_one_sr_wait_for_each_other(lab: Lab, api: Api) -> None:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    async with logged_in(lab) as other, asyncio.TaskGroup() as group:
        made = [group.create_task(a("VDI.create", vdi_record(sr))) for a in (api, other)]
        most = 0
        while not all(task.done() for task in made):
            held = lab.pools["prod"].db.get("SR", sr, "current_operations")
            most = max(most, len(held))
            await asyncio.sleep(0)

    assert most == 1
    assert len({task.result() for task in made}) == 2
    assert await api("SR.get_current_operations", sr) == {}


@pytest.mark.leaves("task", "session", "operation")
async def test_too_many_may_not_wait(lab: Lab, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xorepd_lab.calls.operations.MOST_QUEUED", 1)
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    lab.pools["prod"].db.put("SR", sr, "current_operations", "OpaqueRef:other", "scan")
    waiting = [await api("Async.VDI.create", vdi_record(sr)) for _ in range(2)]

    assert await api.failure("VDI.create", vdi_record(sr)) == ["TOO_MANY_PENDING_TASKS"]

    for task in waiting:
        await api("task.cancel", task)
        assert (await api.finished(task))["status"] == "cancelled"


async def test_a_cancelled_task_remembers_who_cancelled_it(api: Api) -> None:
    task = await api("task.create", "t", "")

    await api("task.cancel", task)

    record = await api("task.get_record", task)
    assert record["status"] == "pending"
    assert list(record["current_operations"].values()) == ["cancel"]
