"""No reference of XAPI's reaches the history, or those who ask the daemon."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from tests.unit.parts import record
from xorepd.control.protocol import (
    ErrorReply,
    ForgetPlanReply,
    ForgetReply,
    HistoryReply,
    OrphanReply,
    OrphansReply,
)
from xorepd.state.records import DiskRecord, RunRecord

REF = "OpaqueRef:3d6b2b1e-8a4f-4a57-9f3b-6c1f4d2e7a90"


def test_a_record_says_no_reference_however_it_came_to_be() -> None:
    disk = DiskRecord("0", "root", 1, "full", f"of {REF}", reader_reason=f"{REF} is busy")
    plain = record().to_json() | {"error": f"{REF} is gone"}

    told = [
        record(error=f"VM {REF} is gone", disks=(disk,), base_data_reason=f"kept for {REF}"),
        replace(record(), error=REF),
        RunRecord.from_json(plain),
    ]

    assert "OpaqueRef" not in json.dumps([each.to_json() for each in told])
    assert told[0].error == "VM … is gone"
    assert "OpaqueRef" not in HistoryReply(records=tuple(told)).model_dump_json()


def test_names_stay_as_they_are() -> None:
    assert record(vm_name="OpaqueRef:1").vm_name == "OpaqueRef:1"


def test_no_answer_says_a_reference() -> None:
    orphan = OrphanReply(
        pool="dr",
        sr="a",
        replica="",
        name="web01",
        vm="",
        job="web",
        points=1,
        newest_point_at=None,
        signs_of_use=(f"was written to through {REF}",),
    )
    replies = [
        ErrorReply(error=f"{REF} is gone"),
        ForgetReply(step=f"destroy {REF}", error=f"{REF} is busy"),
        ForgetPlanReply(orphan=orphan, actions=(f"destroy {REF}",), objections=(REF,)),
        OrphansReply(orphans=(orphan,), not_asked={"dr": f"{REF} is gone"}),
    ]

    assert all("OpaqueRef" not in reply.model_dump_json() for reply in replies)


def test_an_answer_without_its_sentence_is_none() -> None:
    with pytest.raises(ValidationError):
        ErrorReply.model_validate({})
