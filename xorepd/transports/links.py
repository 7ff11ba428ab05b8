"""Links: rate limits that the transports of a daemon share, and that an operator can change.

The first transport that names a link creates it, and the others join it. Its terms come from the
configuration. A rate that the operator sets takes precedence until the next reload.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class LinkState:
    """The state of a link, for people."""

    rate_bytes_per_s: float
    """The current limit; infinite if there is none."""
    reason: str
    """What sets the limit: `configuration`, `command`, or a period of a timetable."""
    active_disks: int
    """Disks in transfer over the link."""
    sent_bytes: int
    """Bytes sent since the daemon's start."""


class Link(Protocol):
    """A rate limit."""

    terms: Any
    """The configured terms, comparable; None if there are none."""

    def renew(self, terms: Any) -> None:
        """Apply new terms, and drop the rate that the operator has set."""

    def set_rate(self, rate: float | None) -> None:
        """Set the rate in bytes per second; None restores the configured one."""

    def state(self) -> LinkState: ...


L = TypeVar("L", bound=Link)


class Links:
    """The links of a daemon, or of a configuration that is being checked; for any thread.

    Args:
        strict: Refuse different terms for one link, as in the check of a configuration. Later, a
            run under an older configuration may still bring its terms; they are ignored then.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._links: dict[str, Link] = {}
        self._lock = threading.Lock()

    def share(self, name: str, make: Callable[[], L]) -> L:
        """Return the link of that name; create it at the first call.

        Raises:
            ValueError: it has other terms elsewhere, or belongs to another kind of transport.
        """
        offered = make()
        with self._lock:
            link = self._links.setdefault(name, offered)
            if not isinstance(link, type(offered)):
                raise ValueError(f"link {name} belongs to another transport; choose another name")
            if offered.terms is not None and link.terms != offered.terms:
                if link.terms is None:
                    link.renew(offered.terms)
                elif self._strict:
                    raise ValueError(
                        f"{name} is set up differently in another job; "
                        "write the same in both, or name two links"
                    )
            return link

    def adopt(self, checked: Links) -> None:
        """Put the links of a new configuration in force; links that stay keep their transfers."""
        with self._lock:
            for name, link in checked._links.items():
                mine = self._links.get(name)
                if mine is None or type(mine) is not type(link):
                    self._links[name] = link
                else:
                    mine.renew(link.terms)
            for name in self._links.keys() - checked._links.keys():
                del self._links[name]

    def states(self) -> dict[str, LinkState]:
        """Return the state of all links, by name."""
        with self._lock:
            return {name: link.state() for name, link in sorted(self._links.items())}

    def set_rate(self, name: str, rate: float | None) -> LinkState:
        """Set the rate of a link in bytes per second; None restores the configured one.

        Raises:
            KeyError: there is no such link.
            ValueError: the link cannot be that slow.
        """
        with self._lock:
            link = self._links[name]
            link.set_rate(rate)
            return link.state()
