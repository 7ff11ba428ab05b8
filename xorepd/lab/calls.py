"""What clients asked for, in order: the list that tests read."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MOST = 200_000
"""Where the older half of the list is dropped, for labs that run for days."""
SECRET = {"session.login_with_password", "session.change_password"}


@dataclass(slots=True)
class OutsideCall:
    """One request. `outcome` is "" while it runs, then "ok" or an error code."""

    number: int
    pool: str
    host: str
    """Name of the host that got it."""
    kind: str
    """`rpc`, `export` or `import`."""
    name: str
    """`VM.snapshot`, `Async.VM.snapshot`; for streams the format."""
    arguments: tuple[Any, ...] = ()
    """As sent, without the session; for streams the query, without it."""
    outcome: str = ""


@dataclass
class Recorder:
    calls: list[OutsideCall] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def note(
        self, pool: str, host: str, kind: str, name: str, arguments: tuple[Any, ...]
    ) -> OutsideCall:
        if name in SECRET:
            arguments = arguments[:1]
        call = OutsideCall(next(self._numbers), pool, host, kind, name, arguments)
        self.calls.append(call)
        if len(self.calls) > MOST:
            del self.calls[: MOST // 2]
        return call
