from __future__ import annotations

from typing import Any

import pytest

from tests.unit.xapi import raws
from xorepd.xapi.events import parse_batch
from xorepd.xapi.records import Vm


def event(operation: str, kind: str, ref: str, snapshot: object = None) -> dict[str, Any]:
    found = {"class": kind, "ref": ref, "operation": operation, "id": "1", "timestamp": "0.0"}
    return found if snapshot is None else found | {"snapshot": snapshot}


def answer(*events: dict[str, Any], **counts: int | str) -> dict[str, Any]:
    return {"events": list(events), "valid_ref_counts": counts, "token": "5,6"}


def test_additions_and_changes_become_records() -> None:
    found = parse_batch(
        answer(
            event("add", "vm", "OpaqueRef:1", raws.vm("u-1")),
            event("mod", "vm", "OpaqueRef:2", raws.vm("u-2")),
        ),
        is_first=False,
    )

    assert [(type(each), each.ref, each.uuid) for each in found.changed] == [
        (Vm, "OpaqueRef:1", "u-1"),
        (Vm, "OpaqueRef:2", "u-2"),
    ]
    assert found.token == "5,6"


def test_deletions_are_named_by_class_and_reference() -> None:
    found = parse_batch(answer(event("del", "vdi", "OpaqueRef:1")), is_first=False)

    assert found.deleted == (("vdi", "OpaqueRef:1"),)
    assert found.changed == ()


def test_change_without_a_record_is_a_deletion() -> None:
    found = parse_batch(answer(event("mod", "vm", "OpaqueRef:1")), is_first=False)

    assert found.deleted == (("vm", "OpaqueRef:1"),)


def test_deletion_with_its_last_record_is_a_deletion() -> None:
    found = parse_batch(answer(event("del", "vm", "OpaqueRef:1", raws.vm("u"))), is_first=False)

    assert (found.changed, found.deleted) == ((), (("vm", "OpaqueRef:1"),))


def test_class_is_known_in_any_case_of_letters() -> None:
    found = parse_batch(
        answer(event("add", "VM", "OpaqueRef:1", raws.vm("u")), event("del", "VDI", "OpaqueRef:2")),
        is_first=False,
    )

    assert isinstance(found.changed[0], Vm)
    assert found.deleted == (("vdi", "OpaqueRef:2"),)


def test_class_that_we_do_not_keep_is_passed_over() -> None:
    found = parse_batch(answer(event("add", "vtpm", "OpaqueRef:1", {})), is_first=False)

    assert (found.changed, found.deleted) == ((), ())


def test_counts_are_numbers_by_lower_case_class() -> None:
    assert parse_batch(answer(VM="3", vdi=4), is_first=False).counts == {"vm": 3, "vdi": 4}


def test_answer_without_counts_is_understood() -> None:
    assert parse_batch({"events": [], "token": ""}, is_first=False).counts == {}


@pytest.mark.parametrize("is_first", [True, False])
def test_batch_says_whether_it_is_the_first(is_first: bool) -> None:
    assert parse_batch(answer(), is_first=is_first).is_first is is_first
