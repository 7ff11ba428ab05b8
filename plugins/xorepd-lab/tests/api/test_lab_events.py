"""event.from and event.inject."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import Api, logged_in, small_lab, vbd_record, vdi_record
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.leaves("task", "session")]


async def events(api: Api, classes: list[str], token: str, timeout: float = 5.0) -> Any:
    return await api("event.from", classes, token, timeout)


def seen(answer: Any) -> set[tuple[str, str, str]]:
    return {(e["class"], e["operation"], e["ref"]) for e in answer["events"]}


async def now(api: Api) -> str:
    return str((await events(api, ["*"], "", 0.0))["token"])


async def test_the_empty_token_gives_everything(api: Api) -> None:
    answer = await events(api, ["VM", "sr"], "")

    everything = {("vm", "add", ref) for ref in await api("VM.get_all")}
    everything |= {("sr", "add", ref) for ref in await api("SR.get_all")}
    assert seen(answer) == everything
    for event in answer["events"]:
        if event["class"] == "vm":
            assert event["snapshot"] == await api("VM.get_record", event["ref"])
    assert answer["valid_ref_counts"]["vm"] == len(await api("VM.get_all"))
    assert answer["valid_ref_counts"]["vmss"] == 0


async def test_nothing_new_is_an_empty_answer_with_a_token(api: Api) -> None:
    token = await now(api)

    answer = await events(api, ["vm"], token, 0.05)

    assert answer["events"] == []
    assert answer["token"] >= token


async def test_both_ends_of_a_reference_are_modified(api: Api) -> None:
    vm, vdi = await api.vm("db01"), await api.disk("db01-data")
    token = await now(api)

    vbd = await api("VBD.create", vbd_record(vm, vdi, mode="RO"))

    answer = await events(api, ["vm", "vdi", "vbd"], token)
    assert seen(answer) >= {("vbd", "add", vbd), ("vm", "mod", vm), ("vdi", "mod", vdi)}


async def test_changes_of_one_object_coalesce(api: Api) -> None:
    vm = await api.vm("web01")
    token = await now(api)
    for number in range(5):
        await api("VM.set_name_description", vm, f"change {number}")

    answer = await events(api, ["vm"], token)

    (event,) = answer["events"]
    assert event["operation"] == "mod"
    assert event["snapshot"]["name_description"] == "change 4"


async def test_what_came_and_went_is_not_told(api: Api) -> None:
    token = await now(api)
    passing = await api("task.create", "passing", "")
    await api("task.set_status", passing, "success")
    await api("task.destroy", passing)
    staying = await api("task.create", "staying", "")

    assert seen(await events(api, ["task"], token)) == {("task", "add", staying)}


async def test_deletions_are_told_to_who_knew_the_object(api: Api) -> None:
    task = await api("task.create", "t", "")
    await api("task.set_status", task, "success")
    token = await now(api)

    await api("task.destroy", task)

    answer = await events(api, ["task"], token)
    assert seen(answer) == {("task", "del", task)}
    assert "snapshot" not in answer["events"][0]


async def test_single_objects_can_be_watched(api: Api) -> None:
    one, other = [await api("task.create", name, "") for name in ("one", "other")]
    token = await now(api)

    await api("task.set_progress", other, 0.5)
    await api("task.set_progress", one, 0.25)

    assert seen(await events(api, [f"task/{one}"], token)) == {("task", "mod", one)}


async def test_a_wait_ends_with_the_change(lab: Lab, api: Api) -> None:
    vm = await api.vm("web01")
    token = await now(api)
    async with logged_in(lab) as other, asyncio.TaskGroup() as group:
        waiting = group.create_task(events(other, ["vm"], token, 60.0))
        await api("VM.set_name_label", vm, "renamed")

    assert seen(waiting.result()) == {("vm", "mod", vm)}


async def test_an_injected_event_is_a_barrier(api: Api) -> None:
    pool = (await api("pool.get_all"))[0]

    token = await api("event.inject", "pool", pool)

    assert seen(await events(api, ["pool"], token)) == {("pool", "mod", pool)}
    failure = await api.failure("event.inject", "VM", "OpaqueRef:none")
    assert failure == ["HANDLE_INVALID", "VM", "OpaqueRef:none"]


async def test_bad_tokens_are_refused_and_odd_subscriptions_match_nothing(api: Api) -> None:
    for token in ("nonsense", "1", "1,2,3", "1,x", ",", f"{1 << 64},0"):
        assert await api.failure("event.from", ["vm"], token, 0.0) == [
            "EVENT_FROM_TOKEN_PARSE_FAILURE",
            token,
        ]
    answer = await events(api, ["vm/a/b", "", "/", "nothing"], "", 0.0)

    assert answer["events"] == []


async def test_the_token_moves_only_with_what_is_watched(api: Api) -> None:
    token = (await events(api, ["vm"], ""))["token"]
    await api("task.create", "other", "")

    assert (await events(api, ["vm"], token, 0.0))["token"] == token


async def test_numbers_of_events_are_strings(api: Api) -> None:
    answer = await events(api, ["*"], "")

    assert all(isinstance(event["id"], str) for event in answer["events"])
    assert not {event["class"] for event in answer["events"]} & {"session", "user"}


async def test_messages_come_first_and_are_counted_by_themselves(api: Api) -> None:
    pool = (await api("pool.get_all_records")).popitem()[1]
    token = (await events(api, ["message", "task"], ""))["token"]
    task = await api("task.create", "t", "")
    message = await api("message.create", "HELLO", "5", "Pool", pool["uuid"], "text")

    answer = await events(api, ["message", "task"], token)

    assert [(e["class"], e["ref"], e["id"] == "0") for e in answer["events"]] == [
        ("message", message, True),
        ("task", task, False),
    ]
    assert "message" not in answer["valid_ref_counts"]
    await api("message.destroy", message)
    gone = await events(api, ["message"], answer["token"])
    assert seen(gone) == {("message", "del", message)}
    assert (await events(api, ["task"], answer["token"], 0.0))["token"].endswith(f",{0:020d}")


async def test_a_class_is_injected_by_its_exact_name(api: Api) -> None:
    vm = await api.vm("web01")

    assert await api.failure("event.inject", "vm", vm) == ["HANDLE_INVALID", "vm", vm]
    assert await api.failure("event.inject", "nothing", vm) == ["HANDLE_INVALID", "nothing", vm]
    assert await api("event.inject", "VM", vm)


async def test_the_old_interface_tells_every_change(lab: Lab, api: Api) -> None:
    assert (await api.failure("event.next"))[0] == "SESSION_NOT_REGISTERED"
    await api("event.register", ["task"])
    task = await api("task.create", "t", "")
    for progress in (0.25, 0.5):
        await api("task.set_progress", task, progress)
    await api("task.set_status", task, "success")
    await api("task.destroy", task)

    told = await api("event.next")

    found = [event for event in told if event["ref"] == task]  # event.register is a task as well
    assert [event["operation"] for event in found] == ["add", "mod", "mod", "mod", "del"]
    assert [event["snapshot"]["progress"] for event in found][:3] == [0.0, 0.25, 0.5]
    assert await api("event.get_current_id") == str(int(told[-1]["id"]) + 1)
    await api("event.unregister", ["task"])
    heard = lab.pools["prod"].old_events.next_number
    await api("task.create", "unheard", "")
    assert lab.pools["prod"].old_events.next_number == heard


async def test_the_old_interface_loses_what_is_too_much(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xorepd_lab.model.old_events.MOST_BYTES", 2000)
    await api("event.register", ["task"])
    for number in range(10):
        await api("task.create", f"t{number}", "")

    assert await api.failure("event.next") == ["EVENTS_LOST"]
    last = await api("task.create", "last", "")
    (event,) = await api("event.next")
    assert event["ref"] == last


async def test_old_deletions_are_forgotten(api: Api, lab: Lab) -> None:
    db = lab.pools["prod"].db
    tasks = [db.create("task", name_label=str(n)) for n in range(513)]
    token = await now(api)
    for task in tasks:
        db.destroy("task", task)

    answer = await events(api, ["task"], token)

    assert len(answer["events"]) == 256
    assert answer["valid_ref_counts"]["task"] == 0


async def test_tokens_survive_a_restart(tmp_path: Path) -> None:
    async with small_lab(tmp_path) as lab, logged_in(lab) as api:
        sr = (await api("SR.get_by_name_label", "prod-shared"))[0]
        token = await now(api)
        vdi = await api("VDI.create", vdi_record(sr))

    async with small_lab(tmp_path) as lab, logged_in(lab) as api:
        assert ("vdi", "add", vdi) in seen(await events(api, ["vdi"], token))
