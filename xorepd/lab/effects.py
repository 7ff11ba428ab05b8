"""What a fault can do, one class each, and the moments of a request at which it acts.

    arrive ─► before_work ─► work ─► after_work ─► answer
                              │
                            body: `reach` at each stop, `spoil` on the bytes between, `tail`

Handlers announce the moments and know of no kind of fault. A new kind is a field of
`faults.Fault` and a class here; no handler changes.
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from xorepd.lab import http
from xorepd.lab.failures import ApiError
from xorepd.lab.http import Connection, Disconnected

if TYPE_CHECKING:
    from xorepd.lab.faults import Fault


class EndedEarly(Exception):
    """The fault ends the body here, in good order."""


class Effect:
    """One thing that a fault does when its field of that name is set."""

    field: ClassVar[str]
    tells: ClassVar[str]
    """What it does, for people."""

    async def arrive(self, fault: "Fault", connection: Connection) -> None:
        """Act when the request has been read and nothing was done."""

    async def before_work(self, fault: "Fault") -> None:
        """Act when the work would begin."""

    async def after_work(self, fault: "Fault") -> None:
        """Act when the work is done and nobody was told."""

    def stops(self, fault: "Fault") -> Iterable[int]:
        """Return the offsets of a body at which `reach` is to be called."""
        return ()

    async def reach(self, fault: "Fault", offset: int, connection: Connection) -> None:
        """Act when so many bytes of a body went through."""

    def spoil(self, fault: "Fault", offset: int, data: bytes) -> bytes:
        """Return what goes out instead of these bytes."""
        return data

    def head(self, fault: "Fault", data: bytes) -> bytes:
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

    async def arrive(self, fault: "Fault", connection: Connection) -> None:
        fault.outcome = "reset"
        connection.cut()
        raise Disconnected


@effect
class HttpStatus(Effect):
    field = "http_status"
    tells = "answer with this HTTP status and an HTML page, before anything is done"

    async def arrive(self, fault: "Fault", connection: Connection) -> None:
        fault.outcome = str(fault.http_status)
        if fault.http_status == 500:
            page = http.internal_error_page("made to fail")
        else:
            page = http.error_page(f"{fault.http_status} Made to fail", "<h1>made to fail</h1>")
        await connection.send(page)
        await connection.close()
        raise Disconnected


@effect
class Delay(Effect):
    field = "delay_s"
    tells = "wait so many seconds before the work"

    async def before_work(self, fault: "Fault") -> None:
        await asyncio.sleep(fault.delay_s)


@effect
class Stall(Effect):
    field = "stall"
    tells = "wait, `before` or `after` the work, or at `stall_at` of the body, until released"

    async def before_work(self, fault: "Fault") -> None:
        if fault.moment == "before" and not fault.stall_at:
            await fault.wait()

    async def after_work(self, fault: "Fault") -> None:
        if fault.moment == "after" and not fault.stall_at:
            await fault.wait()

    def stops(self, fault: "Fault") -> Iterable[int]:
        return (fault.stall_at,) if fault.stall_at else ()

    async def reach(self, fault: "Fault", offset: int, connection: Connection) -> None:
        if offset and offset == fault.stall_at:
            await fault.wait()


@effect
class EndlessTask(Effect):
    field = "task_never_ends"
    tells = (
        "leave the task pending for ever: with the work done, or not done when there is an error;"
        " a call without a task waits until released"
    )

    async def before_work(self, fault: "Fault") -> None:
        if fault.hold_task is None:
            await fault.wait()
        else:
            fault.hold_task()


@effect
class Happening(Effect):
    field = "incident"
    tells = "let an incident happen: `before` or `after` the work, or at `incident_at` of the body"

    async def before_work(self, fault: "Fault") -> None:
        if fault.moment == "before" and fault.incident_at is None:
            await fault.happen()

    async def after_work(self, fault: "Fault") -> None:
        if fault.moment == "after" and fault.incident_at is None:
            await fault.happen()

    def stops(self, fault: "Fault") -> Iterable[int]:
        return () if fault.incident_at is None else (fault.incident_at,)

    async def reach(self, fault: "Fault", offset: int, connection: Connection) -> None:
        if offset == fault.incident_at:
            await fault.happen()


@effect
class Failure(Effect):
    field = "error"
    tells = (
        "fail with this error: instead of the work, `after` it was done, or at `error_at` of the"
        " body; a stream has said 200 before"
    )

    async def before_work(self, fault: "Fault") -> None:
        if fault.moment == "before" and fault.error_at is None:
            raise ApiError(*fault.error)

    async def after_work(self, fault: "Fault") -> None:
        if fault.moment == "after" and fault.error_at is None:
            raise ApiError(*fault.error)

    def stops(self, fault: "Fault") -> Iterable[int]:
        return () if fault.error_at is None else (fault.error_at,)

    async def reach(self, fault: "Fault", offset: int, connection: Connection) -> None:
        if offset == fault.error_at:
            raise ApiError(*fault.error)


@effect
class Cut(Effect):
    field = "cut_at"
    tells = "cut the connection after so many bytes of the body, in either direction"

    def stops(self, fault: "Fault") -> Iterable[int]:
        return () if fault.cut_at is None else (fault.cut_at,)

    async def reach(self, fault: "Fault", offset: int, connection: Connection) -> None:
        if offset == fault.cut_at:
            connection.cut()
            raise Disconnected


@effect
class End(Effect):
    field = "end_at"
    tells = "end what we send after so many bytes, in good order; a stream's task fails"

    def stops(self, fault: "Fault") -> Iterable[int]:
        return () if fault.end_at is None else (fault.end_at,)

    async def reach(self, fault: "Fault", offset: int, connection: Connection) -> None:
        if offset == fault.end_at:
            raise EndedEarly


@effect
class Flip(Effect):
    field = "flip_at"
    tells = "invert the byte at this offset of what we send"

    def spoil(self, fault: "Fault", offset: int, data: bytes) -> bytes:
        if fault.flip_at is None or not offset <= fault.flip_at < offset + len(data):
            return data
        changed = bytearray(data)
        changed[fault.flip_at - offset] ^= 0xFF
        return bytes(changed)


@effect
class WrongLength(Effect):
    field = "length_off"
    tells = "say a Content-Length that is off by so many bytes, in an answer to a call"

    def head(self, fault: "Fault", data: bytes) -> bytes:
        lines = data.split(b"\r\n")
        for number, line in enumerate(lines):
            name, colon, value = line.partition(b":")
            if colon and name.lower() == b"content-length":
                said = max(0, int(value) + fault.length_off)
                lines[number] = b"%b: %d" % (name, said)
        return b"\r\n".join(lines)


@effect
class Append(Effect):
    field = "append"
    tells = "so many more zero bytes after the end of what we send"


@effect
class Slow(Effect):
    field = "bytes_per_s"
    tells = "let a body pass at this rate"


@effect
class DropResponse(Effect):
    field = "drop_response"
    tells = "do it all, and cut the connection instead of answering"
