from __future__ import annotations

import inspect
import traceback
from pathlib import Path

import pytest

from xorepd import errors
from xorepd.errors import (
    AddressFailed,
    CertificateRefused,
    ConfigError,
    ConfigErrors,
    ConsentMissing,
    ContentChanged,
    ControlError,
    DataError,
    DigestMismatch,
    Frozen,
    HookFailed,
    InternalError,
    LeaseHeld,
    LeaseLost,
    LoginRefused,
    NotAllowed,
    NotMaster,
    NotServed,
    ObjectBusy,
    ObjectGone,
    OutcomeUnknown,
    PasswordUnusable,
    ProtocolViolation,
    Refused,
    Remedy,
    SessionLost,
    StateError,
    StreamCut,
    TransferFailed,
    TransportFailed,
    WrittenTo,
    XapiFailure,
    XapiUnreachable,
    XorepdError,
)

REF = "OpaqueRef:3d6b2b1e-8a4f-4a57-9f3b-6c1f4d2e7a90"
FILE = Path("/etc/xorepd/xorepd.toml")

EXAMPLES: list[tuple[XorepdError, Remedy, list[str]]] = [
    (ConfigError(FILE, "jobs.web", "no such pool"), Remedy.OPERATOR, ["jobs.web", "no such pool"]),
    (
        ConfigErrors([ConfigError(FILE, "jobs.web", "no such pool"), ConfigError(FILE, "x", "y")]),
        Remedy.OPERATOR,
        ["jobs.web: no such pool\n", "x: y"],
    ),
    (XapiUnreachable("prod", "10.0.0.1", "refused"), Remedy.RECONNECT, ["prod", "10.0.0.1"]),
    (SessionLost("prod"), Remedy.RECONNECT, ["prod"]),
    (NotMaster("prod", "10.0.0.2"), Remedy.RECONNECT, ["prod", "10.0.0.2"]),
    (LoginRefused("prod", "root", "bad"), Remedy.OPERATOR, ["prod", "'root'", "password"]),
    (
        PasswordUnusable("prod", ConfigError(FILE, "pools.prod.password_file", "is empty")),
        Remedy.OPERATOR,
        ["pool prod", "pools.prod.password_file", "is empty"],
    ),
    (CertificateRefused("prod", "h", "expired"), Remedy.OPERATOR, ["prod", "h", "fingerprint"]),
    (ObjectGone("prod", "VDI", "0d15"), Remedy.RESYNC, ["prod", "VDI 0d15 no longer exists"]),
    (
        ContentChanged("prod", "0d15"),
        Remedy.RETRY,
        ["prod", "VDI 0d15", "the next run looks again"],
    ),
    (ObjectBusy("prod", "VDI", "0d15", "clone"), Remedy.RETRY, ["prod", "VDI 0d15", "clone"]),
    (NotAllowed("prod", "LICENCE_RESTRICTION", ["x"]), Remedy.OPERATOR, ["prod", "x", "LICENCE"]),
    (XapiFailure("prod", "SR_FULL", ["1", "2"]), Remedy.OPERATOR, ["prod", "SR_FULL", "1, 2"]),
    (Refused("VM web01: gone"), Remedy.OPERATOR, ["VM web01: gone"]),
    (ConsentMissing("VM web01: disk 0"), Remedy.OPERATOR, ["VM web01: disk 0"]),
    (
        WrittenTo("dr", "staging disk root", "0d15"),
        Remedy.RETRY,
        ["pool dr", "staging disk root (0d15)", "attached"],
    ),
    (Frozen("VM web01: the replica is active"), Remedy.OPERATOR, ["VM web01", "active"]),
    (StreamCut("disk 0", 10, 20), Remedy.RETRY, ["disk 0", "10 of 20 bytes"]),
    (StreamCut("disk 0", 10), Remedy.RETRY, ["disk 0", "after 10 bytes"]),
    (AddressFailed("disk 0", "no greeting"), Remedy.RETRY, ["disk 0", "no greeting"]),
    (ProtocolViolation("disk 0", "no VHD"), Remedy.RETRY, ["disk 0", "no VHD"]),
    (NotServed("disk 0", "HTTP status 404", []), Remedy.RETRY, ["disk 0", "404"]),
    (TransferFailed("disk 0", "IO", ["a"]), Remedy.RETRY, ["disk 0", "IO", "(a)"]),
    (OutcomeUnknown("disk 0", "task gone"), Remedy.RETRY, ["disk 0", "unknown (task gone)"]),
    (DigestMismatch("disk 0", "aa", "bb"), Remedy.RETRY, ["disk 0", "aa", "bb", "discarded"]),
    (TransportFailed("slow", "lost it"), Remedy.RETRY, ["transport slow", "lost it", "report"]),
    (StateError("locked"), Remedy.OPERATOR, ["locked"]),
    (ControlError("no such job", status=404), Remedy.OPERATOR, ["no such job"]),
    (
        LeaseHeld("replication of VM web01", "backup2", "2026-11-23 12:00:00 UTC"),
        Remedy.RETRY,
        ["VM web01", "backup2", "takes over"],
    ),
    (
        LeaseLost("replication of VM web01", "it could not be renewed in time"),
        Remedy.RETRY,
        ["VM web01", "could not be renewed", "cleans up"],
    ),
    (
        HookFailed("/usr/local/bin/freeze", "it ended with status 1: database is down"),
        Remedy.OPERATOR,
        ["/usr/local/bin/freeze", "database is down", "by hand"],
    ),
    (InternalError(KeyError("x")), Remedy.OPERATOR, ["KeyError: 'x'", "please report it"]),
]


@pytest.mark.parametrize(
    ("error", "remedy", "texts"), EXAMPLES, ids=[type(each[0]).__name__ for each in EXAMPLES]
)
def test_error_has_its_remedy_and_names_its_object(
    error: XorepdError, remedy: Remedy, texts: list[str]
) -> None:
    message = str(error)

    assert error.remedy is remedy
    assert all(text in message for text in texts), message


@pytest.mark.parametrize(
    "error",
    [
        ObjectGone("prod", "VDI", REF),
        ObjectBusy("prod", "VDI", REF, f"clone of {REF}"),
        NotAllowed("prod", "OPERATION_BLOCKED", [REF, f"see {REF.lower()}"]),
        XapiFailure("prod", "INTERNAL_ERROR", [f"missing row {REF!r}"]),
        TransferFailed("disk 0", "VDI_IO_ERROR", [REF.replace(":", "%3A")]),
        Refused(f"VM {REF}: gone"),
        InternalError(KeyError(REF)),
        XorepdError("OpaqueRef:NULL"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_error_shows_a_reference(error: XorepdError) -> None:
    said = str(error) + "".join(traceback.format_exception_only(error))

    assert "opaqueref" not in said.lower()
    assert "e7a90" not in said


def test_every_error_has_an_example_here() -> None:
    shown = {cls for error, _, _ in EXAMPLES for cls in type(error).__mro__}
    classes = [
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, XorepdError)
    ]

    assert set(classes) <= shown


def test_every_error_is_drawn_in_the_tree() -> None:
    drawn = errors.__doc__ or ""

    assert all(cls.__name__ in drawn for error, _, _ in EXAMPLES for cls in [type(error)])


def test_error_of_the_configuration_shows_value_and_hint() -> None:
    error = ConfigError(FILE, "jobs.web.keep", "too small", value=0, hint="at least 1")

    assert str(error) == f"{FILE}: jobs.web.keep = 0: too small; at least 1"


def test_error_of_the_whole_configuration_file_names_the_file_only() -> None:
    assert str(ConfigError(FILE, "", "no such file")) == f"{FILE}: no such file"


def test_errors_of_data_are_told_from_errors_of_xapi() -> None:
    assert issubclass(TransferFailed, DataError)
    assert not issubclass(TransferFailed, errors.XapiError)


def test_control_error_keeps_its_http_status() -> None:
    assert ControlError("gone", status=410).status == 410
    assert ControlError("bad").status == 400
