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
     │   ├─ NotAllowed             by code    code, params
     │   └─ XapiFailure            by code    code, params: any code not named above
     ├─ Refused                    OPERATOR   preflight found a reason not to start
     │   ├─ ConsentMissing         OPERATOR   disks would be sent whole, and nobody has let them
     │   └─ WrittenTo              RETRY      something wrote to a disk of ours during the run
     ├─ Frozen                     OPERATOR   source and replica are at odds about who is current
     ├─ LeaseHeld                  RETRY      another daemon replicates this VM to this SR
     ├─ LeaseLost                  RETRY      a run may write no more
     ├─ HookFailed                OPERATOR   command, reason
     ├─ DataError
     │   ├─ StreamCut              RETRY      the stream ended before its end
     │   ├─ ProtocolViolation      RETRY      the stream is not what it claims to be
     │   │   └─ AddressFailed      RETRY      nothing that can be used answers at an address
     │   ├─ TransferFailed         by code    the pool says that the transfer failed
     │   │   └─ NotServed          by code    the pool does not know this kind of request
     │   ├─ OutcomeUnknown         RETRY      the pool does not say how the transfer ended
     │   ├─ TransportFailed        RETRY      a transport did not do what it promises
     │   └─ DigestMismatch         RETRY      what arrived is not what was sent
     ├─ StateError                 OPERATOR   the history database cannot be used
     ├─ ControlError               OPERATOR   a request on the control socket was refused
     └─ InternalError              OPERATOR   a fault of xorepd itself

A message is one sentence that names the object and the next thing to try. It never holds a secret:
session references and URLs that carry them are credentials.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

LONGEST = 2000
"""Characters of a message: it goes to the log, the history and the control socket."""


class Remedy(Enum):
    """What to do about an error, decided where it is understood and obeyed where it is handled."""

    RETRY = "retry"
    """The same work may succeed later, unchanged."""
    RECONNECT = "reconnect"
    """Open the connection anew, then as RETRY."""
    RESYNC = "resync"
    """What we believed about the pool is out of date: read it again and plan anew."""
    OPERATOR = "operator"
    """A person has to change something first."""


_REFERENCE = re.compile(r"OpaqueRef(?::|%3A)[\w.-]*", re.IGNORECASE)


def without_references(text: str) -> str:
    """Return a text without XAPI's references: they tell nobody anything, and some log in."""
    return _REFERENCE.sub("…", text)


def _details(code: str, params: list[str]) -> str:
    """Return a XAPI error for people: its code, and what it says besides."""
    said = ", ".join(param for param in params if param)
    return f"{code} ({said})" if said else code


LONGEST_REPLY = 64 * 1024
"""Characters of a refusal on the control socket: all that is wrong with a configuration fits."""


def shortened(text: str, most: int = LONGEST) -> str:
    """Return a text, or its beginning and how long it is: others may write what they like in it."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


class XorepdError(Exception):
    """Base of everything that xorepd raises on purpose; its text is never long."""

    remedy: Remedy = Remedy.OPERATOR

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))

    def __str__(self) -> str:
        return without_references(super().__str__())


class ConfigError(XorepdError):
    """The configuration cannot be used; nothing of it has taken effect."""

    def __init__(
        self, file: Path, key: str, reason: str, *, value: object = None, hint: str = ""
    ) -> None:
        self.file, self.key, self.reason, self.value, self.hint = file, key, reason, value, hint
        shown = f" = {value!r}" if value is not None else ""
        where = f"{file}: {key}{shown}" if key else str(file)
        super().__init__(f"{where}: {reason}" + (f"; {hint}" if hint else ""))


class ConfigErrors(ConfigError):
    """Several things are wrong with a configuration; the first is in the attributes of one."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.file, first.key, first.reason, value=first.value, hint=first.hint)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


def refuse(errors: Sequence[ConfigError]) -> None:
    """Raise what is wrong with a configuration, if anything is.

    Raises:
        ConfigError: all of it.
    """
    distinct = list({str(error): error for error in errors}.values())
    if len(distinct) > 1:
        raise ConfigErrors(distinct)
    for error in distinct:
        raise error


class XapiError(XorepdError):
    """Something between us and a pool's XAPI."""


class XapiUnreachable(XapiError):
    """No answer from a pool: refused, reset, timed out, or not HTTP."""

    remedy = Remedy.RECONNECT

    def __init__(self, pool: str, address: str, reason: str) -> None:
        self.pool, self.address, self.reason = pool, address, reason
        super().__init__(
            f"pool {pool}: no answer from {address} ({reason}); "
            "check the address, the network and that the toolstack runs"
        )


class SessionLost(XapiError):
    """The pool no longer knows our session (restart, expiry, logout)."""

    remedy = Remedy.RECONNECT

    def __init__(self, pool: str) -> None:
        self.pool = pool
        super().__init__(f"pool {pool}: the session was lost; it is renewed at the next call")


class NotMaster(XapiError):
    """We spoke to a member; `master` is the address it named."""

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
            advice = "give that account the role vm-power-admin there"
        super().__init__(f"pool {pool}: login of {username!r} was refused ({detail}); {advice}")


class PasswordUnusable(XapiError):
    """There is no password to log in with: its file has gone bad since it was checked."""

    def __init__(self, pool: str, cause: ConfigError) -> None:
        self.pool, self.cause = pool, cause
        super().__init__(f"pool {pool}: no login: {cause}")


class CertificateRefused(XapiError):
    """The pool's TLS certificate is not the one that the configuration trusts."""

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
            "the next run tries again, look for what holds it if that persists"
        )
        super().__init__(f"pool {pool}: {said}")


class NotAllowed(XapiError):
    """The pool refuses on principle: role, licence, blocked operation."""

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
    """Any other failure, as XAPI reports it."""

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
    """A run was not started, or was given up before its commit, for the reason in the message."""


class ConsentMissing(Refused):
    """A run would send disks whole and must not, until somebody lets it. Nothing else is wrong."""


class WrittenTo(Refused):
    """Something wrote to a disk of ours while a run worked with it."""

    remedy = Remedy.RETRY

    def __init__(self, pool: str, what: str, uuid: str) -> None:
        self.pool, self.what, self.uuid = pool, what, uuid
        super().__init__(
            f"pool {pool}: {what} ({uuid}) was written to while the run used it, so nothing was "
            "committed; find out what has it attached, the next run begins anew"
        )


class Frozen(XorepdError):
    """Source and replica disagree about which of them is active: nothing was started."""

    remedy = Remedy.OPERATOR


class LeaseHeld(XorepdError):
    """Another daemon replicates this VM to this SR: nothing was started."""

    remedy = Remedy.RETRY

    def __init__(self, what: str, holder: str, until: str) -> None:
        self.what, self.holder, self.until = what, holder, until
        super().__init__(
            f"{what} is held by the xorepd on {holder} until {until} by the clock of the target "
            "pool; let one of the two daemons run the job, the other takes over when that one ends"
        )


class LeaseLost(XorepdError):
    """A run could not keep the right to write, or somebody else has it now."""

    remedy = Remedy.RETRY

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(
            f"{what} is not ours to write any more ({reason}); the run has stopped, and the next "
            "one of whoever holds it cleans up"
        )


class HookFailed(XorepdError):
    """A program of the operator's that runs beside a snapshot."""

    def __init__(self, command: str, reason: str) -> None:
        self.command, self.reason = command, reason
        super().__init__(f"hook {command} failed: {reason}; run it by hand to see why")


class DataError(XorepdError):
    """Something went wrong with the bytes of a disk."""

    remedy = Remedy.RETRY


class StreamCut(DataError):
    """A stream ended before the end that its own header announces."""

    def __init__(self, what: str, received: int, expected: int | None = None) -> None:
        self.what, self.received, self.expected = what, received, expected
        of = f" of {expected}" if expected is not None else ""
        super().__init__(f"{what}: the stream was cut after {received}{of} bytes")


class ProtocolViolation(DataError):
    """A stream contradicts itself or the format it claims to have."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what}: {reason}")


class AddressFailed(ProtocolViolation):
    """What answers at an address, if anything, cannot be used: whatever else is asked there."""


class TransferFailed(DataError):
    """The pool reports that an import or export of ours failed."""

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
    """The pool does not know this kind of request: 404, which it answers to a strange format."""


class OutcomeUnknown(DataError):
    """Nobody can say whether an import or export of ours succeeded: it counts as failed."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what}: how it ended is unknown ({reason})")


class TransportFailed(DataError):
    """A transport did not do what it promises: a fault in its package, or in what it needs."""

    def __init__(self, transport: str, reason: str) -> None:
        self.transport, self.reason = transport, reason
        super().__init__(
            f"transport {transport} failed ({reason}); "
            "report it to whoever made its package, or use direct meanwhile"
        )


class DigestMismatch(DataError):
    """What was read back from the target differs from what was read from the source."""

    def __init__(self, what: str, expected: str, found: str) -> None:
        self.what, self.expected, self.found = what, expected, found
        super().__init__(
            f"{what}: read back from the target it differs from what was sent "
            f"(digest {found}, expected {expected}); this point is discarded"
        )


class StateError(XorepdError):
    """The state directory or its database cannot be used."""


class ControlError(XorepdError):
    """A request on the control socket was refused; `status` is the HTTP status that says so."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        self.status = status
        super().__init__()
        self.args = (shortened(message, LONGEST_REPLY),)


class InternalError(XorepdError):
    """A fault of ours: the log has the traceback."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(
            f"internal error, {type(cause).__name__}: {cause}; "
            "please report it with the traceback in the daemon's log"
        )
