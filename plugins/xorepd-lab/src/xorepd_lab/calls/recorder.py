"""What clients asked for, in order: the list that tests read."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST = 200_000
"""Where the older half of the list is dropped, for labs that run for days."""
SHOWN = {
    "session.login_with_password": 1,
    "session.slave_local_login_with_password": 1,
    "session.change_password": 0,
}
"""How many arguments are kept of calls with passwords."""


class Caller(NamedTuple):
    """Who asks: a session and what it called itself at login. Both empty for a stranger."""

    session: str = ""
    originator: str = ""


NOBODY = Caller()


@dataclass(slots=True)
class OutsideCall:
    """One request. `outcome` is "" while it runs, then "ok" or an error code."""

    number: int
    pool: str
    host: str
    """Name of the host that got it."""
    kind: str
    """`rpc`, `export`, `import` or `nbd`."""
    name: str
    """`VM.snapshot`, `Async.VM.snapshot`; for streams the format; for NBD `connect` or `read`."""
    arguments: tuple[Any, ...] = ()
    """As sent, without the session; for streams the query, without it."""
    outcome: str = ""
    session: str = ""
    originator: str = ""
    """Of the session, as it was when the request came: tells two clients apart."""
    moved: int = 0
    """Bytes of a stream's body that went through."""


@dataclass
class Recorder:
    calls: list[OutsideCall] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def note(
        self,
        pool: str,
        host: str,
        kind: str,
        name: str,
        arguments: tuple[Any, ...],
        caller: Caller = NOBODY,
    ) -> OutsideCall:
        arguments = arguments[: SHOWN.get(name)]
        call = OutsideCall(next(self._numbers), pool, host, kind, name, arguments, "", *caller)
        self.calls.append(call)
        if len(self.calls) > MOST:
            del self.calls[: MOST // 2]
        return call

    def since(self, number: int) -> list[OutsideCall]:
        """Return the calls from that number on; `len` of an earlier list is none."""
        return [call for call in self.calls if call.number >= number]
