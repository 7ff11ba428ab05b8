"""The one place that turns XAPI's error lists into our exceptions.

XAPI reports a failure as a list: a code and its parameters, such as
`["VDI_IN_USE", "OpaqueRef:…", "destroy"]`. Codes that need a reaction of
their own have their own class; all others become an `XapiFailure` with code and parameters. Their
messages are in `explained`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from xorepd.errors import (
    LoginRefused,
    NotAllowed,
    NotMaster,
    ObjectBusy,
    ObjectGone,
    SessionLost,
    XapiError,
    XapiFailure,
    shortened,
)
from xorepd.xapi.rpc.explained import Names, explain, nameless

# Session references are credentials.
_SECRET = re.compile(r"""(session_id["']?\s*[=:]\s*["']?)[^&\s;"']+""", re.IGNORECASE)

_MOST, _LONGEST = 16, 500
"""Most parameters of a failure, and most characters of each."""

_NOT_FOUND = re.compile(r"\bVDI (?:(?P<vdi>\S+) )?(?:was )?not found\b", re.IGNORECASE)
"""What the drivers of SRs say in a failure 46, "the VDI is not available", when there is none."""
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_BUSY = {
    "VDI_IN_USE",
    "OTHER_OPERATION_IN_PROGRESS",
    "SR_BACKEND_FAILURE_47",
    "SR_BACKEND_FAILURE_200",
    "SR_BACKEND_FAILURE_201",
    "TOO_MANY_PENDING_TASKS",
    "HOST_STILL_BOOTING",
    "DEVICE_DETACH_REJECTED",
    "DEVICE_DETACH_TIMEOUT",
}
_NOT_ALLOWED = {
    "RBAC_PERMISSION_DENIED",
    "PERMISSION_DENIED",
    "LICENCE_RESTRICTION",
    "LICENSE_RESTRICTION",
    "FEATURE_RESTRICTED",
    "OPERATION_BLOCKED",
    "OPERATION_NOT_ALLOWED",
    "VM_IS_TEMPLATE",
    "VM_IS_SNAPSHOT",
    "VDI_IS_SHARABLE",
    "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION",
}


def translate(
    pool: str, details: Sequence[object], *, username: str = "", names: Names = nameless
) -> XapiError:
    """Return the exception for one of XAPI's error lists.

    Args:
        pool: Configured name of the pool, for the message.
        details: Code and parameters as XAPI sent them.
        username: The account, if the call was a login.
        names: Names of the pool's objects, for the message.
    """
    texts = [shortened(redact(str(item)), _LONGEST) for item in details[:_MOST]]
    code, *params = texts or ["UNKNOWN"]
    first, second = [*params, "", ""][:2]
    told = explain(code, params, names)
    match code:
        case "SESSION_INVALID" | "SESSION_NOT_REGISTERED":
            return SessionLost(pool)
        case "HANDLE_INVALID" if first.lower() == "session":
            return SessionLost(pool)
        case "HOST_IS_SLAVE":
            return NotMaster(pool, first)
        case "SESSION_AUTHENTICATION_FAILED" | "SESSION_AUTHORIZATION_FAILED":
            has_role = code != "SESSION_AUTHORIZATION_FAILED"
            return LoginRefused(pool, username or first, second or code, has_role=has_role)
        case "HANDLE_INVALID" | "UUID_INVALID":
            return ObjectGone(pool, first, second, said=told.text)
        case "VDI_MISSING":
            return ObjectGone(pool, "VDI", second or first, said=told.text)
        case "VDI_IN_USE":
            operation = second or "attached"
            told = explain(code, [first, operation], names)
            return ObjectBusy(pool, "VDI", first, operation, said=told.text)
        case "OTHER_OPERATION_IN_PROGRESS":
            operation = params[2] if len(params) > 2 else code
            return ObjectBusy(pool, first, second, operation, said=told.text)
        case "SR_BACKEND_FAILURE_46" if gone := _NOT_FOUND.search(second):
            return ObjectGone(pool, "VDI", gone["vdi"] or first)
        case "SR_BACKEND_FAILURE_46":
            return ObjectBusy(pool, "VDI", _named(second), f"{code} {second}".strip())
        case _ if code in _BUSY:
            return ObjectBusy(pool, "object", first, f"{code} {second}".strip(), said=told.text)
        case _ if code in _NOT_ALLOWED:
            return NotAllowed(pool, code, params, said=told.text, remedy=told.remedy)
        case _:
            return XapiFailure(pool, code, params, said=told.text, remedy=told.remedy)


def _named(text: str) -> str:
    """Return the UUID in a text of a driver, or a word for it."""
    found = _UUID.search(text)
    return found[0] if found else "on that SR"


def redact(text: str) -> str:
    """Remove the session references from all URLs in a text."""
    return _SECRET.sub(r"\1…", text)
