"""Records that no XAPI gives are refused by name, whatever is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.xapi import raws
from xorepd.errors import LONGEST
from xorepd.ids import Ref
from xorepd.xapi.records import LONGEST_NAME, BadRecord, Task, Vdi, Vm, read_record

REF = Ref("OpaqueRef:1")


def without(raw: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != field}


@pytest.mark.parametrize("field", ["uuid", "name_label", "power_state", "is_a_snapshot"])
def test_a_field_that_every_record_has_may_not_be_missing(field: str) -> None:
    with pytest.raises(BadRecord, match=f"^of VM .*, {field} is missing$"):
        read_record(Vm, REF, without(raws.vm("u-1"), field))


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("uuid", ["u-1"], "text"),
        ("name_label", {"a": "b"}, "text"),
        ("power_state", None, "text"),
        ("is_a_template", "false", "boolean"),
        ("is_control_domain", 0, "boolean"),
        ("snapshots", "OpaqueRef:2", "list of texts"),
        ("VBDs", [["OpaqueRef:2"]], "list of texts"),
        ("tags", {"a": "b"}, "list of texts"),
        ("other_config", ["xorepd:mark"], "map of texts"),
        ("other_config", {"xorepd:mark": {}}, "map of texts"),
        ("blocked_operations", "start", "map of texts"),
        ("resident_on", [], "text"),
    ],
)
def test_a_field_of_another_kind_is_named(field: str, value: object, wanted: str) -> None:
    with pytest.raises(BadRecord, match=f"^of VM .*, {field} is no {wanted}$"):
        read_record(Vm, REF, raws.vm("u-1") | {field: value})


@pytest.mark.parametrize("size", ["many", "", "1.5", "9" * 5000, "１２", None, True, 1.5, [1]])
def test_a_size_that_is_no_number_is_named(size: object) -> None:
    with pytest.raises(BadRecord, match="virtual_size is no number"):
        read_record(Vdi, REF, raws.vdi("u-1") | {"virtual_size": size})


@pytest.mark.parametrize("raw", [None, "text", [], 7])
def test_a_record_that_is_no_struct_is_none(raw: object) -> None:
    with pytest.raises(BadRecord, match="a VM record is no struct"):
        read_record(Vm, REF, raw)


def test_what_is_wrong_with_a_long_name_is_said_in_a_short_sentence() -> None:
    with pytest.raises(BadRecord) as caught:
        read_record(Vm, REF, {"uuid": "x" * 1_000_000})

    assert len(str(caught.value)) < 200


def test_long_names_and_errors_are_cut() -> None:
    long = "x" * 1_000_000
    vm = read_record(Vm, REF, raws.vm("u-1", name_label=long, name_description=long))
    errors = [long] * 1000
    task = read_record(Task, REF, raws.task("u-1", result=long, error_info=errors))

    assert max(len(vm.name_label), len(vm.name_description)) < LONGEST_NAME + 50
    assert len(task.error_info) == 16
    assert max(map(len, [task.result, *task.error_info])) < LONGEST + 50


def test_marks_are_never_cut() -> None:
    mark = "x" * 100_000

    assert read_record(
        Vm, REF, raws.vm("u-1", other_config={"xorepd:mark": mark})
    ).other_config == {"xorepd:mark": mark}
