"""Tasks from start to end, and changes as events."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import XenAPI

from pool.target import MIB, Bench

pytestmark = pytest.mark.pool


@contextmanager
def another_session(bench: Bench) -> Iterator[str]:
    """Give the reference of a session that ends with the block."""
    session = XenAPI.Session(bench.target.url, ignore_ssl=True)
    session.login_with_password(bench.target.username, bench.target.password, "1.0", "another")
    try:
        yield str(session.handle)
    finally:
        session.logout()
        session("close")()


def test_an_async_call_gives_a_task_with_its_result(bench: Bench) -> None:
    vm = bench.new_vm()

    task = bench.call("Async.VM.clone", vm, bench.name())
    bench.afterwards("task.destroy", task)
    record = bench.finished(task)

    assert record["status"] == "success"
    assert record["progress"] == 1.0
    assert record["error_info"] == []
    clone = record["result"].removeprefix("<value>").removesuffix("</value>")
    bench.keep_vm(clone)
    assert bench.api.VM.get_power_state(clone) == "Halted"


def vdi_record(bench: Bench) -> dict[str, Any]:
    return {
        "SR": bench.sr,
        "name_label": bench.name(),
        "virtual_size": str(4 * MIB),
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": {},
    }


@pytest.mark.parametrize(
    "method", ["VDI.create", "VDI.snapshot", "VDI.clone", "VM.create", "VM.snapshot", "VM.clone"]
)
def test_the_task_of_a_client_that_is_gone_tells_another_what_it_made(
    bench: Bench, method: str
) -> None:
    cls, verb = method.split(".")
    arguments: tuple[Any, ...]
    match method:
        case "VDI.create":
            arguments = (vdi_record(bench),)
        case "VDI.snapshot" | "VDI.clone":
            arguments = (bench.new_vdi(),)
        case "VM.create":
            like = bench.api.VM.get_record(bench.new_vm())
            arguments = ({**like, "name_label": bench.name()},)
        case _:
            arguments = (bench.new_vm(), bench.name())
    mark = bench.name()
    headers = {"X-HTTP-Other-Config-Xorepd-Test": mark}

    with another_session(bench) as session:
        task = bench.call_as(session, headers, f"Async.{method}", *arguments)

    records = bench.api.task.get_all_records()
    [found] = [
        ref
        for ref, record in records.items()
        if record["other_config"].get("http:xorepd-test") == mark
    ]
    bench.afterwards("task.destroy", found)
    assert found == task
    assert records[found]["name_label"] == f"Async.{method}"
    made = bench.result(found)
    (bench.keep_vm if cls == "VM" else bench.keep_vdi)(made)
    record = bench.call(f"{cls}.get_record", made)
    assert record["is_a_snapshot"] == (verb == "snapshot")


def test_a_synchronous_call_leaves_no_task_whatever_its_headers(bench: Bench) -> None:
    mark = bench.name()
    headers = {"x-http-other-config-who": mark}

    bench.keep_vdi(bench.call_as(bench.ref, headers, "VDI.create", vdi_record(bench)))

    marks = [task["other_config"] for task in bench.api.task.get_all_records().values()]
    assert mark not in [each.get("http:who") for each in marks]


def test_a_call_can_say_whose_subtask_its_task_is(bench: Bench) -> None:
    parent = bench.new_task()

    task = bench.call_as(bench.ref, {"subtask-of": parent}, "Async.VM.clone", "OpaqueRef:none", "")
    bench.afterwards("task.destroy", task)

    assert bench.finished(task)["subtask_of"] == parent
    assert bench.api.task.get_subtasks(parent) == [task]


def test_errors_of_an_async_call_are_in_its_task(bench: Bench) -> None:
    task = bench.call("Async.VM.clone", "OpaqueRef:none", bench.name())
    bench.afterwards("task.destroy", task)

    record = bench.finished(task)

    assert record["status"] == "failure"
    assert record["error_info"][0] == "HANDLE_INVALID"
    assert record["result"] == ""


def test_a_task_of_ours_waits_until_it_is_destroyed(bench: Bench) -> None:
    task = bench.new_task()

    record = bench.api.task.get_record(task)
    assert record["backtrace"] == "()"

    assert (record["status"], record["progress"], record["type"]) == ("pending", 0.0, "<none/>")
    bench.api.task.add_to_other_config(task, "xorepd-test", "ours")
    assert bench.api.task.get_other_config(task) == {"xorepd-test": "ours"}


def test_events_tell_what_became_of_an_object(bench: Bench) -> None:
    vm = bench.new_vm()
    token = bench.call("event.from", [f"vm/{vm}"], "", 0.0)["token"]

    bench.api.VM.set_name_description(vm, "first")
    bench.api.VM.set_name_description(vm, "second")
    changed = bench.call("event.from", [f"vm/{vm}"], token, 30.0)
    bench.api.VM.destroy(vm)
    gone = bench.call("event.from", [f"vm/{vm}"], changed["token"], 30.0)

    (mod,) = changed["events"]
    assert (mod["class"], mod["operation"], mod["ref"]) == ("vm", "mod", vm)
    assert mod["snapshot"]["name_description"] == "second"
    (end,) = gone["events"]
    assert (end["operation"], end["ref"]) == ("del", vm)
    assert "snapshot" not in end


def test_an_empty_token_gives_every_object(bench: Bench) -> None:
    answer = bench.call("event.from", ["sr"], "", 30.0)

    assert {event["operation"] for event in answer["events"]} == {"add"}
    assert {event["ref"] for event in answer["events"]} == set(bench.api.SR.get_all())
    assert int(answer["valid_ref_counts"]["sr"]) == len(answer["events"])


def test_a_wait_without_news_ends_in_time_with_a_good_token(bench: Bench) -> None:
    vm = bench.new_vm()
    token = bench.call("event.from", [f"vm/{vm}"], "", 0.0)["token"]

    quiet = bench.call("event.from", [f"vm/{vm}"], token, 0.1)
    bench.api.VM.set_name_description(vm, "now")
    loud = bench.call("event.from", [f"vm/{vm}"], quiet["token"], 30.0)

    assert quiet["events"] == []
    assert loud["events"][0]["ref"] == vm


def test_an_injected_event_passes_the_token_it_gave(bench: Bench) -> None:
    vm = bench.new_vm()

    token = bench.call("event.inject", "VM", vm)

    answer = bench.call("event.from", ["vm"], token, 30.0)
    assert vm in [event["ref"] for event in answer["events"]]


def test_a_token_of_somebody_else_is_refused(bench: Bench) -> None:
    refused = bench.failure("event.from", ["vm"], "yesterday", 0.0)

    assert refused == ["EVENT_FROM_TOKEN_PARSE_FAILURE", "yesterday"]
