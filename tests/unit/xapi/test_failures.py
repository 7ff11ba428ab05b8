from __future__ import annotations

import pytest

from xorepd.errors import (
    LoginRefused,
    NotAllowed,
    NotMaster,
    ObjectBusy,
    ObjectGone,
    Remedy,
    SessionLost,
    XapiError,
    XapiFailure,
)
from xorepd.xapi.rpc.failures import redact, translate

SECRET = "OpaqueRef:5ec2e7aa-0000-4000-8000-5e5510000000"
VDI = "OpaqueRef:0d15c000-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (["SESSION_INVALID", SECRET], SessionLost),
        (["HOST_IS_SLAVE", "10.0.0.2"], NotMaster),
        (["SESSION_AUTHENTICATION_FAILED", "root", "bad"], LoginRefused),
        (["SESSION_AUTHORIZATION_FAILED", "bob", "no role"], LoginRefused),
        (["HANDLE_INVALID", "VDI", VDI], ObjectGone),
        (["UUID_INVALID", "VM", "u-1"], ObjectGone),
        (["VDI_MISSING", "OpaqueRef:sr", VDI], ObjectGone),
        (["VDI_IN_USE", VDI, "destroy"], ObjectBusy),
        (["OTHER_OPERATION_IN_PROGRESS", "VDI", VDI, "clone"], ObjectBusy),
        (["SR_BACKEND_FAILURE_46", "", "The VDI is not available", ""], ObjectBusy),
        (["TOO_MANY_PENDING_TASKS"], ObjectBusy),
        (["RBAC_PERMISSION_DENIED", "pool.join", "no"], NotAllowed),
        (["OPERATION_BLOCKED", "OpaqueRef:vm", "start"], NotAllowed),
        (["LICENCE_RESTRICTION", "Feature"], NotAllowed),
        (["SR_FULL", "1", "2"], XapiFailure),
        (["INTERNAL_ERROR", "Not_found"], XapiFailure),
        (["A_CODE_OF_TOMORROW"], XapiFailure),
        ([], XapiFailure),
    ],
)
def test_code_becomes_the_error_that_calls_for_its_reaction(
    details: list[str], expected: type[XapiError]
) -> None:
    assert type(translate("prod", details)) is expected


DISK = "0d15c000-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    "text",
    [
        f"The VDI is not available [opterr=VDI {DISK} not found]",
        f"The VDI is not available [opterr=vdi {DISK} not found]",
        f"The VDI is not available [opterr=VDI {DISK} was not found on the SR]",
    ],
)
def test_a_disk_that_its_storage_does_not_find_is_gone(text: str) -> None:
    failure = translate("prod", ["SR_BACKEND_FAILURE_46", "", text, ""])

    assert isinstance(failure, ObjectGone)
    assert (failure.kind, failure.ref) == ("VDI", DISK)
    assert str(failure) == f"pool prod: VDI {DISK} no longer exists"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"The VDI is not available [opterr=VDI {DISK} not detached cleanly]", f"VDI {DISK} is"),
        (f"The VDI is not available [opterr=VDI {DISK} already attached RW]", f"VDI {DISK} is"),
        ("The VDI is not available [opterr=the lock was not found]", "VDI on that SR is in use"),
        ("The VDI is not available", "VDI on that SR is in use"),
        ("", "VDI on that SR is in use"),
    ],
)
def test_a_disk_that_its_storage_finds_busy_is_in_use(text: str, named: str) -> None:
    failure = translate("prod", ["SR_BACKEND_FAILURE_46", "", text, ""])

    assert isinstance(failure, ObjectBusy)
    assert named in str(failure)
    assert text in str(failure)


def test_a_failure_46_without_parameters_is_in_use() -> None:
    assert isinstance(translate("prod", ["SR_BACKEND_FAILURE_46"]), ObjectBusy)


def test_any_other_failure_keeps_code_and_parameters() -> None:
    failure = translate("prod", ["SR_FULL", "100", 200])

    assert isinstance(failure, XapiFailure)
    assert (failure.pool, failure.code, failure.params) == ("prod", "SR_FULL", ["100", "200"])
    assert failure.remedy is Remedy.OPERATOR


def test_new_master_is_the_one_that_the_member_named() -> None:
    failure = translate("prod", ["HOST_IS_SLAVE", "10.0.0.2"])

    assert isinstance(failure, NotMaster)
    assert failure.master == "10.0.0.2"


def test_gone_object_is_named() -> None:
    failure = translate("prod", ["HANDLE_INVALID", "VDI", VDI])

    assert isinstance(failure, ObjectGone)
    assert (failure.kind, failure.ref) == ("VDI", VDI)


def test_busy_object_is_named_with_what_holds_it() -> None:
    failure = translate("prod", ["OTHER_OPERATION_IN_PROGRESS", "VDI", VDI, "clone"])

    assert isinstance(failure, ObjectBusy)
    assert (failure.kind, failure.ref, failure.operation) == ("VDI", VDI, "clone")


def test_busy_object_without_an_operation_still_reads_well() -> None:
    assert "VDI 0d15 is in use (attached)" in str(translate("prod", ["VDI_IN_USE", "0d15"]))


def test_refused_login_names_the_user_who_tried() -> None:
    failure = translate("prod", ["SESSION_AUTHENTICATION_FAILED"], username="repl")

    assert isinstance(failure, LoginRefused)
    assert failure.username == "repl"


def test_failure_without_parameters_is_understood() -> None:
    for code in ("HANDLE_INVALID", "VDI_IN_USE", "HOST_IS_SLAVE", "VDI_MISSING"):
        assert isinstance(translate("prod", [code]), XapiError)


@pytest.mark.parametrize(
    "details",
    [
        ["SESSION_INVALID", SECRET],
        ["SESSION_NOT_REGISTERED", SECRET],
        ["HANDLE_INVALID", "session", SECRET],
        ["INTERNAL_ERROR", f"GET /export_raw_vdi?session_id={SECRET}&vdi=1 failed"],
        ["INTERNAL_ERROR", f"Cookie: session_id={SECRET}; path=/"],
        ["INTERNAL_ERROR", f"/import_raw_vdi?vdi=1&session_id={SECRET.replace(':', '%3A')}"],
        ["INTERNAL_ERROR", f"nbd://10.0.0.1:10809/u-1?session_id={SECRET}"],
        ["VDI_IO_ERROR", "x", f"https://h/?SESSION_ID={SECRET}"],
        ["INTERNAL_ERROR", f'{{"session_id": "{SECRET}"}}'],
    ],
)
def test_session_references_never_appear_in_messages(details: list[str]) -> None:
    failure = translate("prod", details)

    shown = str(failure) + repr(failure) + repr(vars(failure))
    assert SECRET.removeprefix("OpaqueRef:") not in shown


def test_rest_of_a_text_stays_when_a_session_is_taken_out() -> None:
    text = f"GET /export_raw_vdi?session_id={SECRET}&vdi=1&format=vhd: 500"

    assert redact(text) == "GET /export_raw_vdi?session_id=…&vdi=1&format=vhd: 500"


def test_text_without_a_session_is_left_alone() -> None:
    assert redact(f"VDI {VDI}: no session") == f"VDI {VDI}: no session"
