"""Connections that have not shown yet who they are: a few places for each address, some in all.

Whoever comes always gets a place. Where none is left it is that of the one who has been there
longest: of its own address, if that has its share, else of all. A handshake takes a moment, so it
is those who say nothing that go.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

AT_ONCE = 64
OF_ADDRESS = 8
"""Daemons behind one router have one address."""


class Threshold:
    """Who is there, the first come first."""

    def __init__(self, at_once: int = AT_ONCE, of_address: int = OF_ADDRESS) -> None:
        self._at_once, self._of_address = at_once, of_address
        self._there: dict[asyncio.Task[object], str] = {}

    def __len__(self) -> int:
        return len(self._there)

    @contextmanager
    def at(self, host: str) -> Iterator[None]:
        """Hold a place for the task that calls this; it may be cancelled by who comes later."""
        task = asyncio.current_task()
        assert task is not None
        name = _neighbours(host)
        alike = [other for other, where in self._there.items() if where == name]
        if len(alike) >= self._of_address:
            self._turn_out(alike[0])
        elif len(self._there) >= self._at_once:
            self._turn_out(next(iter(self._there)))
        self._there[task] = name
        try:
            yield
        finally:
            self._there.pop(task, None)

    def _turn_out(self, task: asyncio.Task[object]) -> None:
        del self._there[task]
        task.cancel()


def _neighbours(host: str) -> str:
    """Return what stands for all addresses of one owner: of IPv6 he has 2^64 and more."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, 64), strict=False))
