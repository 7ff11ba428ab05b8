"""Limit the connections that have not authenticated yet, for each address and in all.

A new connection is always accepted. If no slot is free, it replaces the oldest one: of its own
address if that uses its share, else of all. A handshake takes only a moment, so it replaces the
silent ones.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

AT_ONCE = 64
OF_ADDRESS = 8
"""Several, because daemons behind one router have one address."""


class Threshold:
    """The current handshakes, the oldest first."""

    def __init__(self, at_once: int = AT_ONCE, of_address: int = OF_ADDRESS) -> None:
        self._at_once, self._of_address = at_once, of_address
        self._there: dict[asyncio.Task[object], str] = {}

    def __len__(self) -> int:
        return len(self._there)

    @contextmanager
    def at(self, host: str) -> Iterator[None]:
        """Hold a slot for the calling task; a later connection may cancel the task."""
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
    """Return the network of one owner: an IPv6 owner has 2^64 addresses and more."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, 64), strict=False))
