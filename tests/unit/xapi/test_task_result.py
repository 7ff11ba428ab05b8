from __future__ import annotations

from typing import Any

import pytest

from tests.unit.xapi import raws
from xorepd.errors import ObjectBusy, ObjectGone, XapiFailure
from xorepd.ids import Ref
from xorepd.xapi.pool import task_result
from xorepd.xapi.records import Task, read_record


def finished(**changes: Any) -> Task:
    return read_record(Task, Ref("OpaqueRef:t"), raws.task("u", **changes))


def test_result_is_taken_out_of_its_wrapping() -> None:
    task = finished(status="success", result="<value>OpaqueRef:1</value>")

    assert task_result("prod", task) == "OpaqueRef:1"


def test_result_without_wrapping_is_taken_as_it_is() -> None:
    assert task_result("prod", finished(status="success", result="OpaqueRef:1")) == "OpaqueRef:1"


@pytest.mark.parametrize("result", ["", "<value></value>"])
def test_result_of_a_call_that_gives_nothing_is_empty(result: str) -> None:
    assert task_result("prod", finished(status="success", result=result)) == ""


def test_failed_task_raises_what_it_failed_with() -> None:
    task = finished(status="failure", error_info=["VDI_IN_USE", "OpaqueRef:1", "clone"])

    with pytest.raises(ObjectBusy, match="clone"):
        task_result("prod", task)


def test_failed_task_without_an_error_raises_all_the_same() -> None:
    with pytest.raises(XapiFailure, match="no error in the task"):
        task_result("prod", finished(status="failure"))


def test_cancelled_task_says_what_was_cancelled() -> None:
    with pytest.raises(XapiFailure, match="TASK_CANCELLED") as caught:
        task_result("prod", finished(status="cancelled"))

    assert caught.value.params == ["Async.VM.snapshot"]


def test_cancelled_task_with_an_error_raises_the_error() -> None:
    task = finished(status="cancelled", error_info=["HANDLE_INVALID", "VDI", "OpaqueRef:1"])

    with pytest.raises(ObjectGone):
        task_result("prod", task)


def test_unfinished_task_is_never_taken_for_a_success() -> None:
    with pytest.raises(XapiFailure):
        task_result("prod", finished(status="pending", result="<value>OpaqueRef:1</value>"))
