"""What a fault can do, one class each, and the moments of a request at which it acts.

    arrive ─► before_work ─► work ─► after_work ─► answer
                              │
                            body: `reach` at each stop, `spoil` on the bytes between, `tail`

Handlers announce the moments and know of no kind of fault. A new kind is a field of
`faults.Fault` and a class here; no handler changes.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, Protocol

from xorepd_lab.model.failures import ApiError
from xorepd_lab.wire import http
from xorepd_lab.wire.http import Connection, Disconnected


class EndedEarly(Exception):
    """The fault ends the body here, in good order."""


class Fault(Protocol):
    """What an effect knows of the fault that met a request: the fields that tell it where and when.

    They are those of `faults.Fault`.
    """

    error: tuple[str, ...]
    delay_s: float
    stall_at: int
    cut_at: int | None
    end_at: int | None
    flip_at: int | None
    moment: Literal["before", "after"]
    error_at: int | None
    error_pad: int
    http_status: int | None
    length_off: int
    rewrite: tuple[str, str] | None
    incident_at: int | None
    outcome: str
    hold_task: Callable[[], None] | None

    async def wait(self) -> None: ...
    async def happen(self) -> None: ...


class Effect:
    """One thing that a fault does when its field of that name is set."""

    field: ClassVar[str]
    tells: ClassVar[str]
    """What it does, for people."""

    async def arrive(self, fault: Fault, connection: Connection) -> None:
        """Act when the request has been read and nothing was done."""

    async def before_work(self, fault: Fault) -> None:
        """Act when the work would begin."""

    async def after_work(self, fault: Fault) -> None:
        """Act when the work is done and nobody was told."""

    def stops(self, fault: Fault) -> Iterable[int]:
        """Return the offsets of a body at which `reach` is to be called."""
        return ()

    async def reach(self, fault: Fault, offset: int, connection: Connection) -> None:
        """Act when so many bytes of a body went through."""

    def spoil(self, fault: Fault, offset: int, data: bytes) -> bytes:
        """Return what goes out instead of these bytes."""
        return data

    def answer(self, fault: Fault, response: bytes) -> bytes:
        """Return what goes out instead of the whole answer to a call."""
        return response

    def head(self, fault: Fault, data: bytes) -> bytes:
        """Return what goes out instead of the header of an answer."""
        return data


EFFECTS: dict[str, Effect] = {}
"""By the field of `Fault` that switches it on, in the order in which they act."""


def effect(declared: type[Effect]) -> type[Effect]:
    """Make a kind of fault known."""
    EFFECTS[declared.field] = declared()
    return declared


@effect
class Reset(Effect):
    field = "reset"
    tells = "cut the connection before anything is done"

    async def arrive(self, fault: Fault, connection: Connection) -> None:
        fault.outcome = "reset"
        connection.cut()
        raise Disconnected


@effect
class HttpStatus(Effect):
    field = "http_status"
    tells = (
        "answer with this HTTP status, 200 included, and an HTML page: before anything is done, or"
        " `after` the work of a call"
    )

    async def arrive(self, fault: Fault, connection: Connection) -> None:
        if fault.moment == "after":
            return
        fault.outcome = str(fault.http_status)
        await connection.send(self._page(fault))
        await connection.close()
        raise Disconnected

    def answer(self, fault: Fault, response: bytes) -> bytes:
        return self._page(fault) if fault.moment == "after" else response

    @staticmethod
    def _page(fault: Fault) -> bytes:
        if fault.http_status == 500:
            return http.internal_error_page("made to fail")
        return http.error_page(f"{fault.http_status} Made to fail", "<h1>made to fail</h1>")


@effect
class Delay(Effect):
    field = "delay_s"
    tells = "wait so many seconds before the work"

    async def before_work(self, fault: Fault) -> None:
        await asyncio.sleep(fault.delay_s)


@effect
class Stall(Effect):
    field = "stall"
    tells = "wait, `before` or `after` the work, or at `stall_at` of the body, until released"

    async def before_work(self, fault: Fault) -> None:
        if fault.moment == "before" and not fault.stall_at:
            await fault.wait()

    async def after_work(self, fault: Fault) -> None:
        if fault.moment == "after" and not fault.stall_at:
            await fault.wait()

    def stops(self, fault: Fault) -> Iterable[int]:
        return (fault.stall_at,) if fault.stall_at else ()

    async def reach(self, fault: Fault, offset: int, connection: Connection) -> None:
        if offset and offset == fault.stall_at:
            await fault.wait()


@effect
class EndlessTask(Effect):
    field = "task_never_ends"
    tells = (
        "leave the task pending: with the work done, or not done when there is an error;"
        " a call without a task waits until released"
    )

    async def before_work(self, fault: Fault) -> None:
        if fault.hold_task is None:
            await fault.wait()
        else:
            fault.hold_task()


@effect
class Happening(Effect):
    field = "incident"
    tells = "let an incident happen: `before` or `after` the work, or at `incident_at` of the body"

    async def before_work(self, fault: Fault) -> None:
        if fault.moment == "before" and fault.incident_at is None:
            await fault.happen()

    async def after_work(self, fault: Fault) -> None:
        if fault.moment == "after" and fault.incident_at is None:
            await fault.happen()

    def stops(self, fault: Fault) -> Iterable[int]:
        return () if fault.incident_at is None else (fault.incident_at,)

    async def reach(self, fault: Fault, offset: int, connection: Connection) -> None:
        if offset == fault.incident_at:
            await fault.happen()


@effect
class Failure(Effect):
    field = "error"
    tells = (
        "fail with this error: instead of the work, `after` it was done, or at `error_at` of the"
        " body; a stream has said 200 before"
    )

    async def before_work(self, fault: Fault) -> None:
        if fault.moment == "before" and fault.error_at is None:
            raise self._error(fault)

    async def after_work(self, fault: Fault) -> None:
        if fault.moment == "after" and fault.error_at is None:
            raise self._error(fault)

    def stops(self, fault: Fault) -> Iterable[int]:
        return () if fault.error_at is None else (fault.error_at,)

    async def reach(self, fault: Fault, offset: int, connection: Connection) -> None:
        if offset == fault.error_at:
            raise self._error(fault)

    @staticmethod
    def _error(fault: Fault) -> ApiError:
        code, *parameters = fault.error
        if fault.error_pad:
            last = parameters.pop() if parameters else ""
            parameters.append(last + "x" * fault.error_pad)
        return ApiError(code, *parameters)


@effect
class Cut(Effect):
    field = "cut_at"
    tells = "cut the connection after so many bytes of the body, in either direction"

    def stops(self, fault: Fault) -> Iterable[int]:
        return () if fault.cut_at is None else (fault.cut_at,)

    async def reach(self, fault: Fault, offset: int, connection: Connection) -> None:
        if offset == fault.cut_at:
            connection.cut()
            raise Disconnected


@effect
class End(Effect):
    field = "end_at"
    tells = "end what we send after so many bytes, in good order; a stream's task fails"

    def stops(self, fault: Fault) -> Iterable[int]:
        return () if fault.end_at is None else (fault.end_at,)

    async def reach(self, fault: Fault, offset: int, connection: Connection) -> None:
        if offset == fault.end_at:
            raise EndedEarly


@effect
class Flip(Effect):
    field = "flip_at"
    tells = "invert the byte at this offset of what we send"

    def spoil(self, fault: Fault, offset: int, data: bytes) -> bytes:
        if fault.flip_at is None or not offset <= fault.flip_at < offset + len(data):
            return data
        changed = bytearray(data)
        changed[fault.flip_at - offset] ^= 0xFF
        return bytes(changed)


def rewritten(rewrite: tuple[str, str], data: bytes) -> bytes:
    """Return data with what a pattern matches replaced."""
    pattern, replacement = rewrite
    return re.sub(pattern.encode(), replacement.encode(), data, flags=re.DOTALL)


@effect
class Rewrite(Effect):
    field = "rewrite"
    tells = "replace what a pattern matches in the answer to a call, whose length then fits"

    def answer(self, fault: Fault, response: bytes) -> bytes:
        if fault.rewrite is None:
            return response
        head, blank, body = response.partition(b"\r\n\r\n")
        changed = rewritten(fault.rewrite, body)
        return (
            _with_length(head, lambda length: length + len(changed) - len(body)) + blank + changed
        )


@effect
class WrongLength(Effect):
    field = "length_off"
    tells = "say a Content-Length that is off by so many bytes, in an answer to a call"

    def head(self, fault: Fault, data: bytes) -> bytes:
        return _with_length(data, lambda length: max(0, length + fault.length_off))


def _with_length(head: bytes, change: Callable[[int], int | None]) -> bytes:
    """Return a header with another Content-Length, or without one."""
    lines = []
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not (colon and name.lower() == b"content-length"):
            lines.append(line)
        elif (length := change(int(value))) is not None:
            lines.append(b"%b: %d" % (name, length))
    return b"\r\n".join(lines)


@effect
class Append(Effect):
    field = "append"
    tells = "so many more zero bytes after the end of what we send"


@effect
class Endless(Effect):
    field = "endless"
    tells = "never end what we send: no Content-Length, and blanks for as long as the client reads"

    def head(self, fault: Fault, data: bytes) -> bytes:
        return _with_length(data, lambda length: None)


@effect
class Slow(Effect):
    field = "bytes_per_s"
    tells = "let a body pass at this rate"


@effect
class DropResponse(Effect):
    field = "drop_response"
    tells = "do it all, and cut the connection instead of answering"
