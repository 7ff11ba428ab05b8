"""What goes wrong on demand: rules that the server consults, so that no handler knows of any.

A rule names the calls it is for, lets the first `skip` of them pass and meets the next `times`.
It says what happens: an error, a cut connection, a body that is shorter, longer or other than it
should be, a lost answer, a wait.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from xorepd.lab.failures import ApiError

Where = Literal["rpc", "inner", "export", "import"]


@dataclass(eq=False)
class Fault:
    """One rule and its count.

    `inner` are calls that the toolstack makes for another one, such as each disk's VDI.snapshot in
    a VM.snapshot. Offsets count bytes of the body. For calls only `error`, `reset`,
    `drop_response`, `delay_s` and `stall` mean something.
    """

    where: Where
    match: str = "*"
    """Glob over the method's name (without `Async.`), or over the format of a stream."""
    pool: str | None = None
    host: str | None = None
    """Name of the host that got the request."""
    skip: int = 0
    times: int | None = 1
    """None: for ever."""

    error: tuple[str, ...] = ()
    """Code and parameters. A stream says 200 first and fails as if its attach had."""
    reset: bool = False
    """Cut the connection before anything is done."""
    drop_response: bool = False
    """Do it all and cut the connection instead of answering."""
    delay_s: float = 0.0
    stall: bool = False
    """Wait, before the work or at `stall_at` of the body, until `release()`."""
    stall_at: int = 0
    cut_at: int | None = None
    """Cut the connection after so many bytes of the body, in either direction."""
    end_at: int | None = None
    """Export: end the body there with an orderly close, and fail the task."""
    flip_at: int | None = None
    """Export: invert the byte at this offset."""
    append: int = 0
    """Export: so many more zero bytes after the end."""
    bytes_per_s: float | None = None

    seen: int = 0
    fired: int = 0
    stalled: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set when somebody waits in this fault."""
    released: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def release(self) -> None:
        self.released.set()

    def fits(self, where: Where, name: str, pool: str, host: str) -> bool:
        return (
            self.where == where
            and fnmatchcase(name, self.match)
            and self.pool in (None, pool)
            and self.host in (None, host)
        )

    async def wait(self) -> None:
        self.stalled.set()
        await self.released.wait()

    async def before_work(self) -> None:
        """Wait and fail as told, at the moment when a call's work would begin."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.stall and not self.stall_at:
            await self.wait()
        if self.error:
            raise ApiError(*self.error)


class Faults:
    """The rules in force, oldest first; the first that fires wins."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._rules))

    def add(self, fault: Fault) -> Fault:
        self._rules.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all rules; who waits in one goes on."""
        for fault in self._rules:
            fault.release()
        self._rules.clear()

    def pick(self, where: Where, name: str, pool: str, host: str) -> Fault | None:
        """Count a request and return the fault that meets it."""
        for fault in self._rules:
            if not fault.fits(where, name, pool, host):
                continue
            fault.seen += 1
            spent = fault.times is not None and fault.fired >= fault.times
            if fault.seen > fault.skip and not spent:
                fault.fired += 1
                return fault
        return None
