"""XAPI's error lists become our exceptions here, and nowhere else.

XAPI reports a failure as a list: a code and its parameters, such as
`["VDI_IN_USE", "OpaqueRef:…", "destroy"]`. Codes that call for a reaction of their own have a class
of their own; every other one is a `XapiFailure` that keeps code and parameters. What each is
told as is in `explained`.
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

# Session references are credentials: whoever has one is logged in.
_SECRET = re.compile(r"""(session_id["']?\s*[=:]\s*["']?)[^&\s;"']+""", re.IGNORECASE)

_MOST, _LONGEST = 16, 500
"""Parameters of a failure that are kept, and characters of each."""

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
        pool: the pool's name in the configuration, for the message.
        details: code and parameters as XAPI sent them.
        username: who tried to log in, where it was a login.
        names: what the pool's objects are called, for the message.
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
    """Return a text with session references taken out of any URL in it."""
    return _SECRET.sub(r"\1…", text)
