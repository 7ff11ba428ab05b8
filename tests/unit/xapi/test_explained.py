"""Each of XAPI's errors that replication can meet has a sentence, advice and a remedy."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xorepd.errors import Remedy, XapiFailure
from xorepd.xapi.rpc.explained import ERRORS, explain
from xorepd.xapi.rpc.failures import translate

# XAPI's errors that replication can meet, by what becomes of them: `retry`: the same call may be
# repeated later; `state`: somebody has to change something first; `never`: it will always be
# refused; `other`: a reaction of its own. Each with the parameters that XAPI gives.
# Source: xapi: ocaml/idl/datamodel_errors.ml, ocaml/xapi-consts/api_errors.ml.
CODES = """
other SESSION_INVALID: session
never SESSION_AUTHENTICATION_FAILED: uname text
never SESSION_AUTHORIZATION_FAILED: uname text
other HOST_IS_SLAVE: address
retry HOST_STILL_BOOTING:
retry HOST_HAS_NO_MANAGEMENT_IP:
retry HOST_OFFLINE: host
state HOST_DISABLED: host
retry HOST_NOT_LIVE:
retry CANNOT_CONTACT_HOST: host
state NO_HOSTS_AVAILABLE:
state HOST_NOT_ENOUGH_FREE_MEMORY: needed available
other HANDLE_INVALID: class ref
other UUID_INVALID: class uuid
other MAP_DUPLICATE_KEY: type field uuid key
never INVALID_VALUE: field value
never FIELD_TYPE_ERROR: field
never MESSAGE_METHOD_UNKNOWN: method
other MESSAGE_PARAMETER_COUNT_MISMATCH: method expected received
never MESSAGE_REMOVED:
never MESSAGE_DEPRECATED:
other INTERNAL_ERROR: text
never RBAC_PERMISSION_DENIED: permission text
never PERMISSION_DENIED: text
never LICENCE_RESTRICTION: feature
never LICENSE_RESTRICTION: feature
never FEATURE_RESTRICTED: feature
retry NOT_SUPPORTED_DURING_UPGRADE:
other TASK_CANCELLED: task
retry TOO_MANY_PENDING_TASKS:
retry OTHER_OPERATION_IN_PROGRESS: class ref operation task
state OPERATION_NOT_ALLOWED: reason
state OPERATION_BLOCKED: vm reason
other OPERATION_PARTIALLY_FAILED: operation
other EVENTS_LOST:
other EVENT_FROM_TOKEN_PARSE_FAILURE: token
never EVENT_SUBSCRIPTION_PARSE_FAILURE: text
state VM_BAD_POWER_STATE: vm expected actual
never VM_IS_TEMPLATE: vm operation
never VM_IS_SNAPSHOT: vm operation
state VM_LACKS_FEATURE: vm
state VM_HAS_VUSBS: vm
state VM_HAS_PCI_ATTACHED: vm
state VM_IS_IMMOBILE: vm
state VM_IS_PROTECTED: vm
never VM_CANNOT_DELETE_DEFAULT_TEMPLATE: vm
state VM_REQUIRES_SR: vm sr
state VM_REQUIRES_NETWORK: vm network
never VM_BIOS_STRINGS_ALREADY_SET:
never VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED: vm
never VM_TO_IMPORT_IS_NOT_NEWER_VERSION: vm existing new
state SUSPEND_IMAGE_NOT_ACCESSIBLE: vdi
never MEMORY_CONSTRAINT_VIOLATION_ORDER:
never MEMORY_CONSTRAINT_VIOLATION: constraint
state VBD_NOT_UNPLUGGABLE: vbd
state VBD_IS_EMPTY: vbd
state VBD_NOT_EMPTY: vbd
state VBD_NOT_REMOVABLE_MEDIA: vbd
never VBD_CDS_MUST_BE_READONLY:
other DEVICE_ALREADY_ATTACHED: device
other DEVICE_ALREADY_DETACHED: device
other DEVICE_ALREADY_EXISTS: device
other INVALID_DEVICE: device
retry DEVICE_DETACH_REJECTED: type ref text
retry DEVICE_ATTACH_TIMEOUT: type ref
retry DEVICE_DETACH_TIMEOUT: type ref
retry VDI_IN_USE: vdi operation
state VDI_IS_SHARABLE: vdi
state VDI_NOT_MANAGED: vdi
state VDI_READONLY: vdi
state VDI_NOT_AVAILABLE: vdi
other VDI_MISSING: sr vdi
never VDI_TOO_SMALL: vdi limit
never VDI_TOO_LARGE: vdi limit
never VDI_NOT_SPARSE: vdi
retry VDI_IO_ERROR: text
retry VDI_COPY_FAILED:
never VDI_INCOMPATIBLE_TYPE: vdi type
state VDI_NO_CBT_METADATA: vdi
state VDI_CBT_ENABLED: vdi
state VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION:
never VDI_IS_A_PHYSICAL_DEVICE: vdi
never VDI_HAS_RRDS: vdi
retry SR_BACKEND_FAILURE: status stdout stderr
state SR_FULL: requested maximum
state SR_HAS_NO_PBDS: sr
state SR_NOT_ATTACHED: sr
state SR_HAS_PBD: sr
retry SR_UNHEALTHY: sr health advice
never SR_OPERATION_NOT_SUPPORTED: sr
state SR_NOT_EMPTY:
never UNIMPLEMENTED_IN_SM_BACKEND: text
state DEFAULT_SR_NOT_FOUND: sr
never NETWORK_INCOMPATIBLE_PURPOSES: new conflicting
never MAC_INVALID: mac
never DUPLICATE_MAC_SEED: seed
never VTPM_MAX_AMOUNT_REACHED: amount
never IMPORT_ERROR: text
other IMPORT_ERROR_CANNOT_HANDLE_CHUNKED:
other IMPORT_ERROR_PREMATURE_EOF:
other IMPORT_ERROR_SOME_CHECKSUMS_FAILED:
other IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND:
never IMPORT_ERROR_FAILED_TO_FIND_OBJECT: id
never IMPORT_ERROR_UNEXPECTED_FILE: expected found
never IMPORT_INCOMPATIBLE_VERSION:
retry TLS_CONNECTION_FAILED: address port
retry XENAPI_PLUGIN_FAILURE: status stdout stderr
"""

# Numbers of what storage drivers fail with, as SR_BACKEND_FAILURE_<n> ["", text, ""].
# Source: sm: libs/sm/core/XE_SR_ERRORCODES.xml.
DRIVER_FAULTS = (
    *(24, 38, 39, 40, 43, 44, 46, 47, 64, 65, 66, 73, 78, 79, 80, 81, 82, 109, 110, 111, 153),
    *(180, 181, 200, 201, 202, 453, 457, 458, 459, 460, 1200),
)
REPEATABLE_FAULTS = (46, 47, 200, 201)

KNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    code: (fate, tuple(params.split()))
    for fate, code, params in re.findall(r"^(\w+) (\w+):(.*)$", CODES, re.MULTILINE)
} | {
    f"SR_BACKEND_FAILURE_{n}": ("retry" if n in REPEATABLE_FAULTS else "other", ("s", "t", "e"))
    for n in DRIVER_FAULTS
}

REFS = {"ref", "host", "vm", "vdi", "sr", "vbd", "network", "task", "device", "uuid"}
REF = "OpaqueRef:3d6b2b1e-8a4f-4a57-9f3b-{:012x}"


def example(code: str) -> list[str]:
    """Return parameters as XAPI might give them with a code."""
    classes = {"class": "VM", "type": "VDI"}
    return [
        classes.get(name) or (REF.format(i) if name in REFS else f"text {i}")
        for i, name in enumerate(KNOWN[code][1])
    ]


def called(kind: str, ref: str) -> str:
    return f"{kind} web01 (u-{ref[-1]})" if ref.startswith("OpaqueRef:") else ""


def test_every_code_is_in_the_table() -> None:
    assert sorted(KNOWN.keys() - ERRORS.keys()) == []


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_every_row_is_whole(code: str) -> None:
    row = ERRORS[code]
    used = {name for _, name, _, _ in string.Formatter().parse(row.says) if name}

    assert used <= {*row.params.split()}
    assert row.says
    assert row.advice
    assert row.says[0] in string.ascii_lowercase + "{X"
    assert not row.advice.endswith((".", ";"))


@pytest.mark.parametrize("code", sorted(KNOWN))
def test_every_error_becomes_a_sentence_with_advice_and_names(code: str) -> None:
    told = explain(code, example(code), called).text

    sentence, _, advice = told.partition(f" ({code}); ")
    assert sentence
    assert advice
    assert not re.search(r"OpaqueRef|[{}]|\bNone\b", told)
    if any(name in {"vm", "vdi", "sr", "host"} for name in KNOWN[code][1]):
        assert "web01 (u-" in sentence


@pytest.mark.parametrize("code", sorted(KNOWN))
def test_every_error_is_told_without_names_and_without_parameters(code: str) -> None:
    for params in (example(code), example(code)[:1], [], [""] * 5, [*example(code), REF, "more"]):
        told = explain(code, params).text

        assert "OpaqueRef" not in told
        assert "  " not in told
        assert "()" not in told


@pytest.mark.parametrize("code", sorted(KNOWN))
def test_the_remedy_is_that_of_the_error(code: str) -> None:
    fate, _ = KNOWN[code]
    remedies = {
        "retry": {Remedy.RETRY},
        "never": {Remedy.OPERATOR},
        "state": {Remedy.OPERATOR, Remedy.RESYNC},
        "other": {*Remedy},
    }

    assert explain(code, example(code)).remedy in remedies[fate]


def test_no_advice_serves_for_everything() -> None:
    """The same words may be right for a few errors of one kind, and for no more."""
    often = Counter(row.advice for row in ERRORS.values()).most_common(1)[0]

    assert often[1] <= len(ERRORS) // 10, often


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            ["OPERATION_BLOCKED", REF.format(1), "frozen for the audit, ask Jane"],
            ["VM web01 (u-1) is blocked", '"frozen for the audit, ask Jane"', "blocked-operations"],
        ),
        (["OPERATION_BLOCKED", REF.format(1), ""], ["VM web01 (u-1)", "no reason given"]),
        (["VM_HAS_VUSBS", REF.format(1)], ["VM web01 (u-1) has USB devices", "vusb-destroy"]),
        (["SR_HAS_NO_PBDS", REF.format(2)], ["SR web01 (u-2) is attached to no host", "pbd-plug"]),
        (["VM_IS_TEMPLATE", REF.format(1), "snapshot"], ["is a template", "is-a-template=false"]),
        (["SR_OPERATION_NOT_SUPPORTED", REF.format(2)], ["driver of SR web01 (u-2)", "type"]),
        (["HANDLE_INVALID", "VM", REF.format(1)], ["VM web01 (u-1) no longer exists"]),
        (
            ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""],
            ["an SR is full (There is insufficient space)", "make room"],
        ),
        (["SR_BACKEND_FAILURE_77", "", "Odd", ""], ["driver of an SR failed (Odd)", "_77"]),
        (["VM_BAD_POWER_STATE", REF.format(1), "halted", "running"], ["is running", "halted"]),
        (["HOST_NOT_ENOUGH_FREE_MEMORY", "8589934592", "1048576"], ["8.0 GiB", "1.0 MiB"]),
        (["A_CODE_OF_TOMORROW", "x", REF.format(1)], ["A_CODE_OF_TOMORROW (x, object web01"]),
    ],
    ids=lambda each: each[0],
)
def test_advice_is_about_the_very_error(details: list[str], words: list[str]) -> None:
    told = str(translate("dr", details, names=called))

    assert told.startswith("pool dr: ")
    assert [word for word in words if word not in told] == []
    assert "role" not in told


@pytest.mark.parametrize("code", ["RBAC_PERMISSION_DENIED", "PERMISSION_DENIED"])
def test_only_a_refusal_for_the_role_speaks_of_roles(code: str) -> None:
    assert "vm-power-admin" in explain(code, ["pool.join", "no"]).text


def test_what_is_gone_for_certain_and_what_is_only_not_known_are_told_apart() -> None:
    gone = explain("HANDLE_INVALID", ["VDI", REF.format(1)]).text
    strange = explain("VM_IS_TEMPLATE", [REF.format(1), "start"]).text

    assert gone.startswith("a VDI no longer exists")
    assert strange.startswith("a VM that is gone or just made is a template")


def test_a_reference_inside_a_text_becomes_a_name() -> None:
    told = explain("INTERNAL_ERROR", [f'Not_found("VM", "{REF.format(7)}")'], called).text

    assert 'Not_found("VM", "object web01 (u-7)")' in told


def test_a_long_text_of_many_lines_is_one_short_line() -> None:
    told = explain("SR_BACKEND_FAILURE_1200", ["", "Traceback:\n  File\n" * 10_000, ""]).text

    assert "\n" not in told
    assert len(told) < 600


any_param = st.text(max_size=20) | st.builds("{}OpaqueRef:{}{}".format, *[st.text(max_size=5)] * 3)


@settings(deadline=None)
@given(st.sampled_from(sorted(ERRORS)) | st.text(max_size=9), st.lists(any_param, max_size=5))
def test_no_parameters_bring_a_reference_into_a_sentence(code: str, params: list[str]) -> None:
    told = str(translate("dr", [code, *params]))

    assert "opaqueref:" not in told.lower()
    assert "\n" not in told.replace(code, "")


def test_what_a_failure_was_made_of_is_kept_for_programs() -> None:
    failure = translate("dr", ["VM_HAS_VUSBS", REF.format(1)], names=called)

    assert isinstance(failure, XapiFailure)
    assert (failure.code, failure.params) == ("VM_HAS_VUSBS", [REF.format(1)])
