"""A loop whose clock jumps to the next timer: seconds take no time, however busy the machine is.

For work without sockets and threads: it is not waited for.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting, moves the clock on by as long as it would have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def steered(work: Coroutine[Any, Any, None]) -> None:
    """Run something in such a loop."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(work)
