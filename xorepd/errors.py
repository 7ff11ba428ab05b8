"""Every exception that xorepd raises, each with what its reader should do about it.

    XorepdError                    .remedy
     ├─ ConfigError                OPERATOR   file, key, value, reason, hint
     │   └─ ConfigErrors           OPERATOR   several of them, each in a line
     ├─ XapiError
     │   ├─ XapiUnreachable        RECONNECT  wraps the cause
     │   ├─ SessionLost            RECONNECT
     │   ├─ NotMaster              RECONNECT  master
     │   ├─ LoginRefused           OPERATOR
     │   ├─ PasswordUnusable       OPERATOR   wraps the cause
     │   ├─ CertificateRefused     OPERATOR
     │   ├─ ObjectGone             RESYNC     kind, ref
     │   ├─ ObjectBusy             RETRY      kind, ref, operation
     │   ├─ ContentChanged         RETRY      uuid
     │   ├─ NotAllowed             by code    code, params
     │   └─ XapiFailure            by code    code, params: any code not named above
     ├─ Refused                    OPERATOR   preflight found a reason not to start
     │   ├─ ConsentMissing         OPERATOR   whole disks would be sent, without consent
     │   └─ WrittenTo              RETRY      something wrote to a disk of ours during the run
     ├─ Frozen                     OPERATOR   source and replica are at odds about who is current
     ├─ LeaseHeld                  RETRY      another daemon replicates this VM to this SR
     ├─ LeaseLost                  RETRY      a run may write no more
     ├─ HookFailed                OPERATOR   command, reason
     ├─ DataError
     │   ├─ StreamCut              RETRY      the stream ended early
     │   ├─ ProtocolViolation      RETRY      the stream is not what it claims to be
     │   │   └─ AddressFailed      RETRY      nothing that can be used answers at an address
     │   ├─ TransferFailed         by code    the pool says that the transfer failed
     │   │   └─ NotServed          by code    the pool does not know this kind of request
     │   ├─ OutcomeUnknown         RETRY      the pool does not say how the transfer ended
     │   ├─ TransportFailed        RETRY      a transport did not do what it promises
     │   └─ DigestMismatch         RETRY      what arrived is not what was sent
     ├─ StateError                 OPERATOR   the history database cannot be used
     ├─ ControlError               OPERATOR   a request on the control socket was refused
     └─ InternalError              OPERATOR   a bug in xorepd

A message is one sentence that names the object and the next thing to try. It never holds a secret:
session references and URLs that carry them are credentials.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

LONGEST = 2000
"""Most characters of a message, which goes to the log, the history and the control socket."""


class Remedy(Enum):
    """What to do about an error: set where it is raised, followed where it is handled."""

    RETRY = "retry"
    """The same work may succeed later, unchanged."""
    RECONNECT = "reconnect"
    """Reconnect, then as RETRY."""
    RESYNC = "resync"
    """Our knowledge of the pool is out of date: read it again and plan again."""
    OPERATOR = "operator"
    """An operator must change something first."""


_REFERENCE = re.compile(r"OpaqueRef(?::|%3A)[\w.-]*", re.IGNORECASE)


def without_references(text: str) -> str:
    """Return a text without XAPI references: they help no reader, and some are credentials."""
    return _REFERENCE.sub("…", text)


def _details(code: str, params: list[str]) -> str:
    """Return an XAPI error for people: its code and parameters."""
    said = ", ".join(param for param in params if param)
    return f"{code} ({said})" if said else code


LONGEST_REPLY = 64 * 1024
"""Most characters of an error on the control socket: all mistakes of a configuration fit."""


def shortened(text: str, most: int = LONGEST) -> str:
    """Return a text, or its beginning and its length: a pool or a name may be very long."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


class XorepdError(Exception):
    """Base of all errors that xorepd raises on purpose; its text is shortened if needed."""

    remedy: Remedy = Remedy.OPERATOR

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))

    def __str__(self) -> str:
        return without_references(super().__str__())


class ConfigError(XorepdError):
    """The configuration is invalid; nothing of it has taken effect."""

    def __init__(
        self, file: Path, key: str, reason: str, *, value: object = None, hint: str = ""
    ) -> None:
        self.file, self.key, self.reason, self.value, self.hint = file, key, reason, value, hint
        shown = f" = {value!r}" if value is not None else ""
        where = f"{file}: {key}{shown}" if key else str(file)
        super().__init__(f"{where}: {reason}" + (f"; {hint}" if hint else ""))


class ConfigErrors(ConfigError):
    """Several mistakes in a configuration; the attributes describe the first."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.file, first.key, first.reason, value=first.value, hint=first.hint)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


def refuse(errors: Sequence[ConfigError]) -> None:
    """Raise the mistakes of a configuration, if there are any.

    Raises:
        ConfigError: all mistakes.
    """
    distinct = list({str(error): error for error in errors}.values())
    if len(distinct) > 1:
        raise ConfigErrors(distinct)
    for error in distinct:
        raise error


class XapiError(XorepdError):
    """An error between us and the XAPI of a pool."""


class XapiUnreachable(XapiError):
    """A pool does not answer: refused, reset, timed out, or not HTTP."""

    remedy = Remedy.RECONNECT

    def __init__(self, pool: str, address: str, reason: str) -> None:
        self.pool, self.address, self.reason = pool, address, reason
        super().__init__(
            f"pool {pool}: no answer from {address} ({reason}); "
            "check the address, the network and whether the toolstack runs"
        )


class SessionLost(XapiError):
    """The pool no longer knows our session (restart, expiry, logout)."""

    remedy = Remedy.RECONNECT

    def __init__(self, pool: str) -> None:
        self.pool = pool
        super().__init__(f"pool {pool}: the session was lost; the next call opens a new one")


class NotMaster(XapiError):
    """The host is not the pool master; `master` is the address that it names."""

    remedy = Remedy.RECONNECT

    def __init__(self, pool: str, master: str) -> None:
        self.pool, self.master = pool, master
        super().__init__(f"pool {pool}: the pool master is now {master}")


class LoginRefused(XapiError):
    """User name or password is wrong, or the user has no role."""

    def __init__(self, pool: str, username: str, detail: str, *, has_role: bool = True) -> None:
        self.pool, self.username = pool, username
        advice = "check username and password of this pool in the configuration"
        if not has_role:
            advice = "give that account the role vm-power-admin on that pool"
        super().__init__(f"pool {pool}: login of {username!r} was refused ({detail}); {advice}")


class PasswordUnusable(XapiError):
    """The password cannot be read any more: its file has changed since the check."""

    def __init__(self, pool: str, cause: ConfigError) -> None:
        self.pool, self.cause = pool, cause
        super().__init__(f"pool {pool}: no login: {cause}")


class CertificateRefused(XapiError):
    """The configuration does not trust the TLS certificate of the pool."""

    def __init__(self, pool: str, address: str, reason: str) -> None:
        self.pool, self.address = pool, address
        super().__init__(
            f"pool {pool}: the certificate of {address} is not trusted ({reason}); "
            "set ca_file or fingerprint of this pool to match it"
        )


class ObjectGone(XapiError):
    """An object was destroyed, or never existed."""

    remedy = Remedy.RESYNC

    def __init__(self, pool: str, kind: str, ref: str, *, said: str = "") -> None:
        self.pool, self.kind, self.ref = pool, kind, ref
        super().__init__(f"pool {pool}: {said or f'{kind} {ref} no longer exists'}")


class ObjectBusy(XapiError):
    """An object is in use or in the middle of another operation."""

    remedy = Remedy.RETRY

    def __init__(self, pool: str, kind: str, ref: str, operation: str, *, said: str = "") -> None:
        self.pool, self.kind, self.ref, self.operation = pool, kind, ref, operation
        said = said or (
            f"{kind} {ref} is in use ({operation}); "
            "the next run tries again; if that persists, find out what uses it"
        )
        super().__init__(f"pool {pool}: {said}")


class ContentChanged(XapiError):
    """A disk was attached or written to after the run had looked at it. It was not destroyed."""

    remedy = Remedy.RETRY

    def __init__(self, pool: str, uuid: str) -> None:
        self.pool, self.uuid = pool, uuid
        super().__init__(
            f"pool {pool}: VDI {uuid} was attached or written to after the run had looked at it, "
            "so it was not destroyed; the next run looks again"
        )


class NotAllowed(XapiError):
    """The pool does not allow a call: role, licence or blocked operation."""

    def __init__(
        self,
        pool: str,
        code: str,
        params: list[str],
        *,
        said: str = "",
        remedy: Remedy = Remedy.OPERATOR,
    ) -> None:
        self.pool, self.code, self.params, self.remedy = pool, code, params, remedy
        super().__init__(f"pool {pool}: {said or f'refused with {_details(code, params)}'}")


class XapiFailure(XapiError):
    """Any other failure that XAPI reports."""

    def __init__(
        self,
        pool: str,
        code: str,
        params: list[str],
        *,
        said: str = "",
        remedy: Remedy = Remedy.OPERATOR,
    ) -> None:
        self.pool, self.code, self.params, self.remedy = pool, code, params, remedy
        super().__init__(f"pool {pool}: {said or f'XAPI failed with {_details(code, params)}'}")


class Refused(XorepdError):
    """A run was not started, or stopped before its commit, for the reason in the message."""


class ConsentMissing(Refused):
    """A run would send whole disks and needs the consent of an operator. Nothing else is wrong."""


class WrittenTo(Refused):
    """A disk of ours was written to while a run used it."""

    remedy = Remedy.RETRY

    def __init__(self, pool: str, what: str, uuid: str) -> None:
        self.pool, self.what, self.uuid = pool, what, uuid
        super().__init__(
            f"pool {pool}: {what} ({uuid}) was written to while the run used it, so nothing was "
            "committed; find out what has it attached. The next run starts over"
        )


class Frozen(XorepdError):
    """Source and replica disagree about which of them is current: nothing was started."""

    remedy = Remedy.OPERATOR


class LeaseHeld(XorepdError):
    """Another daemon holds the lease on this VM and SR: nothing was started."""

    remedy = Remedy.RETRY

    def __init__(self, what: str, holder: str, until: str) -> None:
        self.what, self.holder, self.until = what, holder, until
        super().__init__(
            f"{what} is held by the xorepd on {holder} until {until} by the clock of the target "
            "pool; let one of the two daemons run the job, the other takes over when that one ends"
        )


class LeaseLost(XorepdError):
    """A run could not renew its lease, or another daemon holds it now."""

    remedy = Remedy.RETRY

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(
            f"the lease on {what} is lost ({reason}); the run has stopped, and the next one "
            "cleans up"
        )


class HookFailed(XorepdError):
    """A hook, a program of the operator that runs around a snapshot, has failed."""

    def __init__(self, command: str, reason: str) -> None:
        self.command, self.reason = command, reason
        super().__init__(f"hook {command} failed: {reason}; run it by hand to see why")


class DataError(XorepdError):
    """An error in the transfer of a disk."""

    remedy = Remedy.RETRY


class StreamCut(DataError):
    """A stream ended before the size that its header announces."""

    def __init__(self, what: str, received: int, expected: int | None = None) -> None:
        self.what, self.received, self.expected = what, received, expected
        of = f" of {expected}" if expected is not None else ""
        super().__init__(f"{what}: the stream ended after {received}{of} bytes")


class ProtocolViolation(DataError):
    """A stream contradicts itself or the format it claims to have."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what}: {reason}")


class AddressFailed(ProtocolViolation):
    """A server does not answer, or not usably; other requests to it will fail as well."""


class TransferFailed(DataError):
    """The pool reports that our import or export has failed."""

    def __init__(
        self,
        what: str,
        code: str,
        params: list[str],
        *,
        said: str = "",
        remedy: Remedy = Remedy.RETRY,
    ) -> None:
        self.what, self.code, self.params, self.remedy = what, code, params, remedy
        super().__init__(f"{what}: {said or f'XAPI failed with {_details(code, params)}'}")


class NotServed(TransferFailed):
    """The pool does not support the request: 404, its answer to an unknown format."""


class OutcomeUnknown(DataError):
    """It is unknown whether our import or export has succeeded: it counts as failed."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what}: the result is unknown ({reason})")


class TransportFailed(DataError):
    """A transport broke its contract: a fault of its package, or of something that it needs."""

    def __init__(self, transport: str, reason: str) -> None:
        self.transport, self.reason = transport, reason
        super().__init__(
            f"transport {transport} failed ({reason}); "
            "report it to the author of its package, or use direct meanwhile"
        )


class DigestMismatch(DataError):
    """The data read back from the target differs from the data read from the source."""

    def __init__(self, what: str, expected: str, found: str) -> None:
        self.what, self.expected, self.found = what, expected, found
        super().__init__(
            f"{what}: the data on the target differs from what was sent "
            f"(digest {found}, expected {expected}); the restore point is discarded"
        )


class StateError(XorepdError):
    """The state directory or its database is unusable."""


class ControlError(XorepdError):
    """A request on the control socket was refused; `status` is the HTTP status that says so."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        self.status = status
        super().__init__()
        self.args = (shortened(message, LONGEST_REPLY),)


class InternalError(XorepdError):
    """A bug in xorepd: the log has the traceback."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(
            f"internal error, {type(cause).__name__}: {cause}; "
            "please report it with the traceback in the daemon's log"
        )
